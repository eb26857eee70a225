"""Gaussian-process regression on one-hot architectures with hyperparameters by marginal likelihood.

With the linear kernel this is Bayesian ridge regression on the choices, with the quadratic kernel ridge regression on choices and all their
pairs, without spelling the pairs out (Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, sections 2.2 and 5.4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float64]
Kernel = Callable[[Floats, Floats, float], Floats]


def linear(a: Floats, b: Floats, _: float) -> Floats:
    """Additive effects of the choices."""
    return a @ b.T


def quadratic(a: Floats, b: Floats, pairs: float) -> Floats:
    """Additive effects, and effects of pairs with relative variance `pairs`."""
    inner = a @ b.T
    return inner + pairs * inner**2


def matern(a: Floats, b: Floats, scale: float) -> Floats:
    """Matérn 5/2 in the Euclidean distance, `scale` in units of the features."""
    squared = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    r = np.sqrt(5.0 * squared) / scale
    return (1.0 + r + r**2 / 3.0) * np.exp(-r)


#: kernel and the values of its own hyperparameter that are tried; features are scaled to unit mean square norm
KERNELS: dict[str, tuple[Kernel, tuple[float, ...]]] = {
    "ridge": (linear, (1.0,)),
    "ridge_pairs": (quadratic, (0.1, 0.3, 1.0, 3.0)),
    "gp": (matern, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)),
}
_NOISE = tuple(10.0 ** np.linspace(-4, 2, 25))  # noise variance relative to the kernel's


@dataclass(frozen=True)
class KernelModel:
    """A fitted process; `predict` returns mean and standard deviation (noise left out), each `(n,)`."""

    kernel: Kernel
    parameter: float
    amplitude: float
    x: Floats
    factor: tuple[Floats, bool]
    weights: Floats
    shift: Floats
    scale: float
    mean: float

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        z = (features - self.shift) / self.scale
        cross = self.kernel(z, self.x, self.parameter)
        mean = self.mean + cross @ self.weights
        prior = np.array([self.kernel(row[None], row[None], self.parameter)[0, 0] for row in z])
        reduced = prior - np.einsum("ij,ji->i", cross, cho_solve(self.factor, cross.T))
        return mean, np.sqrt(self.amplitude * np.maximum(reduced, 1e-12))


def fit_kernel(name: str, features: Floats, targets: Floats) -> KernelModel:
    """Fit the process `name` of :data:`KERNELS`: its hyperparameter and the noise by marginal likelihood on a grid, the amplitude in closed
    form.

    One eigendecomposition per kernel parameter serves all noise levels.

    Args:
        features: (n, dims).
        targets: (n,).
    """
    kernel, grid = KERNELS[name]
    shift = features.mean(0)
    centred = features - shift
    scale = float(np.sqrt((centred**2).sum(1).mean())) or 1.0
    x = centred / scale
    mean = float(targets.mean())
    y = targets - mean
    best: tuple[float, float, float, float] | None = None
    for parameter in grid:
        values, vectors = np.linalg.eigh(kernel(x, x, parameter))
        projected = (vectors.T @ y) ** 2
        for noise in _NOISE:
            spectrum = np.maximum(values, 0.0) + noise
            amplitude = max(float((projected / spectrum).mean()), 1e-18)  # maximises the likelihood at this noise
            negative = 0.5 * (len(y) * np.log(amplitude) + np.log(spectrum).sum())
            if best is None or negative < best[0]:
                best = (float(negative), parameter, noise, amplitude)
    assert best is not None
    _, parameter, noise, amplitude = best
    factor = cho_factor(kernel(x, x, parameter) + noise * np.eye(len(y)), lower=True)
    return KernelModel(kernel, parameter, amplitude, x, factor, cho_solve(factor, y), shift, scale, mean)
