from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers import SEARCHERS, make_searcher
from sartor.searchers.constraints import Constrained, constrained, deductions, scores
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
