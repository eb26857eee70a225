from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals, parse_limit
from sartor.run import search
from sartor.searchers import SEARCHERS, make_searcher
from sartor.searchers.constraints import Constrained, at_present, constrained, deductions, scores, slack
from sartor.searchers.memory import forecast
from sartor.searchers.surrogate import bound_loss
from sartor.trial import Trial

GOALS = Goals.parse(["accuracy", "latency"], ["latency=2ms", "params<=1M"])


def trial(accuracy: float = 0.5, latency_ms: float = 1.0, params: float = 1e5, number: int = 0) -> Trial:
    return Trial(number, Arch({}), {"accuracy": accuracy, "latency_ms": latency_ms, "params": params})


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 9), st.floats(1, 1e7)), max_size=8))
def test_hard_is_what_plain_goals_do(rows: list[tuple[float, float, float]]) -> None:
    trials = [trial(*row) for row in rows]
    for found, expected in zip(constrained(GOALS, "hard").table(trials), GOALS.table(trials), strict=True):
        assert np.array_equal(found, expected)


def test_penalty_and_hinge_make_objectives_pay() -> None:
    over = trial(0.5, 3.0, 2e6)  # excesses 0.5 and 1
    values, violations = constrained(GOALS, "penalty", weight=10).table([over, trial()])
    assert np.allclose(values, [[-0.5 + 12.5, 3.0 + 12.5], [-0.5, 1.0]]) and not violations.any()
    values, violations = constrained(GOALS, "hinge", weight=10).table([over, trial()])
    assert np.allclose(values, [[-0.5 + 15, 3.0 + 15], [-0.5, 1.0]]) and not violations.any()


def test_soft_limits_are_further_objectives() -> None:
    values, violations = constrained(GOALS, "soft").table([trial(0.5, 3.0, 2e6), trial()])
    assert np.allclose(values, [[-0.5, 3.0, 0.5, 1.0], [-0.5, 1.0, 0, 0]]) and not violations.any()
    assert pareto.front(values, violations).tolist() == [False, True]
    assert constrained(GOALS, "soft").table([])[0].shape == (0, 4)
    assert scores(constrained(GOALS, "soft", weight=2), [trial(0.5, 3.0, 2e6)]) == [(0.0, -0.5 + 3.0)]


def test_progressive_limits_tighten_with_the_trials() -> None:
    goals = constrained(GOALS, "progressive", initial=1.0, tau=10)
    for number in (0, 5, 10, 100):
        excess = max(0.0, 0.5 - math.exp(-number / 10))  # of 3 ms over 2 ms
        assert math.isclose(goals.table([trial(latency_ms=3.0, number=number)])[1][0], excess)
    early, late = trial(latency_ms=3.0, number=0), trial(number=100)
    assert math.isclose(goals.table([early, late])[1][0], 0.5 - math.exp(-10))  # together they are judged at the later time
    assert goals.violation(early.metrics) == 0.5  # no time: the final limit


def test_the_present_slack_stays_where_a_search_within_a_step_counts_for_itself() -> None:
    goals, known = constrained(GOALS, "progressive", initial=1.0, tau=10), [trial(number=10)]
    assert math.isclose(slack(goals, known), math.exp(-1)) and slack(GOALS, known) == slack(constrained(GOALS, "soft"), known) == 0
    within = at_present(goals, known)
    for number in (0, 10, 10_000):
        assert math.isclose(within.table([trial(latency_ms=3.0, number=number)])[1][0], 0.5 - math.exp(-1))
    assert at_present(GOALS, known) is GOALS
    assert bound_loss(parse_limit("latency=2ms"), 0.5) == 3.0 and bound_loss(parse_limit("accuracy>=80%"), 0.5) == 0.6
    assert bound_loss(parse_limit("throughput>=100"), 0.5) == 0.02 and bound_loss(parse_limit("throughput>=100"), 1.0) == math.inf


