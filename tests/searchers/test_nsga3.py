from __future__ import annotations

import math

import numpy as np
import pytest

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.nsga3 import NSGA3, Frame, associate, niching, reference_points
from sartor.trial import Trial

SPACE = Space({f"c{i}": list(range(5)) for i in range(8)})
GOALS = Goals.parse(["accuracy", "latency", "params", "peak"])


def populations(count: int) -> list[np.ndarray]:
    """Random objectives, some rounded (ties, dominated duplicates), some of one front only."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(count):
        n, m = int(rng.integers(8, 60)), int(rng.integers(2, 6))
        points = rng.random((n, m)) * rng.uniform(0.5, 20, m)
        if i % 3 == 1:
            points = points.round(1)
        if i % 3 == 2:
            points = points / np.linalg.norm(points, axis=1, keepdims=True)
        found.append(points)
    return found


@pytest.mark.parametrize(("objectives", "partitions"), [(1, 5), (2, 7), (3, 12), (5, 3)])
def test_reference_points_are_das_and_dennis(objectives: int, partitions: int) -> None:
    points = reference_points(objectives, partitions)
    assert len(points) == len(np.unique(points, axis=0)) == math.comb(objectives + partitions - 1, partitions)
    assert np.allclose(points.sum(axis=1), 1) and np.allclose(points * partitions, (points * partitions).round())
    if objectives > 1:
        from pymoo.util.ref_dirs import get_reference_directions

        theirs = get_reference_directions("das-dennis", objectives, n_partitions=partitions)
        assert {tuple(row) for row in theirs.round(9)} == {tuple(row) for row in points.round(9)}


def test_normalisation_and_association_equal_pymoo() -> None:
    from pymoo.algorithms.moo.nsga3 import HyperplaneNormalization, associate_to_niches

    same: list[bool] = []
    for points in populations(200):
        m = points.shape[1]
        theirs, frame = HyperplaneNormalization(m), Frame(np.full(m, np.inf), np.full(m, -np.inf))
        for part in (points[: len(points) // 2], points[len(points) // 2 :]):  # two generations: extremes and worst are remembered
            first = pareto.ranks(part) == 0
            theirs.update(part, nds=np.flatnonzero(first))
            frame, nadir = frame.updated(part, first)
            assert np.allclose(frame.ideal, theirs.ideal_point) and np.allclose(frame.extremes, theirs.extreme_points)
            assert np.allclose(nadir, theirs.nadir_point)
            directions = reference_points(m, 4)
            niche, distance, _ = associate_to_niches(part, directions, frame.ideal, nadir)
            ours, lengths = associate(part, frame.ideal, nadir, directions)
            assert np.allclose(lengths, distance)
            same += (ours == niche).tolist()
    assert np.mean(same) > 0.99  # a point right between two lines falls to either, by rounding


def test_survivors_equal_pymoo() -> None:
    """The same normalisation, association and niching with the same random numbers give the same survivors, ties included."""
    from pymoo.algorithms.moo.nsga3 import ReferenceDirectionSurvival
    from pymoo.core.population import Population

    same = 0
    for i, points in enumerate(populations(200)):
        m, n = points.shape[1], len(points) // 2
        searcher = NSGA3(SPACE, Goals.parse(["accuracy", "latency", "params", "peak", "macs"][:m]), population=max(2, n), partitions=3)
        survival = ReferenceDirectionSurvival(reference_points(m, 3))
        pop = survival._do(None, Population.new(F=points.copy()), max(2, n), random_state=np.random.default_rng(i))
        empty = Frame(np.full(m, np.inf), np.full(m, -np.inf))
        _, kept = searcher.survivors(points, empty, np.random.default_rng(i))
        theirs = sorted(map(tuple, pop.get("F")))
        same += theirs == sorted(map(tuple, points[kept]))
    assert same >= 198  # points exactly between two lines may fall to either


def test_niching_equals_pymoo() -> None:
    from pymoo.algorithms.moo.nsga3 import niching as theirs

    rng = np.random.default_rng(3)
    for seed in range(200):
        size, niches = int(rng.integers(2, 40)), int(rng.integers(1, 12))
        niche, distance, counts = rng.integers(niches, size=size), rng.random(size).round(1), rng.integers(3, size=niches)
        n = int(rng.integers(1, size + 1))
        expected = theirs(np.arange(size), n, counts.copy(), niche, distance, random_state=np.random.default_rng(seed))
        assert niching(niche, distance, counts, n, np.random.default_rng(seed)) == expected


def test_the_empty_niche_takes_its_nearest() -> None:
    niche, distance = np.array([0, 0, 1, 1, 2]), np.array([0.3, 0.1, 0.2, 0.4, 0.9])
    assert sorted(niching(niche, distance, np.array([0, 0, 5]), 2, np.random.default_rng(0))) == [1, 2]


def test_feasible_survive_before_infeasible() -> None:
    goals = Goals.parse(["accuracy", "latency", "params"], ["latency=5ms"])
    trials = [
        Trial(i, SPACE.at(i), {"accuracy": 0.1 * i, "latency_ms": ms, "params": 10.0 + i}, meta={"generation": 0})
        for i, ms in enumerate([4.0, 9.0, 4.5, 7.0])
    ]
    searcher = NSGA3(SPACE, goals, population=4, partitions=2, crossover_rate=0.0)
    parents = [searcher.ask(trials, [], 1, np.random.default_rng(i))[0].meta["parents"][0] for i in range(800)]
    # A pair of draws; between feasible ones either, else less violation: trial 1 needs a pair of itself, trial 3 loses to 0 and 2.
    assert np.allclose(np.bincount(parents, minlength=4) / 800, np.array([6, 1, 6, 3]) / 16, atol=0.05)


def test_it_spreads_over_four_objectives() -> None:
    def evaluate(arch: Arch) -> dict[str, float]:
        v = list(arch.values())
        return {
            "accuracy": sum(v) / 32,
            "latency_ms": 1.0 + v[0] * v[1] + v[2],
            "params": 1.0 + v[3] ** 2 + v[4],
            "peak_bytes": 1.0 + sum(v[5:]),
        }

    result = search(NSGA3(SPACE, GOALS), evaluate, goals=GOALS, space=SPACE, budget=336, batch=84)
    assert {t.meta["generation"] for t in result.trials} == {0, 1, 2, 3}  # 84 reference points for four objectives and six partitions
    last = GOALS.table([t for t in result.trials if t.meta["generation"] == 3])[0]
    first = GOALS.table([t for t in result.trials if t.meta["generation"] == 0])[0]
    reference = np.array([0.0, 25.0, 25.0, 15.0])
    assert pareto.hypervolume(last, reference) > pareto.hypervolume(first, reference)


@pytest.mark.parametrize("settings", [{"population": 1}, {"partitions": 0}, {"partitions": 99}, {"crossover_rate": -1.0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="nsga3"):
        NSGA3(SPACE, GOALS, **settings)  # type: ignore[arg-type]  # wrong on purpose


def test_the_frame_remembers_the_generations_before() -> None:
    """A point that died two generations ago still bounds the nadir; and the ideal is that of all that was seen."""
    goals = Goals.parse(["accuracy", "latency"])
    slow = [(0.1, 100.0), *[(0.2 + i / 100, 10.0 + i) for i in range(3)]]
    figures = [*slow, *[(0.5 + i / 100, 2.0 - i / 100) for i in range(8)]]
    trials = [Trial(i, SPACE.at(i), {"accuracy": a, "latency_ms": ms}, meta={"generation": i // 4}) for i, (a, ms) in enumerate(figures)]
    population = NSGA3(SPACE, goals, population=4, partitions=3)._generations.population(trials)
    assert 0 not in {t.number for t in population.trials}
    assert population.frame.worst.tolist() == [-0.1, 100.0] and population.frame.ideal.tolist() == pytest.approx([-0.57, 1.93])
