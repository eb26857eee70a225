"""The execution order with the smallest peak: exact search over downsets of an op graph. Use `sartor.hardware.memory.best_order`."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.hardware.memory import Lifetimes

Found = tuple[tuple[int, ...], int, bool]


def search(memory: Lifetimes, states: int) -> Found:
    """(order, peak bytes, whether proven optimal).

    The graph is cut at its waists, the ops before or after which every other op must run: each stretch between two of them is solved by
    itself, because what is alive at a waist depends on no order.
    """
    order: tuple[int, ...] = ()
    done, live, peak, exact, left = 0, memory.size[-1], memory.size[-1], True, states
    for stretch in _stretches(memory):
        solver = _Stretch(memory, stretch, done, live, peak)
        part, peak, proven, spent = solver.solve(left)
        left = max(0, left - spent)
        exact = exact and proven
        order += part
        for index in part:
            _, live = memory.step(index, done, live)
            done |= 1 << index
    return order, peak, exact


def _stretches(memory: Lifetimes) -> list[list[int]]:
    """Ops between consecutive waists, the waist last, in the given order."""
    above = [0] * memory.count
    below = [0] * memory.count
    for index in range(memory.count):
        for source in memory.sources[index]:
            if source >= 0:
                above[index] |= above[source] | 1 << source
    for index in reversed(range(memory.count)):
        for source in memory.sources[index]:
            if source >= 0:
                below[source] |= below[index] | 1 << index
    waists = [i for i in range(memory.count) if (above[i] | below[i]).bit_count() == memory.count - 1]
    waists.sort(key=lambda i: above[i].bit_count())
    found: list[list[int]] = []
    taken = 0
    for waist in waists:
        members = (above[waist] | 1 << waist) & ~taken
        found.append(_bits(members))
        taken |= members
    rest = _bits(((1 << memory.count) - 1) & ~taken)
    return [*found, rest] if rest else found


def _bits(mask: int) -> list[int]:
    """The numbers of the bits that are set: work for each of them, not for each bit of the mask, which a chain has as many of as waists."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


class _Stretch:
    """One stretch: what was done before it, the bytes alive there, and a peak that is reached anyway."""

    def __init__(self, memory: Lifetimes, ops: list[int], done: int, live: int, peak: int) -> None:
        self.memory, self.ops, self.done, self.live = memory, ops, done, live
        self.goal = done | sum(1 << index for index in ops)
        self.floor = max(peak, *(memory.least(index) for index in ops))

    def solve(self, states: int) -> tuple[tuple[int, ...], int, bool, int]:
        """(order, peak, proven optimal, states expanded)."""
        candidates = [self._peak_of(self.ops), self._greedy()]
        bound, known = min(candidates, key=lambda pair: pair[0])
        if bound <= self.floor:
            return known, self.floor, True, 0
        # Equal peaks: the state with more ops done first, so that a search that meets its optimum ends at once.
        start = (self.floor, 0, self.done, self.live, ())
        queue: list[tuple[int, int, int, int, Any]] = [start]
        seen: set[int] = set()
        while queue:
            peak, _, done, live, path = heapq.heappop(queue)
            if peak >= bound:
                break  # every order left needs at least what the known one needs
            done, live, path = self._close(done, live, peak, path)
            if done == self.goal:
                return _unrolled(path), peak, True, len(seen)
            if done in seen:
                continue
            if len(seen) >= states:
                return known, bound, False, len(seen)
            seen.add(done)
            for index in self._ready(done):
                needed, after = self.memory.step(index, done, live)
                new = done | 1 << index
                if max(peak, needed) < bound and new not in seen:
                    heapq.heappush(queue, (max(peak, needed), -new.bit_count(), new, after, (path, index)))
        return known, bound, True, len(seen)

    def _ready(self, done: int) -> list[int]:
        return [index for index in self.ops if not done >> index & 1 and not self.memory.needs[index] & ~done]

    def _close(self, done: int, live: int, peak: int, path: Any) -> tuple[int, int, Any]:
        """Run every ready op that neither exceeds the peak nor leaves more alive than before.

        An exchange argument makes this safe: moved to the front of an optimal order, such an op leaves no more alive at any later step,
        and any operand that a later op could write over it still can.
        """
        moved = True
        while moved:
            moved = False
            for index in self._ready(done):
                needed, after = self.memory.step(index, done, live)
                if needed <= peak and after <= live:
                    done, live, path, moved = done | 1 << index, after, (path, index), True
        return done, live, path

    def _peak_of(self, order: list[int]) -> tuple[int, tuple[int, ...]]:
        done, live, peak = self.done, self.live, self.floor
        for index in order:
            needed, live = self.memory.step(index, done, live)
            peak = max(peak, needed)
            done |= 1 << index
        return peak, tuple(order)

    def _greedy(self) -> tuple[int, tuple[int, ...]]:
        """At each step the op that raises the peak least, of those the one that leaves least alive."""
        done, live, order = self.done, self.live, list[int]()
        while done != self.goal:
            steps = {index: self.memory.step(index, done, live) for index in self._ready(done)}
            index = min(steps, key=lambda i: (max(self.floor, steps[i][0]), steps[i][1]))
            live = steps[index][1]
            done |= 1 << index
            order.append(index)
        return self._peak_of(order)


def _unrolled(path: Any) -> tuple[int, ...]:
    order: list[int] = []
    while path:
        path, index = path
        order.append(index)
    return tuple(reversed(order))
