"""What a searcher is, and what searchers share: a fold over the history, and drawing what was not yet visited."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.trial import Proposal, Trial

S = TypeVar("S")


class Searcher(Protocol):
    """A pure function of the finished trials.

    `ask` returns at most `n` proposals. An empty list with `pending` proposals means: nothing until one of them finishes; without, nothing
    is left. No architecture that is in `history` or `pending` is proposed again. What a searcher must remember about a proposal travels in
    `Proposal.meta`. The same arguments (the generator in the same state) give the same answer, whatever was asked before: state is only a
    cache, keyed by the history that it was derived from.
    """

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]: ...


class Fold(Generic[S]):
    """State derived from the history, trial by trial, kept as long as the next history continues the last one.

    The check compares every trial of the prefix (by identity first, so about a millisecond for 100,000), hence the answer always equals
    that of folding the whole history anew.

    Args:
        start: makes the state of an empty history.
        step: adds one trial to the state, in place.
    """

    def __init__(self, start: Callable[[], S], step: Callable[[S, Trial], None]) -> None:
        self._start, self._step = start, step
        self._folded: list[Trial] = []
        self._state = start()

    def __call__(self, history: Sequence[Trial]) -> S:
        past = history[: len(self._folded)]
        if (past if isinstance(past, list) else list(past)) != self._folded:
            self._folded, self._state = [], self._start()
        for trial in history[len(self._folded) :]:
            self._step(self._state, trial)
            self._folded.append(trial)
        return self._state


class Visited:
    """Architectures not to be proposed again, and uniform draws from all others, in spaces of any size.

    While fewer than half of the space is visited, draws are rejected until one is new (under two on average). Beyond that, the r-th
    unvisited architecture is found by binary search among the sorted numbers of the visited ones, so that the last one costs no more.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._archs: set[Arch] = set()
        self._numbers: list[int] = []  # sorted; of all of _archs but the unnumbered
        self._unnumbered: dict[Arch, None] = {}
        self._added: list[Arch] | None = None

    def __contains__(self, arch: object) -> bool:
        return arch in self._archs

    def __len__(self) -> int:
        return len(self._archs)

    def __iter__(self) -> Iterator[Arch]:
        return iter(self._archs)

    def add(self, arch: Arch) -> bool:
        """Whether `arch` was new."""
        if arch in self._archs:
            return False
        self._archs.add(arch)
        self._unnumbered[arch] = None
        if self._added is not None:
            self._added.append(arch)
        return True

    @contextmanager
    def holding(self, pending: Sequence[Proposal]) -> Iterator[None]:
        """Inside, `pending` and whatever is added count as visited; afterwards all of that is forgotten."""
        self._added = []
        try:
            for proposal in pending:
                self.add(proposal.arch)
            yield
        finally:
            for arch in self._added:
                self._discard(arch)
            self._added = None

    def _discard(self, arch: Arch) -> None:
        self._archs.remove(arch)
        if arch in self._unnumbered:
            del self._unnumbered[arch]
        elif (number := self._number(arch)) is not None:
            del self._numbers[bisect_left(self._numbers, number)]

    def draw(self, rng: np.random.Generator) -> Arch | None:
        """Uniform over the architectures that are not visited; None if there is none."""
        if 2 * len(self._archs) < self._space.size:
            while True:
                arch = self._space.sample(rng)
                if arch not in self._archs:
                    return arch
        for arch in self._unnumbered:
            number = self._number(arch)
            if number is not None:
                insort(self._numbers, number)
        self._unnumbered.clear()
        left = self._space.size - len(self._numbers)
        return self._space.at(self._unvisited(int(rng.integers(left)))) if left else None

    def _number(self, arch: Arch) -> int | None:
        try:
            return self._space.index(arch)
        except UserError:  # of another space (a history from before the space was restricted): takes no number here
            return None

    def _unvisited(self, r: int) -> int:
        """The r-th number that is not among the visited: numbers[j] - j of them lie below numbers[j]."""
        low, high = 0, len(self._numbers)
        while low < high:
            middle = (low + high) // 2
            if self._numbers[middle] - middle <= r:
                low = middle + 1
            else:
                high = middle
        return r + low
