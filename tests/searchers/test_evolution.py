from __future__ import annotations

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.evolution import RegularizedEvolution
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(9)) for i in range(9)})
GOALS = Goals(("accuracy",))


def history(accuracies: list[float | None]) -> list[Trial]:
    def trial(i: int, accuracy: float | None) -> Trial:
        arch = SPACE.at(i * 1_000_003)
        return Trial(i, arch, {}, status="failed", error="x") if accuracy is None else Trial(i, arch, {"accuracy": accuracy})

    return [trial(i, accuracy) for i, accuracy in enumerate(accuracies)]


def shares(searcher: RegularizedEvolution, past: list[Trial], asks: int = 1500) -> np.ndarray:
    parents = [searcher.ask(past, [], 1, np.random.default_rng(i))[0].meta["parent"] for i in range(asks)]
    return np.bincount(parents, minlength=len(past)) / asks


def test_the_oldest_dies_not_the_worst() -> None:
    """Of six finished trials the best are the two oldest: with P = 4 they are gone, however good, and the worst lives on."""
    past = history([0.99, 0.98, 0.1, 0.3, 0.2, 0.4])
    found = shares(RegularizedEvolution(SPACE, GOALS, population=4, sample=1), past)
    assert np.allclose(found, [0, 0, 0.25, 0.25, 0.25, 0.25], atol=0.04)


def test_age_is_the_order_of_finishing() -> None:
    past = history([0.5] * 6)
    reordered = [past[i] for i in (4, 5, 0, 1, 2, 3)]
    assert set(np.flatnonzero(shares(RegularizedEvolution(SPACE, GOALS, population=4, sample=1), reordered, 200))) == {0, 1, 2, 3}


def test_the_best_of_the_sample_is_the_parent() -> None:
    """S members with replacement: the k-th best of P is the parent with probability ((P-k+1)/P)^S - ((P-k)/P)^S."""
    past = history([0.1, 0.4, None, 0.3])
    found = shares(RegularizedEvolution(SPACE, GOALS, population=4, sample=3), past)
    chances = {1: 4, 3: 3, 0: 2, 2: 1}  # trial -> number of members that are not better, itself included
    assert np.allclose(found, [(chances[i] ** 3 - (chances[i] - 1) ** 3) / 64 for i in range(4)], atol=0.04)


def test_feasible_members_win() -> None:
    goals = Goals.parse(["accuracy"], ["latency=2ms"])
    metrics = [{"accuracy": 0.9, "latency_ms": 9.0}, {"accuracy": 0.1, "latency_ms": 1.0}, {"accuracy": 0.8, "latency_ms": 3.0}]
    past = [Trial(i, SPACE.at(i), m) for i, m in enumerate(metrics)]
    found = shares(RegularizedEvolution(SPACE, goals, population=3, sample=30), past, 100)
    assert found[1] == 1.0


def test_a_child_changes_one_choice() -> None:
    past = history([0.5] * 4)
    searcher = RegularizedEvolution(SPACE, GOALS, population=4, sample=2)
    for i in range(100):
        child = searcher.ask(past, [], 1, np.random.default_rng(i))[0]
        parent = past[child.meta["parent"]].arch
        assert sum(child.arch[name] != parent[name] for name in SPACE.choices) == 1


def test_the_first_population_is_random_pending_ones_counted() -> None:
    searcher = RegularizedEvolution(SPACE, GOALS, population=4, sample=2)
    asked = searcher.ask(history([0.5]), [Proposal(SPACE.at(7))], 5, np.random.default_rng(0))
    assert ["parent" in p.meta for p in asked] == [False, False, True, True, True]


def test_it_finds_better_than_it_starts_with() -> None:
    def evaluate(arch: Arch) -> dict[str, float]:
        return {"accuracy": sum(arch.values()) / 72}

    trials = search(
        RegularizedEvolution(SPACE, GOALS, population=20, sample=5), evaluate, goals=GOALS, space=SPACE, budget=400, batch=4
    ).trials
    assert max(t.metrics["accuracy"] for t in trials[-20:]) > 0.85 > 0.75 > max(t.metrics["accuracy"] for t in trials[:20])


@pytest.mark.parametrize("settings", [{"population": 0}, {"sample": 0}, {"mutations": 0}, {"population": 2.5}])
def test_bad_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="evolution"):
        RegularizedEvolution(SPACE, GOALS, **settings)
