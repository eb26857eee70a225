"""Ensembles whose spread is the uncertainty: small neural networks and boosted trees."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MLPEnsemble:
    """`members` two-layer networks, trained side by side as one batch of matrices."""

    weights: tuple[NDArray[np.float32], ...]
    shift: Floats
    scale: Floats
    mean: float
    spread: float

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        x = ((features - self.shift) / self.scale).astype(np.float32)
        outputs = self.mean + self.spread * _forward(x[None], self.weights)[-1].astype(np.float64)[:, :, 0]
        return outputs.mean(0), outputs.std(0, ddof=1)


def _forward(x: NDArray[np.float32], weights: tuple[NDArray[np.float32], ...]) -> tuple[NDArray[np.float32], ...]:
    """Activations of every layer; shapes (members or 1, n, width)."""
    w1, b1, w2, b2, w3, b3 = weights
    first = np.maximum(x @ w1 + b1, 0.0)
    second = np.maximum(first @ w2 + b2, 0.0)
    return x, first, second, second @ w3 + b3


def fit_mlp(
    features: Floats, targets: Floats, *, seed: int, members: int = 5, hidden: int = 32, steps: int = 250, decay: float = 1e-2
) -> MLPEnsemble:
    """Full-batch AdamW (Loshchilov & Hutter 2019) under a cosine; each member sees its own bootstrap weights of the samples.

    Args:
        features: (n, dims).
        targets: (n,).
    """
    rng = np.random.default_rng(seed)
    shift, mean, spread = features.mean(0), float(targets.mean()), float(targets.std()) or 1.0
    scale = np.full(features.shape[1], float(np.sqrt(((features - shift) ** 2).mean())) or 1.0)
    x = ((features - shift) / scale).astype(np.float32)[None]
    y = ((targets - mean) / spread).astype(np.float32)[None, :, None]
    counts = rng.multinomial(len(targets), np.full(len(targets), 1.0 / len(targets)), size=members).astype(np.float32)[:, :, None]
    sizes = [features.shape[1], hidden, hidden, 1]
    weights: list[NDArray[np.float32]] = []
    for rows, columns in itertools.pairwise(sizes):
        weights.append((rng.normal(size=(members, rows, columns)) * np.sqrt(2.0 / rows)).astype(np.float32))
        weights.append(np.zeros((members, 1, columns), np.float32))
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, steps + 1):
        rate = 0.02 * 0.5 * (1.0 + np.cos(np.pi * (step - 0.5) / steps))
        for i, gradient in enumerate(_gradients(x, y, counts, tuple(weights))):
            first[i] += 0.1 * (gradient - first[i])
            second[i] += 0.01 * (gradient**2 - second[i])
            update = first[i] / (1 - 0.9**step) / (np.sqrt(second[i] / (1 - 0.99**step)) + 1e-8)
            shrink = decay if i % 2 == 0 else 0.0
            weights[i] = (weights[i] - rate * (update + shrink * weights[i])).astype(np.float32)
    return MLPEnsemble(tuple(weights), shift, scale, mean, spread)


def _gradients(
    x: NDArray[np.float32], y: NDArray[np.float32], counts: NDArray[np.float32], weights: tuple[NDArray[np.float32], ...]
) -> list[NDArray[np.float32]]:
    """Gradients of the weighted mean squared error of each member with respect to its weights."""
    _, w2, w3 = weights[0], weights[2], weights[4]
    _, first, second, output = _forward(x, weights)
    delta3 = 2.0 * counts * (output - y) / y.shape[1]
    delta2 = (delta3 @ w3.transpose(0, 2, 1)) * (second > 0)
    delta1 = (delta2 @ w2.transpose(0, 2, 1)) * (first > 0)
    pairs = ((x, delta1), (first, delta2), (second, delta3))
    return [g for below, delta in pairs for g in (below.transpose(0, 2, 1) @ delta, delta.sum(1, keepdims=True))]


@dataclass(frozen=True)
class BoostedTrees:
    """Gradient boosting, several times on random halves of the samples and features."""

    members: tuple[Any, ...]

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        outputs = np.stack([member.predict(features) for member in self.members])
        return outputs.mean(0), outputs.std(0, ddof=1)


def fit_boosting(features: Floats, targets: Floats, *, seed: int, members: int = 3) -> BoostedTrees:
    """Stochastic gradient boosting (Friedman 2002): shallow trees, subsampled rows and columns.

    Args:
        features: (n, dims).
        targets: (n,).
    """
    from sklearn.ensemble import GradientBoostingRegressor

    settings = {"n_estimators": 150, "learning_rate": 0.08, "max_depth": 3, "subsample": 0.5, "max_features": 0.3}
    models = [GradientBoostingRegressor(random_state=seed + i, **settings) for i in range(members)]
    return BoostedTrees(tuple(model.fit(features, targets) for model in models))
