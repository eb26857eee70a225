"""Activation memory of an op graph: what is alive at each step, the order of ops that needs least, and the bytes of weights.

A tensor lives from the op that makes it to the last op that reads it; outputs that nobody reads live to the end. While an op runs, its
inputs and its output are alive, unless it works *in place*: then its output takes the place of an operand that nobody reads afterwards.
The rules, by name (an op that none of them names never works in place):

act        elementwise: each value is read once and written at its own place.
add, mul   elementwise: over either operand of the output's size.
sum        a convolution that adds its second input to its result (a runtime's fusion) accumulates over that input.
se         the product with the gate goes over the input; the gate, one value a channel, is a workspace.
depthwise  channel by channel (TinyEngine: Lin et al. 2020, MCUNet, section 3.2, "in-place depth-wise convolution"): the outputs of one
           channel are gathered in a workspace and then written over channels that are done with, so N channels need N + 1 instead of 2 N.
           Holds for any stride, as outputs of a channel are no larger than its inputs; the layout must be channels first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from sartor.hardware._order import search
from sartor.hardware.graph import Op, OpGraph

SEARCH_STATES = 100_000

NEVER: frozenset[str] = frozenset()
ELEMENTWISE: frozenset[str] = frozenset({"act", "add", "mul", "sum", "se"})
TINYENGINE: frozenset[str] = ELEMENTWISE | {"depthwise"}


@dataclass(frozen=True)
class Schedule:
    """An execution order and its peak. `exact`: no other order needs less; otherwise it is only the best one found."""

    order: tuple[int, ...]
    peak_bytes: int
    exact: bool


@dataclass(frozen=True)
class Moment:
    """What is alive while op `op` runs. `tensors` are (producer, bytes), -1 being the graph's input; `over` is the operand that the
    output replaces (its bytes are then not counted twice), None for an op that does not work in place."""

    op: int
    name: str
    kind: str
    bytes: int
    tensors: tuple[tuple[int, int], ...]
    workspace: int
    over: int | None


def peak_bytes(
    graph: OpGraph,
    bytes_per_value: int = 1,
    order: Sequence[int] | None = None,
    *,
    in_place: Collection[str] = NEVER,
    external: Iterable[int] = (),
) -> int:
    """Largest sum of live activations over the ops, in bytes for one image: 1 byte per value is int8, 4 is fp32.

    `in_place` names the rules that hold (see the module's text). `external` are tensors that live outside the arena (-1 the graph's input):
    they count nothing and are never written over.
    """
    memory = Lifetimes(graph, bytes_per_value, in_place, external)
    done, live, peak = 0, memory.size[-1], memory.size[-1]
    for index in range(len(graph)) if order is None else order:
        needed, live = memory.step(index, done, live)
        peak = max(peak, needed)
        done |= 1 << index
    return peak


def weight_bytes(graph: OpGraph, bytes_per_weight: int = 1, bytes_per_bias: int = 4) -> int:
    """Bytes of weights and biases (int8 networks keep biases as int32), without scales and file headers."""
    return sum(op_weight_bytes(op, bytes_per_weight, bytes_per_bias) for op in graph)


def op_weight_bytes(op: Op, bytes_per_weight: int = 1, bytes_per_bias: int = 4) -> int:
    """Bytes of the weights and biases of one op; see :func:`weight_bytes`."""
    return op._weights * bytes_per_weight + op._biases * bytes_per_bias


def best_order(
    graph: OpGraph,
    bytes_per_value: int = 1,
    states: int = SEARCH_STATES,
    *,
    in_place: Collection[str] = NEVER,
    external: Iterable[int] = (),
) -> Schedule:
    """The execution order with the smallest peak, by best-first search over the sets of finished ops (downsets).

    After `states` expansions the better of the given order and a greedy one is returned for the stretch of the graph that was not solved,
    with `exact=False`. The peak is never above that of the given order.
    """
    memory = Lifetimes(graph, bytes_per_value, in_place, external)
    order, peak, exact = search(memory, states)
    return Schedule(order, peak, exact)


def timeline(
    graph: OpGraph,
    bytes_per_value: int = 1,
    order: Sequence[int] | None = None,
    *,
    in_place: Collection[str] = NEVER,
    external: Iterable[int] = (),
) -> list[Moment]:
    """Memory over time: one moment for each op in execution order. The largest `bytes` is :func:`peak_bytes` (of a graph with ops)."""
    memory = Lifetimes(graph, bytes_per_value, in_place, external)
    moments: list[Moment] = []
    done, alive = 0, {-1}
    for index in range(len(graph)) if order is None else order:
        op, over = graph.ops[index], memory.overwritten(index, done)
        alive.add(index)
        shown = tuple((t, memory.size[t]) for t in sorted(alive) if t not in memory.external)
        workspace = memory.workspace[index] if over is not None else 0
        replaced = memory.size[index] if over is not None else 0
        total = sum(size for _, size in shown) + workspace - replaced
        moments.append(Moment(index, op.name or f"{op.kind}{index}", op.kind, total, shown, workspace, over))
        done |= 1 << index
        alive -= set(memory.dying(index, done))
    return moments


class Lifetimes:
    """Sizes, sources and readers of every tensor. Tensor -1, the graph's input, is the last entry of each list.

    Sets of ops are bit masks. The bytes alive after a set of finished ops do not depend on their order, which is what makes the search
    for the best order one over sets.
    """

    def __init__(self, graph: OpGraph, bytes_per_value: int = 1, in_place: Collection[str] = NEVER, external: Iterable[int] = ()) -> None:
        self.count = len(graph)
        self.external = frozenset(external)
        sizes = [prod(op.out_shape) * bytes_per_value for op in graph] + [prod(graph.input_shape) * bytes_per_value]
        self.size = [0 if self._outside(tensor) else size for tensor, size in enumerate(sizes)]
        self.sources = [tuple(dict.fromkeys(graph.sources(index))) for index in range(self.count)]
        self.needs = [sum(1 << source for source in sources if source >= 0) for sources in self.sources]
        self.readers = [0] * (self.count + 1)
        for index, sources in enumerate(self.sources):
            for source in sources:
                self.readers[source] |= 1 << index
        self.workspace = [_workspace(op) * bytes_per_value for op in graph]
        self.over = [self._over(op, index, sizes) if in_place else () for index, op in enumerate(graph)]
        if in_place:
            self.over = [over if _rule(op) in in_place else () for over, op in zip(self.over, graph, strict=True)]

    def _outside(self, tensor: int) -> bool:
        return (tensor if tensor < self.count else -1) in self.external

    def _over(self, op: Op, index: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """Operands whose place the output may take: as large as it (a depthwise convolution's is larger with a stride)."""
        if index in self.external:
            return ()
        sources = self.sources[index][1:] if _rule(op) == "sum" else self.sources[index]
        fits = [s for s in sources if sizes[s] >= sizes[index] and s not in self.external]
        return tuple(s for s in fits if sizes[s] == sizes[index] or _rule(op) == "depthwise")

    def dying(self, index: int, done: int) -> list[int]:
        """Sources of op `index` that nobody reads once the ops in `done` have run."""
        return [source for source in self.sources[index] if not self.readers[source] & ~done]

    def overwritten(self, index: int, done: int) -> int | None:
        """The operand that op `index` writes over when it runs after `done`, if it does."""
        if not self.over[index]:
            return None
        dying = self.dying(index, done | 1 << index)
        return next((source for source in self.over[index] if source in dying), None)

    def step(self, index: int, done: int, live: int) -> tuple[int, int]:
        """(bytes alive while op `index` runs after `done`, bytes alive afterwards); `live` are those alive before."""
        size, readers, after = self.size, self.readers, ~(done | 1 << index)
        freed, in_place = 0, False
        for source in self.sources[index]:
            if not readers[source] & after:
                freed += size[source]
                in_place = in_place or source in self.over[index]
        needed = live + (min(self.workspace[index], size[index]) if in_place else size[index])
        return needed, live + size[index] - freed

    def least(self, index: int) -> int:
        """Bytes that are alive while op `index` runs in any order."""
        sources = sum(self.size[source] for source in self.sources[index])
        own = self.size[index]
        return sources + (min(self.workspace[index], own) if self.over[index] else own)


def is_depthwise(op: Op) -> bool:
    """Whether every channel is convolved by itself."""
    return op.kind == "conv" and op.groups > 1 and op.groups == op.in_shape[0] == op.out_shape[0]


def _rule(op: Op) -> str:
    """The in-place rule that an op falls under."""
    if op.kind == "conv" and len(op.inputs) > 1:
        return "sum"
    return "depthwise" if is_depthwise(op) else op.kind


def _workspace(op: Op) -> int:
    """Values that an op needs beside its tensors when it works in place."""
    if _rule(op) == "depthwise":
        return op.out_shape[1] * op.out_shape[2]
    return op.out_shape[0] if op.kind == "se" else 0
