"""Few-shot transfer: what other devices' tables say about a device of which only a few latencies are known.

`learn_prior` reduces each source device to its costs (ms for each operation, as shares of its mean latency) and to what it leaves out;
their spread is the prior of a new device, and :func:`sartor.predictors.latency.additive.fit_additive` does the rest. `pca_ridge` is the
baseline: principal components of the other devices' latencies as features of a ridge regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.predictors.latency.additive import Additive, Prior, fit_additive, vague_prior
from sartor.predictors.latency.features import Readings

Floats = NDArray[np.float64]
_DOUBT = 0.5  # pseudo-count of every reading
_SHRINKAGE = 0.3  # of the devices' covariance towards its diagonal
_LEAST_SPREAD = 0.05  # deviation of a share that is never undercut: a new device may differ where the sources agree
_NOISE_DEVIATION = 1.0  # of log σ, at least


def learn_prior(readings: Readings, tables: Mapping[str, Floats], *, sample: int | None = 900, seed: int = 0) -> Prior:
    """What the source devices have in common.

    Args:
        readings: columns `(cells, k)` of the whole space.
        tables: source device -> latency in ms `(cells,)`, NaN where it was not measured.
        sample: cells of each device that are looked at (HELP's meta-training has 900); None for all.

    Raises:
        UserError: for fewer than two devices, and tables that do not match the columns.
    """
    cells = len(next(iter(readings.values())))
    if len(tables) < 2:
        raise UserError(f"expected the tables of at least 2 source devices, got {len(tables)}")
    wrong = next((name for name, table in tables.items() if np.shape(table) != (cells,)), None)
    if wrong is not None:
        raise UserError(f"expected {cells} latencies of device '{wrong}', one for each cell, got shape {np.shape(tables[wrong])}")
    vague = vague_prior(readings)
    found, shares = dict.fromkeys(readings, _DOUBT), []
    noises: list[float] = []
    for name, table in tables.items():
        model = _costs(readings, np.asarray(table, dtype=float), vague, sample, np.random.default_rng((seed, len(noises))))
        reading = max(model.readings, key=lambda r: model.readings[r])
        cost = model.weights[reading] * vague.column_means
        if not cost.sum() > 0:
            raise UserError(f"expected latencies of device '{name}' that grow with the operations executed, got none that do")
        shares.append(cost / cost.sum())
        noises.append(float(np.log(model.noise)))
        found[reading] += 1.0
    known = np.array(shares)
    spread = np.cov(known.T)
    covariance = (1 - _SHRINKAGE) * spread + _SHRINKAGE * np.diag(np.diag(spread)) + _LEAST_SPREAD**2 * np.eye(len(spread))
    total = sum(found.values())
    noise = (float(np.mean(noises)), max(float(np.std(noises)), _NOISE_DEVIATION))
    return Prior(vague.column_means, known.mean(0), covariance, {r: c / total for r, c in found.items()}, noise, tuple(tables))


def _costs(readings: Readings, table: Floats, vague: Prior, sample: int | None, rng: np.random.Generator) -> Additive:
    rows = np.flatnonzero(np.isfinite(table) & (table > 0))
    if sample is not None and len(rows) > sample:
        rows = rng.choice(rows, sample, replace=False)
    return fit_additive({name: columns[rows] for name, columns in readings.items()}, table[rows], vague)


def without_sources(prior: Prior, readings: Readings) -> Prior:
    """The vague prior in the same units: what is left when nothing is taken from other devices."""
    return replace(vague_prior(readings), column_means=prior.column_means)


def pca_ridge(
    tables: Mapping[str, Floats], rows: NDArray[np.int64], latency_ms: Floats, *, components: int = 3, ridge: float = 0.1
) -> Floats:
    """Baseline: ridge regression of latency on the principal components of the source devices' standardised latencies.

    Args:
        tables: source device -> latency in ms `(cells,)`, complete.
        rows: measured cells `(n,)`.
        latency_ms: their latencies on the new device `(n,)`.
        components: principal components used, at most; ridge: penalty, in units of the first component's deviation. The defaults were the
            best of 96 settings (logarithms and ranks among them) on the devices that HELP's protocol sets aside for choosing.

    Returns:
        Predicted latency of every cell in ms `(cells,)`.

    Raises:
        UserError: for tables with gaps, and latencies that are not positive.
    """
    known = np.array(list(tables.values()), dtype=float).T
    y = np.asarray(latency_ms, dtype=float)
    if not np.isfinite(known).all() or len(y) != len(rows) or not (np.isfinite(y).all() and (y > 0).all()):
        raise UserError("expected complete source tables and one positive latency for each measured cell, got gaps or other numbers")
    standard = (known - known.mean(0)) / known.std(0)
    _, vectors = np.linalg.eigh(standard.T @ standard)
    scores = standard @ vectors[:, ::-1][:, : min(components, standard.shape[1])]
    scores /= scores[:, 0].std()
    x, mean = scores[rows], float(y.mean())
    shift = x.mean(0)
    weights = np.linalg.solve((x - shift).T @ (x - shift) + ridge * np.eye(x.shape[1]), (x - shift).T @ (y - mean))
    return np.maximum(mean + (scores - shift) @ weights, 0.02 * mean)
