"""What to measure next: the architectures of whose latency the model knows least.

Taking the largest relative variance, conditioning on it and repeating is the greedy D-optimal design for a linear model (Fedorov 1972,
"Theory of Optimal Experiments", chapter 3). The variance includes how far the readings disagree, so that measurements which tell apart
what a device leaves out come early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.predictors.latency.additive import Additive, Prior, fit_additive
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
        readings: columns of the candidates `(m, k)` for each reading of the model.
        measured: rows that are not to be chosen again.

    Raises:
        UserError: for more than there are.
    """
    columns = {name: readings[name] for name in model.readings}
    size = len(next(iter(columns.values())))
    taken = np.zeros(size, dtype=bool)
    taken[np.asarray(measured, dtype=int)] = True
    if n > size - int(taken.sum()):
        raise UserError(f"expected at most {size - int(taken.sum())} architectures to choose among the unmeasured ones, got n = {n}")
    share = np.array(list(model.readings.values()))
    latent = np.array([np.maximum(columns[name] @ model.weights[name], model.floor_ms) for name in model.readings])
    mean = share @ latent
    # An architecture whose latency rests on the floor is one that the model does not describe: nothing linear is learned from it.
    described = share @ (latent > model.floor_ms) > 0.5
    apart = (latent - mean) / mean
    covariances = {name: c.copy() for name, c in model.covariances.items()}
    chosen = []
    for _ in range(n):
        within = np.array([np.einsum("ij,jk,ik->i", columns[r], c, columns[r]) for r, c in covariances.items()]) / latent**2
        score = share @ (within + apart**2)
        best = int(np.argmax(np.where(taken, -1.0, np.where(described, score, 0.0))))
        chosen.append(best)
        taken[best] = True
        noise = model.noise**2
        apart *= np.sqrt(noise / (noise + float(share @ apart[:, best] ** 2)))  # what this measurement will tell about the reading
        for position, (name, covariance) in enumerate(covariances.items()):
            row = columns[name][best]
            reach = covariance @ row
            covariance -= np.outer(reach, reach) / (float(row @ reach) + noise * latent[position, best] ** 2)
    return np.array(chosen, dtype=int)


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
    """
    rows, latencies = np.zeros(0, dtype=int), np.zeros(0)
    model = expectation(prior)
    first = max(batch, min(n, 1 + len(prior.mean) // 2, n))  # fewer say nothing yet about the device
    while len(rows) < n:
        step = min(first if not len(rows) else batch, n - len(rows))
        picked = choose(model, readings, step, measured=rows)
        rows, latencies = np.concatenate([rows, picked]), np.concatenate([latencies, measure(picked)])
        if len(rows) >= 3:
            model = fit_additive({name: columns[rows] for name, columns in readings.items()}, latencies, prior)
    return rows, latencies, model
