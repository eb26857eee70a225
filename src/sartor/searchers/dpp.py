"""Determinantal point processes: a set of architectures that are good, and different from each other.

Kulesza & Taskar 2012, "Determinantal Point Processes for Machine Learning", https://arxiv.org/abs/1207.6083 (section 3.1: quality and
diversity); greedy MAP inference: Chen, Zhang & Zhou 2018, NeurIPS, https://arxiv.org/abs/1709.05135 (algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.memory import Memory, fitted
from sartor.searchers.variation import ordered, whole
from sartor.trial import Proposal, Trial

Floats = NDArray[np.float64]


def similarity(encodings: ArrayLike, length: float | None = None) -> Floats:
    """`exp(-d / length)` for the squared distance d of encodings `(n, dims)`: twice the Hamming distance of one-hot rows. `(n, n)`.

    Args:
        length: in units of d; None for the mean of d over all pairs.
    """
    x = np.asarray(encodings, dtype=float)
    squares = (x**2).sum(axis=1)
    d = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0.0)
    np.fill_diagonal(d, 0.0)
    scale = length if length is not None else float(d.sum()) / max(1, len(x) * (len(x) - 1))
    return np.exp(-d / (scale or 1.0))


def kernel(quality: ArrayLike, alike: ArrayLike) -> Floats:
    """`L = diag(q) · S · diag(q)` `(n, n)`: Kulesza & Taskar 2012, equation 25.

    Raises:
        UserError: for a quality that is not above zero and finite.
    """
    q = np.asarray(quality, dtype=float)
    if not (np.isfinite(q).all() and (q > 0).all()):
        raise UserError("DPP: every quality must be a finite number above zero")
    return q[:, None] * np.asarray(alike, dtype=float) * q[None]


def greedy_map(L: ArrayLike, k: int, chosen: Sequence[int] = ()) -> list[int]:
    """Up to `k` further items, each the one that raises `det L_Y` the most, given that `chosen` are in Y.

    A Cholesky factor grows by a column an item: O(n k^2) (Chen et al. 2018, algorithm 1). It ends early where no item is linearly
    independent of those taken. Of equals the first.

    Args:
        L: positive semidefinite `(n, n)`.
    """
    matrix = np.asarray(L, dtype=float)
    residual = np.diagonal(matrix).copy()  # squared volume that each item would add
    floor = 1e-10 * residual  # beyond that it is rounding
    free = np.ones(len(matrix), dtype=bool)
    columns = np.zeros((0, len(matrix)))
    taken: list[int] = []
    given = list(dict.fromkeys(chosen))
    for step in range(len(given) + k):
        if step < len(given):
            j = given[step]
        else:
            open_ = np.flatnonzero(free & (residual > floor))
            if len(open_) == 0:
                break
            j = int(open_[np.argmax(residual[open_])])
            taken.append(j)
        free[j] = False
        if residual[j] > floor[j]:  # else it is a combination of the others, and takes nothing more away
            row = (matrix[j] - columns[:, j] @ columns) / math.sqrt(residual[j])
            columns = np.vstack([columns, row])
            residual = residual - row**2
    return taken


def select_diverse(space: Space, archs: Sequence[Arch], quality: ArrayLike, k: int, chosen: Sequence[Arch] = ()) -> list[int]:
    """Positions of `k` good and different architectures by greedy MAP, most wanted first.

    Args:
        quality: of `archs` `(n,)`, above zero; the ratio of two qualities is what they trade against likeness.
        chosen: architectures that are in the set already.

    Raises:
        UserError: for a quality that is not above zero.
    """
    q = np.concatenate([np.asarray(quality, dtype=float), np.ones(len(chosen))])
    L = kernel(q, similarity(space.encode([*archs, *chosen])))
    return greedy_map(L, k, range(len(archs), len(q)))


@dataclass
class _State:
    visited: Visited
    memory: Memory


class DPPSearch:
    """Batches by greedy MAP of a DPP over a pool of candidates: quality from what the history predicts, diversity from the choices.

    The pool holds mutants of the best trials and uniform draws. A kernel regression on the trials' order (constrained rank, then crowding
    distance: any number of objectives, failures last) ranks it, and `q = exp(-sharpness · rank)`, ranks in 0..1, weighs quality against
    likeness. Pending proposals and the last `batch` trials count as members of the set.

    Args:
        pool: candidates an ask; at least 2.
        batch: uniform draws before the first prediction, and finished trials that a new one should differ from.
        sharpness: weight of quality; 0 for diversity alone.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(self, space: Space, goals: Goals, *, pool: int = 200, batch: int = 10, sharpness: float = 3.0) -> None:
        whole("dpp", "pool", pool, 2)
        whole("dpp", "batch", batch, 1)
        if not (math.isfinite(sharpness) and sharpness >= 0):
            raise UserError(f"dpp: sharpness must be a finite number of at least 0, got {sharpness}")
        self._space, self._goals = space, goals
        self._pool, self._batch, self._sharpness = pool, batch, sharpness
        self._fold = Fold(lambda: _State(Visited(space), Memory(goals)), _finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        with state.visited.holding(pending):
            pool = self._candidates(state, rng, n)
            if not pool:
                return []
            near = [p.arch for p in pending] + [trial.arch for trial in history[-self._batch :]]
            near = [arch for arch in dict.fromkeys(near) if arch in self._space]
            quality = np.exp(-self._sharpness * self._ranks(state, pool))
            picked = select_diverse(self._space, pool, quality, n, near)
            rest = sorted(set(range(len(pool))) - set(picked), key=lambda i: -quality[i])  # where likeness leaves fewer than n
        return [Proposal(pool[i]) for i in [*picked, *rest][:n]]

    def _candidates(self, state: _State, rng: np.random.Generator, n: int) -> list[Arch]:
        best = [trial.arch for trial in state.memory.best(self._batch) if trial.arch in self._space]
        pool: list[Arch] = []
        for i in range(max(self._pool, n) // 2 if len(state.memory) >= self._batch else 0):
            if best and state.visited.add(child := self._space.mutate(best[i % len(best)], rng, n=1 + i % 2)):
                pool.append(child)
        while len(pool) < max(self._pool, n) and (arch := state.visited.draw(rng)) is not None:
            state.visited.add(arch)
            pool.append(arch)
        return pool

    def _ranks(self, state: _State, pool: list[Arch]) -> Floats:
        """Predicted place of every candidate, 0 = first, 1 = last `(n,)`; all alike before there is anything to learn from."""
        trials = ordered(self._goals, [trial for trial in state.memory.trials() if trial.arch in self._space])
        if len(trials) < self._batch or len(trials) < 2:
            return np.zeros(len(pool))
        places = fitted(self._space, [trial.arch for trial in trials], np.arange(len(trials), dtype=float))(pool)
        return np.argsort(np.argsort(places, kind="stable"), kind="stable") / max(1, len(pool) - 1)


def _finish(state: _State, trial: Trial) -> None:
    state.visited.add(trial.arch)
    state.memory.add(trial)
