"""Candidates for an acquisition function: the whole space where it is small, mutants of the best and uniform draws where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Arch, Space
from sartor.searchers.base import Visited
from sartor.searchers.embedding import Embedding
from sartor.searchers.gp import Floats

_RANDOM = 0.3  # share of uniform draws in a pool
_REFINED = 0.3  # share of mutants of the pool's own best


@dataclass(frozen=True)
class Candidates:
    """Architectures, their embedded rows `(n, columns)`, and which of them are not visited `(n,)`."""

    archs: Sequence[Arch]
    rows: Floats
    free: NDArray[np.bool_]


class Pool:
    """Args:
    whole: spaces of at most so many architectures are candidates as a whole.
    size: number of candidates in larger spaces.
    """

    def __init__(self, space: Space, embedding: Embedding, whole: int, size: int) -> None:
        self._space, self._embedding, self._size = space, embedding, size
        self.is_whole = space.size <= whole

    @cached_property
    def everything(self) -> Candidates:
        """Every architecture of the space."""
        archs = list(self._space)
        return Candidates(archs, self._embedding.rows(archs), np.ones(len(archs), dtype=bool))

    @cached_property
    def position(self) -> dict[Arch, int]:
        """Where an architecture stands in `everything`."""
        return {arch: i for i, arch in enumerate(self.everything.archs)}

    def unvisited(self, visited: Visited) -> Candidates:
        """`everything`, with what is not visited free."""
        free = self.everything.free.copy()
        free[[self.position[arch] for arch in visited if arch in self.position]] = False
        return replace(self.everything, free=free)

    def candidates(
        self, visited: Visited, parents: Sequence[Arch], promise: Callable[[Floats], Floats], rng: np.random.Generator
    ) -> Candidates:
        """Drawn for one proposal or batch, all of them free.

        Args:
            parents: the best architectures so far, best first.
            promise: scores rows (n, columns) -> (n,), higher is better; asked once.
        """
        refined = int(_REFINED * self._size)
        drawn = int(_RANDOM * self._size) if parents else self._size - refined
        found: dict[Arch, None] = {}
        for _ in range(drawn):
            if (arch := visited.draw(rng)) is not None:
                found[arch] = None
        self._mutants(parents, self._size - refined - drawn, found, visited, rng)
        archs = list(found)
        rows = self._embedding.rows(archs)
        best = [archs[i] for i in np.argsort(-promise(rows), kind="stable")[:20]] if archs else []
        self._mutants(best, refined, found, visited, rng)
        new = list(found)[len(archs) :]
        both = [*archs, *new]
        return Candidates(both, np.vstack([rows, self._embedding.rows(new)]), np.ones(len(both), dtype=bool))

    def _mutants(self, parents: Sequence[Arch], count: int, found: dict[Arch, None], visited: Visited, rng: np.random.Generator) -> None:
        """Of each parent in turn; one to three mutations, so that a neighbourhood that is visited is left."""
        for i in range(count if parents else 0):
            arch = self._space.mutate(parents[i % len(parents)], rng, n=int(rng.choice(3, p=[0.6, 0.3, 0.1])) + 1)
            if arch not in visited:
                found[arch] = None
