from __future__ import annotations

import numpy as np
import pytest

from sartor.errors import UserError
from sartor.predictors.latency.conformal import Floats, Ints, cv_plus, jackknife_plus, split

N, M = 60, 400


class Line:
    """Least squares on noise whose spread grows with x, of which the model is told half."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.uniform(0.5, 2, N + M)
        self.y = 3 * self.x + self.x * rng.standard_t(3, N + M)

    def __call__(self, train: Ints, at: Ints) -> tuple[Floats, Floats]:
        slope, offset = np.polyfit(self.x[train], self.y[train], 1)
        return slope * self.x[at] + offset, 0.5 * self.x[at]


@pytest.mark.parametrize(("method", "low", "high"), [(split, 0.88, 0.96), (cv_plus, 0.88, 0.94), (jackknife_plus, 0.88, 0.94)])
def test_nominal_coverage_is_kept_on_average(method: object, low: float, high: float) -> None:
    covered, ratio = [], []
    for seed in range(20):
        line = Line(seed)
        rows, at = np.arange(N), np.arange(N, N + M)
        found = method(line, rows, line.y[rows], at)  # type: ignore[operator]  # one of three functions with one signature
        covered.append(found.covers(line.y[at]))
        width = found.high - found.low
        ratio.append(width[line.x[at] > 1.7].mean() / width[line.x[at] < 0.8].mean())
    assert low < np.mean(covered) < high
    assert np.mean(ratio) > 2  # wide where the model says so


def test_split_is_the_quantile_of_the_held_out_scores() -> None:
    """With a constant model, the interval reaches as far as the ceil(0.9 (n + 1))-th smallest held-out error."""
    targets = np.arange(20.0)
    found = split(lambda train, at: (np.zeros(len(at)), np.ones(len(at))), np.arange(20), targets, np.array([0]), held_out=0.95, seed=1)
    held = targets[np.random.default_rng(1).permutation(20)[:19]]
    assert found.high[0] == np.sort(held)[17] and found.low[0] == -found.high[0]


def test_jackknife_plus_by_hand() -> None:
    """Leave-one-out means of 0..9 with unit scale, against the definition of Barber et al. 2021, equation 1.4, written out."""
    targets, rows = np.arange(10.0), np.arange(10)

    def mean(train: Ints, at: Ints) -> tuple[Floats, Floats]:
        return np.full(len(at), targets[train].mean()), np.ones(len(at))

    found = jackknife_plus(mean, rows, targets, np.array([0]), coverage=0.8)
    without = np.array([np.delete(targets, i).mean() for i in rows])
    errors = np.abs(targets - without)
    assert found.high[0] == pytest.approx(np.sort(without + errors)[8])  # ceil(0.8 * 11) = 9th smallest
    assert found.low[0] == pytest.approx(np.sort(without - errors)[1])  # floor(0.2 * 11) = 2nd smallest
    assert found.centre[0] == 4.5


def test_too_few_measurements_give_endless_intervals_rather_than_false_ones() -> None:
    line = Line(0)
    rows, at = np.arange(6), np.arange(10, 12)
    for found in (split(line, rows, line.y[rows], at), cv_plus(line, rows, line.y[rows], at)):
        assert np.isinf(found.low).all() and np.isinf(found.high).all()
    assert (cv_plus(line, rows, line.y[rows], at).exp().low == 0).all()


def test_nonsense_is_refused() -> None:
    line = Line(0)
    with pytest.raises(UserError, match=r"0\.9 for intervals"):
        split(line, np.arange(20), line.y[:20], np.arange(3), coverage=90)
    with pytest.raises(UserError, match="at least 4"):
        cv_plus(line, np.arange(3), line.y[:3], np.arange(3))
