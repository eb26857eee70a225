from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm

from sartor.goals import Goals
from sartor.searchers.promise import Promise
from sartor.searchers.surrogate import WORKS, Belief, View, Warp

TWO = View.of(Goals.parse(["accuracy", "latency"]))


@dataclass
class Known:
    """A posterior that is given."""

    mean: np.ndarray
    variance: np.ndarray


def believed(losses: np.ndarray, works: np.ndarray | None = None) -> dict[str, Belief]:
    """Losses `(m, 2)` known to a hundredth."""
    warps = [Warp.of(column, "log") for column in losses.T]
    m = len(losses)
    found = {
        name: Belief(Known(warp(column), np.full(m, 1e-4)), warp, np.zeros(m))  # type: ignore[arg-type]
        for name, warp, column in zip(TWO.names, warps, losses.T, strict=True)
    }
    if works is not None:
        states = np.where(works, 1.0, 2.0)
        warp = Warp.of(states, "log")
        found[WORKS] = Belief(Known(warp(states), np.full(m, 0.04)), warp, np.zeros(m))  # type: ignore[arg-type]
    return found


def corner(belief: dict[str, Belief], reached: np.ndarray) -> np.ndarray:
    objectives = [belief[name] for name in TWO.names]
    levels = np.column_stack([one.warp(column) for one, column in zip(objectives, reached.T, strict=True)])
    promise = Promise(TWO)
    _, found = promise._front(levels, objectives, promise.usual(belief))
    return found - [one.warp.offset for one in objectives]  # type: ignore[no-any-return]


LOSSES = np.column_stack([np.linspace(0.3, 0.1, 1000), np.linspace(5.0, 50.0, 1000)])


def test_the_corner_lies_beyond_the_predicted_ends_of_the_front() -> None:
    """One architecture in a thousand is ten times as fast as the others, at an error that no other has."""
    losses = np.vstack([LOSSES, [0.45, 0.5]])
    reached = losses[400:600:20]
    assert (corner(believed(losses), reached) > [0.449, 49.0]).all()
    assert corner(believed(LOSSES), reached)[0] < 0.31


def test_what_does_not_work_does_not_move_the_corner() -> None:
    losses = np.vstack([LOSSES, np.tile([0.9, 0.1], (200, 1))])
    works = np.arange(1200) < 1000
    assert corner(believed(losses, works), LOSSES[400:600:20]) == pytest.approx(corner(believed(LOSSES), LOSSES[400:600:20]), rel=0.02)
    assert corner(believed(losses), LOSSES[400:600:20])[0] > 0.8


def test_the_fast_end_has_a_promise_though_its_error_is_unusual() -> None:
    losses = np.vstack([LOSSES, [0.45, 0.5]])
    belief = believed(losses)
    levels = np.column_stack([belief[name].mean[:1000] for name in TWO.names])  # all others are known
    promise = Promise(TWO)
    free = np.arange(1001) >= 995
    scores = promise.scores(levels, belief, np.random.default_rng(0), promise.usual(belief), free)
    assert scores[free].argmax() == 5 and np.isfinite(scores[1000])


def test_one_objective_is_promised_by_its_improvement_not_by_its_mean() -> None:
    """Of three candidates the least certain promises most, though another has the lowest mean."""
    view = View.of(Goals.parse(["accuracy"]))
    mean, deviation = np.array([0.5, 0.5, 0.4]), np.array([0.1, 1.0, 0.01])
    belief = Belief(Known(mean, deviation**2), Warp.of(np.array([0.1, 0.2]), "log"), np.zeros(3))  # type: ignore[arg-type]
    scores = Promise(view).scores(np.array([[0.3], [0.0]]), {"accuracy": belief}, np.random.default_rng(0))
    z = -mean / deviation
    assert np.exp(scores) == pytest.approx(deviation * (norm.pdf(z) + z * norm.cdf(z)), abs=1e-12) and scores.argmax() == 1
