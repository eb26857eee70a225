from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.goals import METRICS, Goals
from sartor.searchers.base import Visited
from sartor.searchers.constraints import constrained
from sartor.searchers.embedding import Embedding
from sartor.searchers.pool import Pool
from sartor.searchers.surrogate import View, Warp, loss, losses, metric_value
from sartor.trial import Trial


@given(st.sampled_from(sorted(METRICS)), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_losses_are_minimised_and_have_an_inverse(metric: str, one: float, other: float) -> None:
    better = one > other if METRICS[metric].direction == "max" else one < other
    if abs(one - other) > 1e-9:
        assert (loss(metric, one) < loss(metric, other)) == better
    assert metric_value(metric, loss(metric, one)) == pytest.approx(one)
    assert math.isnan(loss(metric, math.nan))


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=2, max_size=30), st.sampled_from(["log", "gap", "scores"]))
def test_warps_are_monotone_and_standardise(values: list[float], scale: str) -> None:
    array = np.array(values)
    warp = Warp.of(array, scale)  # type: ignore[arg-type]
    heights = warp(array)
    order = np.argsort(array, kind="stable")
    assert (np.diff(heights[order]) >= -1e-9).all()
    if np.ptp(array) > 1e-3 * array.max():
        assert heights.mean() == pytest.approx(0, abs=1e-6) and heights.std() == pytest.approx(1, abs=1e-6)
        assert warp.inverse(heights) == pytest.approx(array, rel=1e-5)


def test_the_gap_scale_is_finest_near_the_best() -> None:
    """The same step of a loss is worth more the nearer it is to the best, more so than on the logarithmic scale, and never less again."""
    values = np.array([0.06, 0.07, 0.09, 0.12, 0.3, 0.9])
    steps = {scale: np.diff(Warp.of(values, scale)(np.array([0.06, 0.065, 0.3, 0.305]))) for scale in ("log", "gap")}  # type: ignore[arg-type]
    near, far = ({scale: step[i] for scale, step in steps.items()} for i in (0, 2))
    assert near["gap"] / far["gap"] > 1.5 * near["log"] / far["log"] > 1
    constant = Warp.of(np.full(4, 0.25), "gap")
    assert np.isfinite(constant(np.array([0.2, 0.25, 0.3]))).all()


def test_losses_of_failed_and_partial_trials_are_nan() -> None:
    goals = Goals.parse(["accuracy", "latency"], ["latency_p90=2ms"])
    arch = Arch({"a": 0})
    trials = [
        Trial(0, arch, {"accuracy": 0.9, "latency_ms": 2.0, "latency_ms_p90": 3.0}),
        Trial(1, arch, {"accuracy": 0.9, "latency_ms": math.inf}),
        Trial(2, arch, {}, status="failed"),
    ]
    found = losses(goals, trials)
    assert list(found) == ["accuracy", "latency_ms", "latency_ms_p90"]
    assert found["accuracy"][:2] == pytest.approx([0.1, 0.1]) and np.isnan(found["accuracy"][2])
    assert found["latency_ms"][0] == 2.0 and np.isnan(found["latency_ms"][1:]).all() and found["latency_ms_p90"][0] == 3.0


def test_pools_hold_what_is_unvisited() -> None:
    space = Space({f"c{i}": list(range(4)) for i in range(5)})
    embedding, rng = Embedding(space), np.random.default_rng(0)
    visited = Visited(space)
    for number in range(0, space.size, 3):
        visited.add(space.at(number))
    whole = Pool(space, embedding, 2000, 10).unvisited(visited)
    assert [arch for arch, free in zip(whole.archs, whole.free, strict=True) if free] == [arch for arch in space if arch not in visited]
    best = space.at(500)
    drawn = Pool(space, embedding, 0, 200).candidates(visited, [best], lambda rows: -((rows - embedding.rows([best])) ** 2).sum(1), rng)
    assert not any(arch in visited for arch in drawn.archs) and len(set(drawn.archs)) == len(drawn.archs) <= 200
    for found in (whole, drawn):
        assert np.array_equal(found.rows, embedding.rows(found.archs))
    far = [sum(arch[name] != best[name] for name in space.choices) for arch in drawn.archs]
    assert np.mean(np.array(far) <= 3) > 0.5 and max(far) == 5  # mutants of the best, and uniform draws


def test_softer_forms_of_limits_are_priced_into_the_losses() -> None:
    goals = Goals.parse(["accuracy"], ["latency=2ms"])
    trials = [
        Trial(0, Arch({"a": 0}), {"accuracy": 0.9, "latency_ms": 3.0}),
        Trial(1, Arch({"a": 1}), {"accuracy": 0.8, "latency_ms": 1.0}),
    ]
    hard = View.of(goals)
    assert hard.limits == goals.limits and list(hard.columns(trials)) == ["accuracy", "latency_ms"]
    priced = View.of(constrained(goals, "penalty", weight=2.0))
    assert priced.limits == () and priced.columns(trials)["accuracy"] == pytest.approx([0.1 + 2.0 * 0.5**2, 0.2])
    soft = View.of(constrained(goals, "soft")).columns(trials)
    assert len(soft) == 2 and list(soft.values())[1] == pytest.approx([0.5, 0.0])
    failed = Trial(2, Arch({"a": 2}), {}, status="failed")
    assert all(np.isnan(column[2]) for column in View.of(constrained(goals, "soft")).columns([*trials, failed]).values())
