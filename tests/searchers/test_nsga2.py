from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers import NSGA2, RandomSearch
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(5)) for i in range(10)})
GOALS = Goals.parse(["accuracy", "latency"])


def evaluate(arch: Arch) -> dict[str, float]:
    """Every choice trades accuracy for latency, at a rate of its own; odd options pay too much, so the front is thin."""
    gain = sum((i + 1) * v for i, v in enumerate(arch.values()))
    waste = sum(v % 2 for v in arch.values())
    return {"accuracy": gain / 220, "latency_ms": 1 + sum(v * v for v in arch.values()) + 10 * waste}


def generations(trials: tuple[Trial, ...]) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.meta["generation"], []).append(trial)
    return found


def test_parents_are_survivors_of_the_generations_before() -> None:
    """Elitism by the book: population g+1 = survivors(population g + offspring g), and only its members are parents."""
    result = search(NSGA2(SPACE, GOALS, population=12), evaluate, goals=GOALS, space=SPACE, budget=120, batch=5)
    population: list[Trial] = []
    for g, trials in generations(result.trials).items():
        assert len(trials) == 12
        assert {n for trial in trials for n in trial.meta.get("parents", [])} <= {trial.number for trial in population}
        if g > 0:
            assert sum(len(trial.meta["parents"]) == 2 for trial in trials) >= 6
        merged = population + trials
        population = [merged[i] for i in pareto.survivors(*_values(merged))]


def _values(trials: list[Trial]) -> tuple[np.ndarray, int, np.ndarray]:
    values, violations = GOALS.table(trials)
    return values, 12, violations


def test_an_offspring_takes_its_genes_from_its_parents() -> None:
    searcher = NSGA2(SPACE, GOALS, population=20, mutation_rate=0.0, crossover_rate=1.0)
    result = search(searcher, evaluate, goals=GOALS, space=SPACE, budget=100)
    by_number = {trial.number: trial for trial in result.trials}
    children = [trial for trial in result.trials if trial.meta["generation"] > 0]
    foreign = [sum(all(by_number[p].arch[c] != trial.arch[c] for p in trial.meta["parents"]) for c in SPACE.choices) for trial in children]
    assert len(children) == 80
    assert np.mean([f == 0 for f in foreign]) > 0.8  # the others were duplicates, and mutated on


def test_the_tournament_prefers_rank_then_crowding() -> None:
    """With the population [a dominates b], a's share of parents is 3/4: a pair of draws gives b only if both are b."""
    space = Space({f"c{i}": list(range(9)) for i in range(9)})
    better, worse = space.at(0), space.at(space.size - 1)
    history = [
        Trial(0, better, {"accuracy": 0.9, "latency_ms": 1.0}, meta={"generation": 0}),
        Trial(1, worse, {"accuracy": 0.1, "latency_ms": 9.0}, meta={"generation": 0}),
    ]
    searcher = NSGA2(space, GOALS, population=2, crossover_rate=0.0)
    parents = [searcher.ask(history, [], 1, np.random.default_rng(i))[0].meta["parents"] for i in range(400)]
    assert 0.68 < np.mean([p == [0] for p in parents]) < 0.82


def test_feasible_parents_win() -> None:
    goals = Goals.parse(["accuracy", "latency"], ["latency=5ms"])
    history = [
        Trial(0, SPACE.at(0), {"accuracy": 0.99, "latency_ms": 50.0}, meta={"generation": 0}),
        Trial(1, SPACE.at(1), {}, status="failed", error="x", meta={"generation": 0}),
        Trial(2, SPACE.at(2), {"accuracy": 0.1, "latency_ms": 4.0}, meta={"generation": 0}),
        Trial(3, SPACE.at(3), {"accuracy": 0.2, "latency_ms": 6.0}, meta={"generation": 0}),
    ]
    searcher = NSGA2(SPACE, goals, population=4, crossover_rate=0.0)
    shares = (
        np.bincount([searcher.ask(history, [], 1, np.random.default_rng(i))[0].meta["parents"][0] for i in range(800)], minlength=4) / 800
    )
    assert np.allclose(shares, np.array([3, 1, 7, 5]) / 16, atol=0.05)  # by violation: 2, 3, 0, 1


