"""How far a supernet's ranking of architectures can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile-bootstrap confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two rankings of the same `n` architectures. `top_k_overlap` is the share of the best `k` that both have in common."""

    kendall_tau: Estimate
    spearman: Estimate
    top_k_overlap: Estimate
    n: int
    k: int
    confidence: float


def rank_correlation(
    shared: ArrayLike, standalone: ArrayLike, *, k: int | None = None, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> RankCorrelation:
    """Rank correlation between accuracies with shared weights and after stand-alone training, both `(n,)`, higher is better.

    Kendall's tau-b and Spearman's rho (both right under ties) and the overlap of the best `k` (default: a quarter of n, at least one), each
    with a bootstrap interval over architectures. Yu et al. 2020, "Evaluating the search phase of neural architecture search", section 4,
    is why this belongs beside every supernet result. A constant side ranks nothing and counts as correlation 0.

    Raises:
        UserError: for fewer than 3 architectures, shapes that do not match, NaN, or k outside 1..n.
    """
    a, b = np.asarray(shared, dtype=np.float64), np.asarray(standalone, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 3:
        raise UserError(f"expected two accuracies for each of at least 3 architectures, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("accuracies hold NaN or infinity; leave failed architectures out")
    n = len(a)
    k = max(1, n // 4) if k is None else k
    if not 1 <= k <= n:
        raise UserError(f"k= must be between 1 and the number of architectures {n}, got {k}")
    if not 0 < confidence < 1:
        raise UserError(f"confidence= must be in (0, 1), got {confidence}")
    index = np.random.default_rng(seed).integers(n, size=(resamples, n))
    signs_a, signs_b = np.sign(a[:, None] - a[None]), np.sign(b[:, None] - b[None])
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]

    def estimate(value: float, draws: Floats) -> Estimate:
        low, high = np.percentile(draws, tails)
        return Estimate(value, float(low), float(high))

    tau = np.array([_tau(signs_a[np.ix_(i, i)], signs_b[np.ix_(i, i)]) for i in index])
    rho = np.array([_pearson(ranks(a[i]), ranks(b[i])) for i in index])
    top = np.array([_overlap(a[i], b[i], k) for i in index])
    return RankCorrelation(
        estimate(_tau(signs_a, signs_b), tau),
        estimate(_pearson(ranks(a), ranks(b)), rho),
        estimate(_overlap(a, b, k), top),
        n,
        k,
        confidence,
    )


def ranks(values: Floats) -> Floats:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    middle: Floats = first + (counts - 1) / 2
    return middle[inverse]


def _tau(signs_a: Floats, signs_b: Floats) -> float:
    """Kendall's tau-b from the signs of all pairwise differences: concordant minus discordant over the untied pairs of each side."""
    untied = float(np.abs(signs_a).sum()) * float(np.abs(signs_b).sum())
    return float((signs_a * signs_b).sum() / np.sqrt(untied)) if untied else 0.0


def _pearson(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _overlap(a: Floats, b: Floats, k: int) -> float:
    """Ties at the edge are broken by position, the same way for both sides."""
    best_a, best_b = np.argsort(-a, kind="stable")[:k], np.argsort(-b, kind="stable")[:k]
    return len(np.intersect1d(best_a, best_b)) / k
