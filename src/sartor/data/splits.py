"""Stratified, seeded choice of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def stratified(labels: NDArray[Any], count: int, rng: np.random.Generator, *, least: int = 1, leave: int = 1) -> tuple[Index, Index]:
    """Positions (picked, rest): about `count` of `labels`, every class in proportion; both come in random order.

    Each class gives at least `least` and keeps at least `leave`, even where that means picking more or fewer than `count`; otherwise
    exactly `count` are picked and no class is a whole image off its share.

    Args:
        labels: (n,) integers from 0; every class that occurs has at least ``least + leave`` members.
    """
    sizes = np.bincount(labels)
    take = _shares(sizes, count, least, leave)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = rank < np.repeat(take, sizes)
    return rng.permutation(order[chosen]), rng.permutation(order[~chosen])


def _shares(sizes: NDArray[Any], count: int, least: int, leave: int) -> NDArray[np.int64]:
    """How many of each class to take: largest remainders within the bounds."""
    low = np.minimum(least, sizes)
    high = np.maximum(sizes - leave, low)
    ideal = sizes * (count / sizes.sum())
    take = np.clip(np.floor(ideal + 1e-9).astype(np.int64), low, high)
    while take.sum() < count and (take < high).any():
        take[np.argmax(np.where(take < high, ideal - take, -np.inf))] += 1
    while take.sum() > count and (take > low).any():
        take[np.argmin(np.where(take > low, ideal - take, np.inf))] -= 1
    return np.asarray(take, np.int64)
