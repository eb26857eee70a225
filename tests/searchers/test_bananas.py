from __future__ import annotations

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.cells import CellSpace
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers import RandomSearch
from sartor.searchers.bananas import Bananas
from sartor.trial import Trial

SPACE = Space({f"c{i}": list("abcd") for i in range(7)})
ONE = Goals.parse(["accuracy"])
_EFFECT = np.random.default_rng(5).normal(size=(7, 4))


def evaluate(arch: Arch) -> dict[str, float]:
    v = list(arch.values())
    return {"accuracy": 1 / (1 + np.exp(-0.4 * sum(_EFFECT[i, v[i]] for i in range(7)))), "latency_ms": 1.0 + sum(v)}


def best(searcher: Bananas | RandomSearch, goals: Goals, budget: int = 60) -> float:
    front = search(searcher, evaluate, goals=goals, space=SPACE, budget=budget, batch=5).front
    return max((trial.metrics["accuracy"] for trial in front), default=0.0)


def test_better_than_random_with_the_same_evaluations() -> None:
    assert best(Bananas(SPACE, ONE, steps=100), ONE) > best(RandomSearch(SPACE, ONE), ONE, 400)


def test_limits_decide_first() -> None:
    goals = Goals.parse(["accuracy"], ["latency=9ms"])
    trials = search(Bananas(SPACE, goals, steps=100), evaluate, goals=goals, space=SPACE, budget=60, batch=5).trials
    assert np.mean([goals.feasible(trial.metrics) for trial in trials[20:]]) > 0.75
    assert best(Bananas(SPACE, goals, steps=100), goals) > best(RandomSearch(SPACE, goals), goals, 200)


def test_candidates_are_mutants_of_the_best() -> None:
    rng = np.random.default_rng(0)
    history = [Trial(i, arch, evaluate(arch)) for i, arch in enumerate(SPACE.at(int(n)) for n in rng.permutation(SPACE.size)[:30])]
    searcher = Bananas(SPACE, ONE, steps=20, parents=3)
    parents = sorted(history, key=lambda trial: -trial.metrics["accuracy"])[:3]
    for proposal in searcher.ask(history, [], 10, rng):
        assert min(sum(proposal.arch[name] != p.arch[name] for name in SPACE.choices) for p in parents) <= 2


def test_one_ensemble_a_round() -> None:
    """Between two trainings the models stay, whatever finished since; the next round knows all of it."""
    trials = list(search(Bananas(SPACE, ONE, steps=20), evaluate, goals=ONE, space=SPACE, budget=31).trials)
    searcher = Bananas(SPACE, ONE, steps=20, initial=10, round=10)
    first = searcher._train(searcher._fold(trials[:20]))["accuracy"][0]
    assert searcher._train(searcher._fold(trials[:29]))["accuracy"][0] is first
    assert searcher._train(searcher._fold(trials[:30]))["accuracy"][0] is not first
    assert len(searcher._fold(trials[:30]).learnt) == 30


def test_thompson_sampling_is_independent_and_as_wide_as_the_ensemble() -> None:
    """Which candidate is drawn lowest varies where the members disagree, and not where they agree."""
    trials = list(search(Bananas(SPACE, ONE, steps=20), evaluate, goals=ONE, space=SPACE, budget=20).trials)
    searcher = Bananas(SPACE, ONE, steps=20)
    models = searcher._train(searcher._fold(trials))
    rows = searcher._embedding.rows([SPACE.at(i * 31) for i in range(100)])
    mean, deviation = models["accuracy"][0].predict(rows)
    assert deviation.mean() > 0.05
    rng = np.random.default_rng(0)
    chosen = [searcher._choose(models, rows, 0.0, 1, rng)[0] for _ in range(300)]
    z = (mean - mean.min()) / deviation
    assert len(set(chosen)) > 5 and np.mean(z[chosen]) < np.mean(z)


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="members must be at least 2, got 1"):
        Bananas(SPACE, ONE, members=1)


def test_paths_are_among_what_the_ensemble_sees() -> None:
    """The path encoding of the paper, where the space offers it."""
    cell = CellSpace({"a": (0, 1), "b": (0, 2), "c": (1, 2)}, ["none", "skip_connect", "conv"])
    assert {"a", "b", "c", "paths"} <= set(Bananas(cell, ONE)._embedding.names)
