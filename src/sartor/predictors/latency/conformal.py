"""Prediction intervals that hold without trusting the model: split conformal prediction, CV+ and jackknife+.

Errors on measurements that a model did not see say how wide its intervals must be. Errors are divided by the model's own scale, so that an
interval is wide where the model is unsure (Lei et al. 2018, "Distribution-Free Predictive Inference for Regression", section 5.2). Split
conformal intervals cover at least the nominal share on average (ibid., theorem 2.2); CV+ and jackknife+ (Barber et al. 2021, "Predictive
Inference with the Jackknife+", theorems 1 and 4) waste no measurement and promise less (1 - 2α), though they usually keep 1 - α.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FitPredict(Protocol):
    """Fits on the rows `train` `(n,)` and predicts at the rows `at` `(m,)`: centre and scale (a positive spread), each `(m,)`."""

    def __call__(self, train: Ints, at: Ints, /) -> tuple[Floats, Floats]: ...


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends and centres, each `(m,)`, in the units of the targets. Ends may be infinite where too little was measured."""

    low: Floats
    high: Floats
    centre: Floats

    def covers(self, truth: Floats) -> float:
        """Share of `truth` `(m,)` within its interval."""
        return float(((self.low <= truth) & (truth <= self.high)).mean())

    def exp(self) -> Intervals:
        """The same intervals for the exponential of the targets."""
        return Intervals(np.exp(self.low), np.exp(self.high), np.exp(self.centre))


def split(
    fit_predict: FitPredict, rows: Ints, targets: Floats, at: Ints, *, coverage: float = 0.9, held_out: float = 0.25, seed: int = 0
) -> Intervals:
    """Split conformal prediction: the model learns from some measurements and is judged on the others.

    Args:
        rows: measured rows `(n,)`.
        targets: their values `(n,)`; for latencies best the logarithm.
        at: rows to predict `(m,)`.
        coverage: nominal share of truths within their intervals.
        held_out: share of the measurements that judge.

    Raises:
        UserError: for a coverage outside 0..1, or too few measurements.
    """
    _check(rows, targets, coverage)
    order = np.random.default_rng(seed).permutation(len(rows))
    count = max(1, round(held_out * len(rows)))
    judges, train = rows[order[:count]], rows[order[count:]]
    centre, scale = fit_predict(train, np.concatenate([judges, at]))
    scores = np.sort(np.abs(targets[order[:count]] - centre[:count]) / scale[:count])
    rank = int(np.ceil(coverage * (count + 1)))
    width = scores[rank - 1] if rank <= count else np.inf
    centre, scale = centre[count:], scale[count:]
    return Intervals(centre - width * scale, centre + width * scale, centre)


def cv_plus(
    fit_predict: FitPredict, rows: Ints, targets: Floats, at: Ints, *, coverage: float = 0.9, folds: int = 10, seed: int = 0
) -> Intervals:
    """CV+: every measurement judges the model of the fold that it was left out of. With as many folds as measurements this is jackknife+.

    Arguments and errors as for :func:`split`; the centre is that of the model fitted on everything.
    """
    _check(rows, targets, coverage)
    n, m = len(rows), len(at)
    low, high = np.empty((m, n), dtype=np.float32), np.empty((m, n), dtype=np.float32)
    for left_out in np.array_split(np.random.default_rng(seed).permutation(n), min(max(folds, 2), n)):
        train = np.delete(rows, left_out)
        centre, scale = fit_predict(train, np.concatenate([rows[left_out], at]))
        k = len(left_out)
        scores = np.abs(targets[left_out] - centre[:k]) / scale[:k]
        reach = scale[k:, None] * scores
        low[:, left_out], high[:, left_out] = centre[k:, None] - reach, centre[k:, None] + reach
    rank = int(np.ceil(coverage * (n + 1)))
    if rank > n:
        ends = np.full(m, -np.inf), np.full(m, np.inf)
    else:
        ends = -np.partition(-low, rank - 1, axis=1)[:, rank - 1], np.partition(high, rank - 1, axis=1)[:, rank - 1]
    return Intervals(ends[0].astype(float), ends[1].astype(float), fit_predict(rows, at)[0])


def jackknife_plus(fit_predict: FitPredict, rows: Ints, targets: Floats, at: Ints, *, coverage: float = 0.9) -> Intervals:
    """Jackknife+: one model for each measurement left out. Arguments and errors as for :func:`split`."""
    return cv_plus(fit_predict, rows, targets, at, coverage=coverage, folds=len(rows))


def _check(rows: Ints, targets: Floats, coverage: float) -> None:
    if not 0 < coverage < 1:
        raise UserError(f"expected a coverage between 0 and 1 (0.9 for intervals of 90 %), got {coverage}")
    if len(rows) != len(targets) or len(rows) < 4:
        raise UserError(f"expected at least 4 measurements, one target for each row, got {len(rows)} rows and {len(targets)} targets")
