from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.constraints import constrained
from sartor.searchers.genetic import GeneticAlgorithm
from sartor.trial import Trial

SPACE = Space({f"c{i}": list(range(5)) for i in range(8)})
GOALS = Goals.parse(["accuracy"])


def evaluate(arch: Arch) -> dict[str, float]:
    return {"accuracy": sum(arch.values()) / 32, "latency_ms": 1.0 + arch["c0"], "file_bytes": 1000.0}


def trial(number: int, metrics: dict[str, float], generation: int = 0) -> Trial:
    return Trial(number, SPACE.at(number * 997), metrics, meta={"generation": generation})


def test_fitness_is_that_of_the_documents() -> None:
    searcher = GeneticAlgorithm(SPACE, GOALS, fitness={"accuracy": 2.0, "latency": 3.0, "size": 5000.0})
    assert math.isclose(searcher.fitness(trial(0, {"accuracy": 0.9, "latency_ms": 4.0, "file_bytes": 10_000.0})), 1.8 + 0.75 + 0.5)
    assert searcher.fitness(trial(0, {"accuracy": 0.9, "latency_ms": 4.0})) == -math.inf
    assert searcher.fitness(trial(0, {"accuracy": 0.9, "latency_ms": 0.0, "file_bytes": 1.0})) == -math.inf
    assert GeneticAlgorithm(SPACE, GOALS).fitness(trial(0, {"accuracy": 0.9})) == 0.9  # the objectives, unless named


def test_softer_limits_cost_fitness() -> None:
    goals = constrained(Goals.parse(["accuracy"], ["latency=2ms"]), "penalty", weight=0.1)
    assert math.isclose(GeneticAlgorithm(SPACE, goals).fitness(trial(0, {"accuracy": 0.9, "latency_ms": 6.0})), 0.9 - 0.1 * 4)


def parents(searcher: GeneticAlgorithm, history: list[Trial], asks: int = 1500) -> np.ndarray:
    found = [searcher.ask(history, [], 1, np.random.default_rng(i))[0].meta["parents"][0] for i in range(asks)]
    return np.bincount(found, minlength=len(history)) / asks


def test_tournament_and_roulette_have_their_shares() -> None:
    history = [trial(i, {"accuracy": a}) for i, a in enumerate([0.1, 0.4, 0.2, 0.3])]
    tournament = GeneticAlgorithm(SPACE, GOALS, population=4, elite=0, tournament=2, crossover_rate=0.0)
    assert np.allclose(parents(tournament, history), np.array([1, 7, 3, 5]) / 16, atol=0.04)
    roulette = GeneticAlgorithm(SPACE, GOALS, population=4, elite=0, selection="roulette", crossover_rate=0.0)
    assert np.allclose(parents(roulette, history), np.array([0, 3, 1, 2]) / 6, atol=0.04)


def test_infeasible_members_have_no_share_of_the_wheel_and_lose_tournaments() -> None:
    goals = Goals.parse(["accuracy"], ["latency=2ms"])
    history = [trial(i, {"accuracy": a, "latency_ms": ms}) for i, (a, ms) in enumerate([(0.9, 3), (0.1, 1), (0.2, 1), (0.8, 9)])]
    roulette = GeneticAlgorithm(SPACE, goals, population=4, elite=0, selection="roulette", crossover_rate=0.0)
    assert parents(roulette, history, 100)[2] == 1.0
    tournament = GeneticAlgorithm(SPACE, goals, population=4, elite=0, tournament=2, crossover_rate=0.0)
    assert np.allclose(parents(tournament, history), np.array([3, 5, 7, 1]) / 16, atol=0.04)


@pytest.mark.parametrize("elite", [0, 2])
def test_children_replace_their_parents_but_for_the_elite(elite: int) -> None:
    """After a generation of worse children only the elite of the old one still breeds."""
    old = [trial(i, {"accuracy": 0.5 + i / 10}) for i in range(4)]
    young = [trial(4 + i, {"accuracy": i / 100}, 1) for i in range(4)]
    searcher = GeneticAlgorithm(SPACE, GOALS, population=4, elite=elite, tournament=1, crossover_rate=0.0)
    expected = {0: {4, 5, 6, 7}, 2: {2, 3, 6, 7}}[elite]
    assert set(np.flatnonzero(parents(searcher, [*old, *young], 200))) == expected


def test_a_child_takes_its_genes_from_its_parents() -> None:
    searcher = GeneticAlgorithm(SPACE, GOALS, population=20, mutation_rate=0.0, crossover_rate=1.0)
    trials = search(searcher, evaluate, goals=GOALS, space=SPACE, budget=80, batch=20).trials
    by_number = {t.number: t for t in trials}
    children = [t for t in trials if t.meta["generation"] > 0]
    pure = [all(any(by_number[p].arch[c] == t.arch[c] for p in t.meta["parents"]) for c in SPACE.choices) for t in children]
    assert len(children) == 60 and np.mean(pure) > 0.8  # the others were duplicates, and mutated on


def test_it_climbs() -> None:
    trials = search(GeneticAlgorithm(SPACE, GOALS, population=20), evaluate, goals=GOALS, space=SPACE, budget=400, batch=20).trials
    assert max(t.metrics["accuracy"] for t in trials[:20]) < 0.8 < 0.95 < max(t.metrics["accuracy"] for t in trials)


@pytest.mark.parametrize(
    "settings",
    [
        {"population": 1}, {"elite": 60}, {"elite": -1}, {"selection": "best"}, {"tournament": 0}, {"crossover_rate": 2.0},
        {"fitness": {"accuracy": 0.0}}, {"fitness": {"accuracy": -1.0}}, {"fitness": {"beauty": 1.0}},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"genetic|unknown metric"):
        GeneticAlgorithm(SPACE, GOALS, **settings)
