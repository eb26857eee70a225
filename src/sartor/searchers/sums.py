"""A cost as a sum of what its parts cost: the prior mean of its process.

Costs add (milliseconds, bytes), while measurements err in per cent: so the sum is in the metric's own units and its errors are relative.
Where nothing was measured, such as at the cheap end of a front, the sum still holds; a process on logarithms falls back to its mean there.
Measurements of latency have heavy tails, hence Student's t (Lange, Little & Taylor 1989, "Robust Statistical Modeling Using the t
Distribution", section 2), maximised by reweighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FREEDOM = 3.0  # of Student's t
_STEPS = 6  # reweightings
_PRIOR = 0.1  # precision of the shares' prior: where the parts err by this, a share is known to about as much as itself
_FLOOR = 0.02  # of the median: no sum is below
_LEAST_SPREAD = 0.02  # of the relative errors, so that a few values that fit exactly do not outweigh the others


@dataclass(frozen=True)
class Sum:
    """What each unit of a column costs.

    Attributes:
        columns: which columns of embedded rows are added up.
        weights: of a constant and of these columns, in the metric's units; none is negative.
        floor: no sum is below.
    """

    columns: NDArray[np.int64]
    weights: Floats
    floor: float

    @staticmethod
    def of(rows: Floats, values: Floats, readings: Sequence[NDArray[np.int64]]) -> Sum:
        """Fitted to positive `values` (n,) at `rows` (n, columns); of several readings of what is executed, the likeliest."""
        fits = [_fitted(rows, values, columns) for columns in readings]
        return max(fits, key=lambda found: found[1])[0]

    def logarithm(self, rows: Floats) -> Floats:
        """Logarithm of the sum `(m,)`."""
        return np.log(np.maximum(self.weights[0] + rows[:, self.columns] @ self.weights[1:], self.floor))


def _fitted(rows: Floats, values: Floats, columns: NDArray[np.int64]) -> tuple[Sum, float]:
    """A sum and its log likelihood, up to what all readings share."""
    from scipy.optimize import nnls

    terms = np.column_stack([np.ones(len(rows)), rows[:, columns]])
    middle, width = float(np.median(values)), terms.shape[1]
    means = terms.mean(axis=0)
    share = middle / width / np.where(means > 0, means, 1.0)  # every part costs the same, as far as is known
    belief, believed = _PRIOR * np.diag(1 / share), np.full(width, _PRIOR)
    found, trust, likelihood = Sum(columns, share, _FLOOR * middle), 1 / values, 0.0
    for _ in range(_STEPS):
        weights, _ = nnls(np.vstack([terms * trust[:, None], belief]), np.concatenate([values * trust, believed]), maxiter=50 * width)
        found = Sum(columns, weights, _FLOOR * middle)
        fitted = found.logarithm(rows)
        errors = np.log(values) - fitted
        spread = max(1.4826 * float(np.median(np.abs(errors))), _LEAST_SPREAD)
        tails = 1 + (errors / spread) ** 2 / _FREEDOM
        trust = np.exp(-fitted) / np.sqrt(tails)
        likelihood = -len(values) * float(np.log(spread)) - 0.5 * (_FREEDOM + 1) * float(np.log(tails).sum())
    return found, likelihood
