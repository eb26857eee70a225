"""Memory of an op graph: peak bytes of activations, bytes of weights, and the order of ops that needs least."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sartor.hardware.graph import OpGraph

SEARCH_STATES = 100_000


@dataclass(frozen=True)
class Schedule:
    """An execution order and its peak. `exact`: no other order needs less; otherwise it is only the best one found."""

    order: tuple[int, ...]
    peak_bytes: int
    exact: bool


def peak_bytes(graph: OpGraph, bytes_per_value: int = 1, order: Sequence[int] | None = None) -> int:
    """Largest sum of live activations over the ops, in bytes for one image: 1 byte per value is int8, 4 is fp32.

    A tensor lives from the op that makes it to the last op that reads it; while an op runs, its inputs and its output are alive
    (no in-place execution). Outputs that nobody reads live to the end.
    """
    memory = _Lifetimes(graph, bytes_per_value)
    done, live, peak = 0, memory.start, memory.start
    for index in range(len(graph)) if order is None else order:
        peak = max(peak, live + memory.size[index])
        done |= 1 << index
        live += memory.size[index] - memory.freed(index, done)
    return peak


def weight_bytes(graph: OpGraph, bytes_per_weight: int = 1, bytes_per_bias: int = 4) -> int:
    """Bytes of weights and biases (int8 networks keep biases as int32), without scales and file headers."""
    return sum(op._weights * bytes_per_weight + op._biases * bytes_per_bias for op in graph)


def best_order(graph: OpGraph, bytes_per_value: int = 1, states: int = SEARCH_STATES) -> Schedule:
    """The execution order with the smallest peak, by best-first search over the sets of finished ops.

    States are expanded by rising peak, so the first complete one is optimal; the given order's peak is the upper bound that
    prunes. After `states` expansions the given order is returned with `exact=False`.
    """
    memory = _Lifetimes(graph, bytes_per_value)
    everything = (1 << len(graph)) - 1
    bound = peak_bytes(graph, bytes_per_value)
    given = tuple(range(len(graph)))
    # Equal peaks: the state with more ops done first, so that a search that meets its bound ends at once.
    queue: list[tuple[int, int, int, int, tuple[int, ...]]] = [(memory.start, 0, 0, memory.start, ())]
    seen: set[int] = set()
    while queue:
        peak, _, done, live, order = heapq.heappop(queue)
        if done == everything:
            return Schedule(order, peak, True)
        if done in seen:
            continue
        if len(seen) >= states:
            return Schedule(given, bound, False)
        seen.add(done)
        for index in range(len(graph)):
            if done >> index & 1 or memory.needs[index] & ~done:
                continue
            after = max(peak, live + memory.size[index])
            new = done | 1 << index
            if after <= bound and new not in seen:
                heapq.heappush(queue, (after, -len(order) - 1, new, live + memory.size[index] - memory.freed(index, new), (*order, index)))
    return Schedule(given, bound, True)


class _Lifetimes:
    """Sizes, predecessors and readers of every tensor, as bit masks over ops."""

    def __init__(self, graph: OpGraph, bytes_per_value: int) -> None:
        self.size = [prod(op.out_shape) * bytes_per_value for op in graph]
        self.start = prod(graph.input_shape) * bytes_per_value
        self.sources = [set(graph.sources(index)) for index in range(len(graph))]
        self.needs = [sum(1 << source for source in sources if source >= 0) for sources in self.sources]
        self.readers: dict[int, int] = {}
        for index, sources in enumerate(self.sources):
            for source in sources:
                self.readers[source] = self.readers.get(source, 0) | 1 << index

    def freed(self, index: int, done: int) -> int:
        """Bytes released once op `index` has run and `done` is the mask of finished ops."""
        gone = [source for source in self.sources[index] if not self.readers[source] & ~done]
        return sum(self.start if source < 0 else self.size[source] for source in gone)