def test_a_forecast_excuses_what_the_trials_are_excused() -> None:
    goals = constrained(GOALS, "progressive", initial=1.0, tau=10)
    known = [Trial(i, Arch({f"c{k}": 0 for k in range(5)}), {"accuracy": 0.5, "latency_ms": 4.5, "params": 1e5}) for i in range(4)]
    _, violations = forecast(SPACE, goals, known)([known[0].arch])
    assert math.isclose(violations[0], 1.25 - math.exp(-0.3))


@pytest.mark.parametrize("form", ["hard", "penalty", "hinge", "soft", "progressive"])
def test_what_is_missing_is_never_feasible(form: str) -> None:
    trials = [Trial(0, Arch({}), {"accuracy": 0.9}), Trial(1, Arch({}), {}, status="failed", error="x"), trial()]
    values, violations = constrained(GOALS, form).table(trials)  # type: ignore[arg-type]  # the parameter is a plain string
    assert violations.tolist() == [math.inf, math.inf, 0.0] and pareto.front(values, violations).tolist() == [False, False, True]


def test_deductions_are_for_the_softer_forms() -> None:
    over = trial(0.5, 3.0, 2e6)
    assert deductions(GOALS, [over]).tolist() == deductions(constrained(GOALS, "hard"), [over]).tolist() == [0.0]
    assert deductions(constrained(GOALS, "penalty", weight=2), [over, trial()]).tolist() == [2.5, 0.0]
    assert deductions(constrained(GOALS, "hinge", weight=2), [over]).tolist() == [3.0]


@pytest.mark.parametrize("settings", [{"form": "mild"}, {"form": "penalty", "weight": 0.0}, {"form": "progressive", "tau": math.nan}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="constraint"):
        Constrained(("accuracy",), **settings)  # type: ignore[arg-type]  # wrong on purpose


SPACE = Space({f"c{i}": list(range(4)) for i in range(5)})
SETTINGS: dict[str, dict[str, object]] = {
    "nsga3": {"population": 8, "partitions": 2}, "reinforce": {"hidden": 8}, "ppo": {"hidden": 8, "epochs": 1}, "dpp": {"pool": 20},
}  # fmt: skip


@pytest.mark.parametrize("form", ["penalty", "soft", "progressive"])
@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_every_searcher_takes_every_form(name: str, form: str) -> None:

    def evaluate(arch: Arch, fidelity: float = 1.0) -> dict[str, float]:
        return {"accuracy": sum(arch.values()) / 15, "latency_ms": 1.0 + sum(arch.values()), "params": 1e5}

    goals = constrained(GOALS, form, weight=0.01, tau=30)  # type: ignore[arg-type]  # the parameter is a plain string
    result = search(make_searcher(name, SPACE, goals, **SETTINGS.get(name, {})), evaluate, goals=GOALS, space=SPACE, budget=30, batch=5)
    assert len(result.trials) == 30 and not any(t.status == "failed" for t in result.trials)


def proposals(name: str, goals: Goals) -> list[Arch]:
    def evaluate(arch: Arch, fidelity: float = 1.0) -> dict[str, float]:
        return {"accuracy": math.sin(sum(arch.values())) / 2 + 0.5, "latency_ms": 1.0 + sum(arch.values())}

    searcher = make_searcher(name, SPACE, goals, **SETTINGS.get(name, {}))
    return [t.arch for t in search(searcher, evaluate, goals=goals, space=SPACE, budget=40, batch=4).trials]


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_a_progressive_limit_lies_between_none_and_a_hard_one(name: str) -> None:
    """While it excuses everything it is no limit, and once it excuses nothing it is a hard one: for what is predicted, too."""
    free, limited = Goals.parse(["accuracy", "latency"]), Goals.parse(["accuracy", "latency"], ["latency=5ms"])
    excusing = constrained(limited, "progressive", initial=1e9, tau=5)  # 4e5 after forty trials
    strict = constrained(limited, "progressive", initial=1e-12, tau=5)
    assert proposals(name, excusing) == proposals(name, free)
    assert proposals(name, strict) == proposals(name, limited)
