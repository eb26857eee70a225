"""Latency as a sum of what operations cost, learned from as few as ten measurements: Bayesian regression that expects outliers.

    latency = f(x) · exp(ε),  f(x) = Σ_j φ_j(x) w_j  in ms,  ε ~ Student-t(ν) with scale σ

Costs add in milliseconds while measurements err in per cent, so the sum is fitted to the logarithm. Measurements on phones and boards have
heavy tails (a tenth to a quarter of the published ones are off by more than 10 %), hence Student's t (Lange, Little & Taylor 1989, "Robust
Statistical Modeling Using the t Distribution", section 2). What the device leaves out (see `features`), how far to trust the prior and how
noisy the device is are not chosen but averaged over, each weighted by its evidence in Laplace's approximation (MacKay 1992, "Bayesian
Interpolation", section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.predictors.latency.features import Readings

Floats = NDArray[np.float64]

FREEDOM = 3.0  # ν of the noise
_INFLATIONS = np.array([0.25, 1.0, 4.0, 16.0, 64.0])  # factors on the prior's covariance that are averaged over
_INFLATION_PRIOR = (np.log(2.0), 1.5)  # mean and deviation of the factor's logarithm
_NOISES = np.geomspace(0.003, 0.3, 10)
_SCALE_DEVIATION = 0.5  # relative: how well the median of the measurements tells the scale of the prior's mean
_FLOOR = 0.02  # of the median latency: no prediction is below
_SCREENING, _STEPS = 6, 30  # Gauss-Newton steps for every combination, and more for those that
_HOPELESS = 30.0  # are within this many nats of the best
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Prior:
    """What is believed about a device before it is measured.

    Attributes:
        column_means: mean of each column over the space `(k,)`; the weights below are shares of the mean latency in these units.
        mean, covariance: of the shares `(k,)`, `(k, k)`.
        readings: probability of each reading.
        noise: mean and deviation of the logarithm of σ.
        devices: where it was learned; empty for the vague prior.
    """

    column_means: Floats
    mean: Floats
    covariance: Floats
    readings: Mapping[str, float]
    noise: tuple[float, float]
    devices: tuple[str, ...] = ()


def vague_prior(readings: Readings) -> Prior:
    """Every column costs the same share of the mean latency, give or take as much as all of it; every reading is as likely."""
    columns = next(iter(readings.values()))
    means = np.abs(columns).mean(0)
    k = len(means)
    means = np.where(means > 0, means, 1.0)
    equal = {name: 1.0 / len(readings) for name in readings}
    return Prior(means, np.full(k, 1.0 / k), np.eye(k) / max(k, 4), equal, (float(np.log(0.05)), 1.0))


@dataclass(frozen=True)
class Additive:
    """A fitted sum of costs.

    Attributes:
        readings: posterior probability of each reading.
        weights: by reading, ms for each unit of a column `(k,)`.
        covariances: of the weights `(k, k)`.
        noise: σ, the relative scale of what repeats no better.
        floor_ms: no prediction is below.
    """

    readings: Mapping[str, float]
    weights: Mapping[str, Floats]
    covariances: Mapping[str, Floats]
    noise: float
    floor_ms: float

    def predict(self, readings: Readings) -> tuple[Floats, Floats]:
        """Latency in ms `(n,)` and its relative deviation `(n,)`, noise left out.

        Args:
            readings: columns `(n, k)` for each reading that the model was fitted with.
        """
        means, variances = [], []
        for name in self.readings:
            columns = _columns(readings, name, len(self.weights[name]))
            means.append(np.maximum(columns @ self.weights[name], self.floor_ms))
            variances.append(np.einsum("ij,jk,ik->i", columns, self.covariances[name], columns))
        share = np.array(list(self.readings.values()))
        stacked = np.array(means)
        mean = share @ stacked
        variance = share @ (np.array(variances) + (stacked - mean) ** 2)
        return mean, np.sqrt(np.maximum(variance, 0.0)) / mean

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; :meth:`from_json` is the inverse."""
        return {
            "readings": dict(self.readings),
            "weights_ms": {name: w.tolist() for name, w in self.weights.items()},
            "covariances": {name: c.tolist() for name, c in self.covariances.items()},
            "noise": self.noise,
            "floor_ms": self.floor_ms,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Additive:
        arrays = [{name: np.array(v, dtype=float) for name, v in record[key].items()} for key in ("weights_ms", "covariances")]
        return Additive(dict(record["readings"]), arrays[0], arrays[1], float(record["noise"]), float(record["floor_ms"]))


def fit_additive(readings: Readings, latency_ms: Floats, prior: Prior | None = None) -> Additive:
    """Fit the sum of costs to measured latencies.

    Args:
        readings: columns `(n, k)` of the measured architectures, for each reading.
        latency_ms: measured latencies `(n,)`.
        prior: from :func:`learn_prior`; vague by default.

    Raises:
        UserError: for latencies that are not positive, too few measurements, or columns that do not match.
    """
    y = checked(readings, latency_ms)
    prior = prior or vague_prior(readings)
    if set(prior.readings) != set(readings):
        raise UserError(f"expected columns for the prior's readings {', '.join(prior.readings)}, got {', '.join(readings)}")
    stacked = np.stack([_columns(readings, name, len(prior.mean)) for name in prior.readings]) / prior.column_means
    scale = float(np.median(y))
    expected = np.median(np.maximum(stacked @ prior.mean, 1e-3), axis=1) @ np.array(list(prior.readings.values()))
    grid = _Grid.build(prior, float(1.0 / expected))
    modes, log_evidence, curvature = _solve(stacked[grid.reading], y / scale, grid)
    return _average(prior, grid, modes, log_evidence, curvature, scale)


def checked(readings: Readings, latency_ms: Floats) -> Floats:
    """Latencies as `(n,)` floats, if they are usable with these columns.

    Raises:
        UserError: where they are not.
    """
    y = np.asarray(latency_ms, dtype=float)
    if not readings:
        raise UserError("expected columns under at least one reading, got none")
    n = len(next(iter(readings.values())))
    if y.shape != (n,):
        raise UserError(f"expected one latency for each of the {n} architectures, got an array of shape {y.shape}")
    if n < 3:
        raise UserError(f"expected at least 3 measured latencies, got {n}: measure more architectures")
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise UserError("expected positive latencies in ms, got some that are zero, negative or missing: leave failed measurements out")
    return y


def _columns(readings: Readings, name: str, width: int) -> Floats:
    columns = readings.get(name)
    if columns is None or columns.ndim != 2 or columns.shape[1] != width:
        got = "none" if columns is None else f"an array of shape {columns.shape}"
        raise UserError(f"expected columns (n, {width}) for the reading '{name}', got {got}")
    return columns


@dataclass(frozen=True)
class _Grid:
    """Combinations that are averaged over, each with its prior: reading `(g,)`, noise `(g,)`, precision of the shares `(g, k, k)`."""

    reading: NDArray[np.int64]
    noise: Floats
    precision: Floats
    mean: Floats
    log_prior: Floats

    def at(self, kept: NDArray[np.bool_]) -> _Grid:
        return _Grid(self.reading[kept], self.noise[kept], self.precision[kept], self.mean, self.log_prior[kept])

    @staticmethod
    def build(prior: Prior, scale: float) -> _Grid:
        mean = prior.mean * scale
        covariance = prior.covariance * scale**2 + 1e-8 * np.eye(len(mean))
        inflated = _INFLATIONS[:, None, None] * covariance + _SCALE_DEVIATION**2 * np.outer(mean, mean)
        precisions = np.linalg.inv(inflated)
        cells = np.indices((len(prior.readings), len(_INFLATIONS), len(_NOISES))).reshape(3, -1)
        reading, inflation, noise = cells[0], cells[1], _NOISES[cells[2]]
        log_prior = (
            np.log(np.array(list(prior.readings.values())))[reading]
            - 0.5 * ((np.log(_INFLATIONS[inflation]) - _INFLATION_PRIOR[0]) / _INFLATION_PRIOR[1]) ** 2
            - 0.5 * ((np.log(noise) - prior.noise[0]) / prior.noise[1]) ** 2
        )
        return _Grid(reading, noise, precisions[inflation], mean, log_prior)


def _solve(columns: Floats, y: Floats, grid: _Grid) -> tuple[Floats, Floats, Floats]:
    """Posterior modes `(g, k)`, log evidences `(g,)` and curvatures `(g, k, k)` of all combinations at once.

    Gauss-Newton on the logarithm, each measurement weighted by what Student's t gives its present residual.

    Args:
        columns: `(g, n, k)`.
        y: latencies `(n,)` over their median.
    """
    g, _, k = columns.shape
    log_y = np.log(np.maximum(y, _FLOOR))  # below the floor is below the floor: how far says nothing
    weights = _steps(columns, np.broadcast_to(grid.mean, (g, k)).copy(), log_y, grid, _SCREENING)
    evidence, curvature = _evidence(columns, weights, log_y, grid)
    kept = evidence > evidence.max() - _HOPELESS
    few = grid.at(kept)
    weights[kept] = _steps(columns[kept], weights[kept], log_y, few, _STEPS)
    evidence[~kept] = -np.inf
    evidence[kept], curvature[kept] = _evidence(columns[kept], weights[kept], log_y, few)
    return weights, evidence, curvature


def _steps(columns: Floats, weights: Floats, log_y: Floats, grid: _Grid, steps: int) -> Floats:
    for step in range(steps):
        slopes, residual, influence = _linearised(columns, weights, log_y, grid.noise)
        weighted = slopes * influence[:, :, None]
        curvature = np.swapaxes(weighted, 1, 2) @ slopes + grid.precision
        pull = (weighted * np.clip(residual, -1.0, 1.0)[:, :, None]).sum(1) - np.einsum("gij,gj->gi", grid.precision, weights - grid.mean)
        change = np.linalg.solve(curvature, pull[:, :, None])[:, :, 0]
        weights = weights + change * (1.0 if step < 4 else 0.7)  # damped, so that influence and weights do not chase each other
        if np.abs(change).max() < _TOLERANCE:
            break
    return weights


def _evidence(columns: Floats, weights: Floats, log_y: Floats, grid: _Grid) -> tuple[Floats, Floats]:
    """Log evidences `(g,)` in Laplace's approximation at these modes, and the curvatures there `(g, k, k)`."""
    slopes, residual, influence = _linearised(columns, weights, log_y, grid.noise)
    curvature = np.swapaxes(slopes * influence[:, :, None], 1, 2) @ slopes + grid.precision
    likelihood = (-np.log(grid.noise)[:, None] - 0.5 * (FREEDOM + 1) * np.log1p((residual / grid.noise[:, None]) ** 2 / FREEDOM)).sum(1)
    away = weights - grid.mean
    believed = -0.5 * np.einsum("gi,gij,gj->g", away, grid.precision, away)
    occam = 0.5 * (np.linalg.slogdet(grid.precision)[1] - np.linalg.slogdet(curvature)[1])
    return likelihood + believed + occam + grid.log_prior, curvature


def _linearised(columns: Floats, weights: Floats, log_y: Floats, noise: Floats) -> tuple[Floats, Floats, Floats]:
    """Slopes of the logarithm `(g, n, k)`, residuals `(g, n)` and influence `(g, n)` at these weights."""
    sums = np.einsum("gnk,gk->gn", columns, weights)
    latent = np.maximum(sums, _FLOOR)
    residual = log_y - np.log(latent)
    influence = (FREEDOM + 1) / (FREEDOM * noise[:, None] ** 2 + residual**2)
    return columns / latent[:, :, None], residual, influence


def _average(prior: Prior, grid: _Grid, modes: Floats, log_evidence: Floats, curvature: Floats, scale: float) -> Additive:
    """The mixture over the grid, one Gaussian for each reading."""
    probability = np.exp(log_evidence - log_evidence.max())
    probability /= probability.sum()
    kept = probability > 1e-6
    inverse = np.zeros_like(curvature)
    inverse[kept] = np.linalg.inv(curvature[kept])
    units = scale / prior.column_means
    readings, weights, covariances = {}, {}, {}
    for number, name in enumerate(prior.readings):
        mine = grid.reading == number
        total = float(probability[mine].sum())
        if total < 1e-6:
            continue
        p = probability[mine] / total
        mean = p @ modes[mine]
        away = modes[mine] - mean
        covariance = np.einsum("g,gij->ij", p, inverse[mine]) + np.einsum("g,gi,gj->ij", p, away, away)
        readings[name], weights[name] = total, mean * units
        covariances[name] = covariance * np.outer(units, units)
    normaliser = sum(readings.values())
    noise = float(np.sqrt(probability @ grid.noise**2))
    return Additive({n: p / normaliser for n, p in readings.items()}, weights, covariances, noise, _FLOOR * scale)
