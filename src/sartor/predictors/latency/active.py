"""What to measure next: the architectures whose latency says most about that of all the others.

Each choice is the one that lowers the mean relative variance over the space most (Cohn 1996, "Neural Network Exploration Using Optimal
Experiment Design", section 3; for a linear model the I-optimal design) rather than the one of which least is known: extremes tell much
about the costs, but little where most architectures are, and with outliers they mislead. The variance includes how far the readings
disagree, so that what tells apart what a device leaves out is measured early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.predictors.latency.additive import FREEDOM, Additive, Prior, fit_additive
from sartor.predictors.latency.features import Readings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_INFLATION = 4.0  # of the prior's covariance while nothing is measured


def expectation(prior: Prior) -> Additive:
    """The model of a device before any measurement: the prior's mean, at a mean latency of 1."""
    units = 1.0 / prior.column_means
    covariance = _INFLATION * prior.covariance * np.outer(units, units)
    readings = dict(prior.readings)
    weights = dict.fromkeys(readings, prior.mean * units)
    return Additive(readings, weights, dict.fromkeys(readings, covariance), float(np.exp(prior.noise[0])), 0.02)


def choose(model: Additive, readings: Readings, n: int, *, measured: Sequence[int] | Ints = ()) -> Ints:
    """The `n` architectures to measure next, as rows of `readings`, most informative first.

    Args:
        readings: columns of the candidates `(m, k)` for each reading of the model; the candidates also stand for the space.
        measured: rows that are not to be chosen again.

    Raises:
        UserError: for more than there are.
    """
    columns = {name: readings[name] for name in model.readings}
    size = len(next(iter(columns.values())))
    taken = np.zeros(size, dtype=bool)
    taken[np.asarray(measured, dtype=int)] = True
    if not 0 <= n <= size - int(taken.sum()):
        raise UserError(f"expected 0 to {size - int(taken.sum())} architectures to choose among the unmeasured ones, got n = {n}")
    share = np.array(list(model.readings.values()))
    latent = np.array([np.maximum(columns[name] @ model.weights[name], model.floor_ms) for name in model.readings])
    mean = share @ latent
    disagreement = share @ ((latent - mean) / mean) ** 2
    # What rests on the floor is not described by the model: its latency says nothing about the costs.
    relative = [
        np.where((row > model.floor_ms)[:, None], columns[name] / row[:, None], 0.0) for name, row in zip(columns, latent, strict=True)
    ]
    spaces = [rows.T @ rows / size for rows in relative]
    covariances = [model.covariances[name].copy() for name in columns]
    noise = model.noise**2 * FREEDOM / (FREEDOM - 2)  # variance of Student's t
    chosen = []
    for _ in range(n):
        gains = [_gain(rows, c, space, noise) for rows, c, space in zip(relative, covariances, spaces, strict=True)]
        score = share @ np.array(gains) + disagreement.mean() * disagreement / (disagreement + noise)
        best = int(np.argmax(np.where(taken, -1.0, score)))
        chosen.append(best)
        taken[best] = True
        disagreement = disagreement * noise / (noise + disagreement[best])  # what this measurement will tell about the reading
        for rows, covariance in zip(relative, covariances, strict=True):
            reach = covariance @ rows[best]
            covariance -= np.outer(reach, reach) / (float(rows[best] @ reach) + noise)
    return np.array(chosen, dtype=int)


def _gain(rows: Floats, covariance: Floats, space: Floats, noise: float) -> Floats:
    """By how much measuring each row `(m, k)` lowers the mean of `row · covariance · row` over the space, `(m,)`."""
    reach = rows @ covariance
    return np.einsum("ij,jk,ik->i", reach, space, reach) / (np.einsum("ij,ij->i", reach, rows) + noise)


def measure_actively(
    readings: Readings, measure: Callable[[Ints], Floats], n: int, prior: Prior, *, batch: int = 1
) -> tuple[Ints, Floats, Additive]:
    """Choose, measure and fit in turn until `n` latencies are known.

    Args:
        readings: columns of the candidates `(m, k)` for each reading of the prior.
        measure: rows -> latencies in ms of those candidates.
        batch: measurements between two fits.

    Returns:
        measured rows `(n,)`, their latencies `(n,)`, and the fitted model.

    Raises:
        UserError: for fewer than 3 measurements, or more than there are candidates.
    """
    if n < 3:
        raise UserError(f"expected at least 3 measurements to fit a model, got {n}")
    rows, latencies = np.zeros(0, dtype=int), np.zeros(0)
    model = expectation(prior)
    first = max(batch, 3)  # the fewest that can be fitted
    while len(rows) < n:
        step = min(first if not len(rows) else batch, n - len(rows))
        picked = choose(model, readings, step, measured=rows)
        rows, latencies = np.concatenate([rows, picked]), np.concatenate([latencies, measure(picked)])
        model = fit_additive({name: columns[rows] for name, columns in readings.items()}, latencies, prior)
    return rows, latencies, model