def test_initial_architectures_are_the_first_population() -> None:
    first = [SPACE.at(i * 1000) for i in range(30)]
    result = search(NSGA2(SPACE, GOALS, population=10, initial=first), evaluate, goals=GOALS, space=SPACE, budget=50, batch=4)
    assert [trial.arch for trial in result.trials[:30]] == first
    assert {g: len(trials) for g, trials in generations(result.trials).items()} == {0: 30, 1: 10, 2: 10}
    few = search(NSGA2(SPACE, GOALS, population=10, initial=first[:3]), evaluate, goals=GOALS, space=SPACE, budget=12)
    assert [trial.arch for trial in few.trials[:3]] == first[:3]
    assert [trial.meta["generation"] for trial in few.trials] == [0] * 10 + [1] * 2


def test_a_generation_waits_for_its_last_trial() -> None:
    searcher = NSGA2(SPACE, GOALS, population=4)
    asked = searcher.ask([], [], 10, np.random.default_rng(0))
    assert len(asked) == 4
    done = [Trial(i, p.arch, evaluate(p.arch), meta=p.meta) for i, p in enumerate(asked)]
    assert searcher.ask(done[:3], asked[3:], 1, np.random.default_rng(1)) == []
    assert searcher.ask(done, [], 1, np.random.default_rng(1))[0].meta["generation"] == 1


def test_a_history_of_another_searcher_is_the_first_population() -> None:
    past = search(RandomSearch(SPACE, GOALS), evaluate, goals=GOALS, space=SPACE, budget=40).trials
    asked = NSGA2(SPACE, GOALS, population=8).ask(past, [], 8, np.random.default_rng(0))
    assert {p.meta["generation"] for p in asked} == {5}  # forty trials make up five populations of eight


def test_it_finds_a_better_front_than_random_search() -> None:
    reference = np.array([0.0, 150.0])
    volumes: dict[Any, list[float]] = {}
    for make in (RandomSearch, NSGA2):
        for seed in range(3):
            result = search(make(SPACE, GOALS), evaluate, goals=GOALS, space=SPACE, budget=400, batch=50, seed=seed)
            volumes.setdefault(make, []).append(pareto.hypervolume(GOALS.table(result.front)[0], reference))
    assert min(volumes[NSGA2]) > 1.05 * max(volumes[RandomSearch])


@pytest.mark.parametrize(
    "settings",
    [{"population": 1}, {"crossover_rate": 1.5}, {"mutation_rate": -0.1}, {"initial": [Arch({"c0": 9})]}, {"initial": [Arch({})]}],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="nsga2"):
        NSGA2(SPACE, GOALS, **settings)


def test_a_foreign_pending_proposal_takes_a_slot() -> None:
    pending = [Proposal(SPACE.at(i)) for i in range(3)]
    assert len(NSGA2(SPACE, GOALS, population=4).ask([], pending, 10, np.random.default_rng(0))) == 1


def test_among_equals_the_tournament_prefers_the_less_crowded() -> None:
    """One front: the two extremes, then a point with far neighbours, then one with near ones."""
    figures = [(0.9, 10.0), (0.5, 4.0), (0.45, 3.8), (0.1, 1.0)]
    history = [Trial(i, SPACE.at(i), {"accuracy": a, "latency_ms": ms}, meta={"generation": 0}) for i, (a, ms) in enumerate(figures)]
    searcher = NSGA2(SPACE, GOALS, population=4, crossover_rate=0.0)
    parents = [searcher.ask(history, [], 1, np.random.default_rng(i))[0].meta["parents"][0] for i in range(800)]
    assert np.allclose(np.bincount(parents, minlength=4) / 800, np.array([6, 3, 1, 6]) / 16, atol=0.05)
