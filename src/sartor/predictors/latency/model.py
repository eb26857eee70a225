"""Net-level predictor: the sum of costs, and a Gaussian process for what the sum leaves, where unseen measurements say it helps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.predictors.kernel import KernelModel, fit_kernel
from sartor.predictors.latency.additive import Additive, Prior, checked, fit_additive
from sartor.predictors.latency.conformal import Intervals, cv_plus
from sartor.predictors.latency.features import Readings
from sartor.predictors.latency.judgement import Judgement, judge

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_FEWEST = 30  # measurements below which a correction is not tried
_GAIN = 0.05  # by which it must lower the error
_LOST = 0.3  # errors beyond are as bad as this: one interrupted measurement must not choose the model
_OUTLIER = 3.0  # residuals are cut at as many σ before the process sees them
_FOLDS = 5


@dataclass(frozen=True)
class LatencyModel:
    """A fitted predictor; made by :func:`fit`.

    Attributes:
        costs: the sum of costs.
        correction: process of the logarithm of measured over predicted, None where it does not help.
    """

    costs: Additive
    correction: KernelModel | None

    def predict(self, readings: Readings, features: Floats | None = None) -> tuple[Floats, Floats]:
        """Latency in ms `(n,)` and its relative deviation `(n,)`, with what does not repeat.

        Args:
            readings: columns `(n, k)` for each reading of the model.
            features: encodings `(n, d)`, needed if the model was fitted with them.

        Raises:
            UserError: where the features are missing.
        """
        mean, deviation = self.costs.predict(readings)
        if self.correction is not None:
            if features is None:
                raise UserError("expected the features that this latency model was fitted with, got none")
            bend, unsure = self.correction.predict(np.asarray(features, dtype=float))
            mean, deviation = mean * np.exp(bend), np.hypot(deviation, unsure)
        return mean, np.hypot(deviation, self.costs.noise)


def fit(
    readings: Readings, latency_ms: Floats, *, features: Floats | None = None, prior: Prior | None = None, seed: int = 0
) -> LatencyModel:
    """Learn the latency of networks from measured ones.

    Args:
        readings: columns `(n, k)` of the measured networks under each reading, from :func:`cell_readings`, or `{"all": columns}` with the
            columns of :func:`graph_columns`.
        latency_ms: their latencies `(n,)`.
        features: encodings `(n, d)` of the same networks, for what the sum of costs leaves.
        prior: from :func:`sartor.predictors.latency.transfer.learn_prior`.

    Raises:
        UserError: as :func:`fit_additive`.
    """
    y = checked(readings, latency_ms)
    if features is None or len(y) < _FEWEST:
        return LatencyModel(fit_additive(readings, y, prior), None)
    x = np.asarray(features, dtype=float)
    if x.ndim != 2 or len(x) != len(y):
        raise UserError(f"expected features (n, d) of the {len(y)} measured networks, got an array of shape {x.shape}")
    plain, corrected = np.empty(len(y)), np.empty(len(y))
    for held in np.array_split(np.random.default_rng(seed).permutation(len(y)), _FOLDS):
        kept = np.setdiff1d(np.arange(len(y)), held)
        model = _corrected(_at(readings, kept), y[kept], x[kept], prior)
        plain[held] = model.costs.predict(_at(readings, held))[0]
        corrected[held] = model.predict(_at(readings, held), x[held])[0]
    errors = [float(np.minimum(np.abs(np.log(guess / y)), _LOST).mean()) for guess in (plain, corrected)]
    if errors[1] > (1 - _GAIN) * errors[0]:
        return LatencyModel(fit_additive(readings, y, prior), None)
    return _corrected(readings, y, x, prior)


def _corrected(readings: Readings, y: Floats, x: Floats, prior: Prior | None) -> LatencyModel:
    costs = fit_additive(readings, y, prior)
    residual = np.log(y / costs.predict(readings)[0])
    return LatencyModel(costs, fit_kernel("gp", x, np.clip(residual, -_OUTLIER * costs.noise, _OUTLIER * costs.noise)))


def _at(readings: Readings, rows: Ints) -> Readings:
    return {name: columns[rows] for name, columns in readings.items()}


def intervals(
    readings: Readings, rows: Ints, latency_ms: Floats, at: Ints, *, prior: Prior | None = None, coverage: float = 0.9, folds: int = 10
) -> Intervals:
    """Conformal prediction intervals in ms (CV+) of the sum of costs.

    Args:
        readings: columns of the whole space.
        rows: measured rows `(n,)`; latency_ms: their latencies `(n,)`.
        at: rows to predict `(m,)`.
    """

    def fit_predict(train: Ints, wanted: Ints) -> tuple[Floats, Floats]:
        model = fit(_at(readings, train), known[train], prior=prior)
        mean, deviation = model.predict(_at(readings, wanted))
        return np.log(mean), deviation

    known = np.full(len(next(iter(readings.values()))), np.nan)
    known[rows] = latency_ms
    return cv_plus(fit_predict, rows, np.log(latency_ms), at, coverage=coverage, folds=folds).exp()


def cross_judge(
    readings: Readings, latency_ms: Floats, *, features: Floats | None = None, prior: Prior | None = None, folds: int = 10, seed: int = 0
) -> Judgement:
    """Judge the model on the measured networks themselves, each predicted by a model that did not learn from it.

    Intervals are the split conformal ones of each fold: the errors of the other folds' held-out networks set their width.
    """
    y = checked(readings, latency_ms)
    guess, scale = np.empty(len(y)), np.empty(len(y))
    parts = np.array_split(np.random.default_rng(seed).permutation(len(y)), min(folds, len(y)))
    for held in parts:
        kept = np.setdiff1d(np.arange(len(y)), held)
        if len(kept) < 3:
            raise UserError(f"expected at least 4 measured networks to judge a latency model, got {len(y)}")
        model = fit(_at(readings, kept), y[kept], features=None if features is None else features[kept], prior=prior, seed=seed)
        guess[held], scale[held] = model.predict(_at(readings, held), None if features is None else features[held])
    scores = np.abs(np.log(y / guess)) / scale
    low, high = np.zeros(len(y)), np.full(len(y), np.inf)
    for held in parts:
        others = np.sort(np.delete(scores, held))
        rank = int(np.ceil(0.9 * (len(others) + 1)))
        if rank <= len(others):
            reach = np.exp(others[rank - 1] * scale[held])
            low[held], high[held] = guess[held] / reach, guess[held] * reach
    return judge(guess, y, low_ms=low, high_ms=high)
