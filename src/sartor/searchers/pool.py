"""Candidates for an acquisition function: the whole space where it is small, mutants of the best and uniform draws where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sartor.arch import Arch, Space
from sartor.searchers.base import Visited
from sartor.searchers.embedding import Embedding
from sartor.searchers.gp import Floats

_RANDOM = 0.3  # share of uniform draws in a pool
_REFINED = 0.3  # share of mutants of the pool's own best


@dataclass(frozen=True)
class Candidates:
    """Architectures that are not visited, and their embedded rows `(n, columns)`."""

    archs: Sequence[Arch]
    rows: Floats


class Pool:
    """Args:
    whole: spaces of at most so many architectures are candidates as a whole.
    size: number of candidates in larger spaces.
    """

    def __init__(self, space: Space, embedding: Embedding, whole: int, size: int) -> None:
        self._space, self._embedding, self._size = space, embedding, size
        self.is_whole = space.size <= whole
        self._everything: Candidates | None = None

    def candidates(
        self, visited: Visited, parents: Sequence[Arch], promise: Callable[[Floats], Floats], rng: np.random.Generator
    ) -> Candidates:
        """Args:
        parents: the best architectures so far, best first.
        promise: scores rows (n, columns) -> (n,), higher is better; asked once, for a pool that is not the whole space.
        """
        if self.is_whole:
            if self._everything is None:
                archs = list(self._space)
                self._everything = Candidates(archs, self._embedding.rows(archs))
            left = [i for i, arch in enumerate(self._everything.archs) if arch not in visited]
            return Candidates([self._everything.archs[i] for i in left], self._everything.rows[left])
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
        return Candidates([*archs, *new], np.vstack([rows, self._embedding.rows(new)]))

    def _mutants(self, parents: Sequence[Arch], count: int, found: dict[Arch, None], visited: Visited, rng: np.random.Generator) -> None:
        """Of each parent in turn; one to three mutations, so that a neighbourhood that is visited is left."""
        for i in range(count if parents else 0):
            arch = self._space.mutate(parents[i % len(parents)], rng, n=int(rng.choice(3, p=[0.6, 0.3, 0.1])) + 1)
            if arch not in visited:
                found[arch] = None
