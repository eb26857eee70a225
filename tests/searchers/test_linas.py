from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.predictors.kernel import KernelModel
from sartor.run import search
from sartor.searchers import NSGA2
from sartor.searchers.linas import Linas, significant
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(5)) for i in range(8)})
TWO = Goals.parse(["accuracy", "latency"])


def evaluate(arch: Arch) -> dict[str, float]:
    """Every choice trades accuracy for latency at a rate of its own; odd options pay too much, so the front is thin."""
    gain = sum((i + 1) * v for i, v in enumerate(arch.values()))
    waste = sum(v % 2 for v in arch.values())
    return {"accuracy": gain / 150, "latency_ms": 1 + sum(v * v for v in arch.values()) + 10 * waste}


def volume(trials: tuple[Trial, ...]) -> float:
    return pareto.hypervolume(np.array([TWO.values(trial.metrics) for trial in trials]), np.array([0.0, 200.0]))


def test_a_better_front_than_nsga2_with_the_same_evaluations() -> None:
    for seed in range(2):
        ours = search(Linas(SPACE, TWO), evaluate, goals=TWO, space=SPACE, budget=100, batch=5, seed=seed).trials
        theirs = search(NSGA2(SPACE, TWO, population=20), evaluate, goals=TWO, space=SPACE, budget=100, batch=5, seed=seed).trials
        assert volume(ours) > 1.02 * volume(theirs)


def test_noise_in_the_last_bits_of_a_prediction_changes_no_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another processor's kernels make it; effects that repeat give many architectures that are equal but for it."""

    def proposals() -> list[Arch]:
        found = search(Linas(SPACE, TWO, population=10), evaluate, goals=TWO, space=SPACE, budget=60, batch=10).trials
        return [trial.arch for trial in found]

    quiet, predict, rng = proposals(), KernelModel.predict, np.random.default_rng(0)

    def noisy(self: KernelModel, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = predict(self, features)
        return mean * (1 + 1e-14 * rng.normal(size=mean.shape)), deviation

    monkeypatch.setattr(KernelModel, "predict", noisy)
    assert proposals() == quiet


@given(st.floats(allow_nan=False), st.integers(3, 40))
def test_significant_bits(value: float, bits: int) -> None:
    assume(value in (0, np.inf, -np.inf) or 1e-300 < abs(value) < 1e300)
    (found,) = significant(np.array([value]), bits)
    assert found == value or abs(found - value) <= 2.0**-bits * abs(value)
    assert significant(np.array([1 + 2.0**-12, 1 + 2.0**-12 + 1e-14]), 10).tolist() == [1.0, 1.0]


def test_a_generation_is_one_plan_however_it_is_asked_for() -> None:
    """Asked at once, in pieces and after a restart: the same architectures, by the seed that travels in meta."""
    past = list(search(Linas(SPACE, TWO), evaluate, goals=TWO, space=SPACE, budget=40, batch=20).trials)
    whole = Linas(SPACE, TWO).ask(past, [], 20, np.random.default_rng(0))
    assert len(whole) == 20 and {p.meta["generation"] for p in whole} == {2} and len({p.meta["seed"] for p in whole}) == 1
    pieces: list[Proposal] = []
    for k, (size, done) in enumerate(((3, 0), (7, 2), (10, 4))):  # how many to ask for, and how many of the pieces have finished
        finished = past + [Trial(40 + i, p.arch, evaluate(p.arch), meta=p.meta) for i, p in enumerate(pieces[:done])]
        pieces += Linas(SPACE, TWO).ask(finished, pieces[done:], size, np.random.default_rng(k))
    assert [p.arch for p in pieces] == [p.arch for p in whole]
    assert Linas(SPACE, TWO).ask(past, pieces, 5, np.random.default_rng(1)) == []


def test_predictors_see_all_generations_and_the_plan_is_their_front() -> None:
    past = list(search(Linas(SPACE, TWO), evaluate, goals=TWO, space=SPACE, budget=60, batch=20).trials)
    searcher = Linas(SPACE, TWO)
    state = searcher._fold(past)
    assert [trial.number for trial in state.learnt] == list(range(60)) and state.generation == 3 and not state.running
    plan = searcher.ask(past, [], 20, np.random.default_rng(0))
    values = np.array([TWO.values(evaluate(p.arch)) for p in plan])
    first = np.array([TWO.values(trial.metrics) for trial in past[:20]])
    improved = [pareto.hypervolume(rows, np.array([0.0, 200.0])) for rows in (values, first)]
    assert improved[0] > improved[1]


def test_limits_hold_on_predictions() -> None:
    goals = Goals.parse(["accuracy"], ["latency=60ms"])
    trials = search(Linas(SPACE, goals), evaluate, goals=goals, space=SPACE, budget=100, batch=20).trials
    first, late = (np.mean([goals.feasible(trial.metrics) for trial in part]) for part in (trials[:20], trials[40:]))
    assert first < 0.25 and late > max(0.3, 1.5 * first)  # the best lie at the limit, where a prediction errs to either side


@pytest.mark.parametrize(
    ("settings", "message"), [({"population": 1}, "population"), ({"predictor": "oracle"}, "unknown predictor 'oracle'")]
)
def test_mistakes_are_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Linas(SPACE, TWO, **settings)  # type: ignore[arg-type]
