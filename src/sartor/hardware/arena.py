"""Where each activation lies in one block of memory: offsets for tensors that are alive at different times, packed tightly.

Dynamic storage allocation is NP-hard; here several greedy packings are tried and the smallest is kept, as TensorFlow Lite's planners do
one of them. No packing needs less than the peak of live bytes, so `lower_bound_bytes` tells how far from the best it can be at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sartor.hardware.graph import OpGraph, Shape
from sartor.hardware.memory import NEVER, Lifetimes

ROUNDS = 24  # packings from one order of the tensors


@dataclass(frozen=True)
class Block:
    """A tensor's place: `bytes` (rounded up to the alignment) from `offset`, from step `first` to step `last` of the order, inclusive.

    `tensor` is its producer, -1 the graph's input; None is the workspace of the op that runs at step `first`.
    """

    tensor: int | None
    bytes: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True)
class Arena:
    """Blocks without overlap in space and time, the bytes that hold them, and the bytes that no packing can go below."""

    blocks: tuple[Block, ...]
    bytes: int
    lower_bound_bytes: int

    def offset_of(self, tensor: int) -> int:
        """Byte offset of a tensor, -1 being the graph's input. Raises KeyError for one that lies outside the arena."""
        for block in self.blocks:
            if block.tensor == tensor:
                return block.offset
        raise KeyError(tensor)


def place(
    graph: OpGraph,
    bytes_per_value: int = 1,
    order: Sequence[int] | None = None,
    *,
    alignment: int = 16,
    in_place: Collection[str] = NEVER,
    external: Iterable[int] = (),
    online: bool = False,
) -> Arena:
    """Offsets of all activations of a graph executed in `order` (default: as given), for one image.

    An output that replaces its operand (`in_place`, see :mod:`sartor.hardware.memory`) lies at the operand's offset. Greedy packings by
    size, by size times lifetime and by time, each with the tightest and with the lowest gap, are tried; the smallest is kept.

    `online` plans as ONNX Runtime does: a tensor takes over the buffer, freed last, of one of its own shape; what finds none is placed when
    it is made, into the tightest gap that is free then. Neither looks ahead, so this is what such an arena holds, fragments included.
    """
    memory = Lifetimes(graph, bytes_per_value, in_place, external)
    steps = list(range(len(graph)) if order is None else order)
    groups = _groups(memory, steps, alignment)
    bound = max((sum(_alive(group, t) for group in groups) for t in range(max(len(graph), 1))), default=0)
    keys: list[Callable[[list[Block]], tuple[float, ...]]] = [
        lambda group: (-max(b.bytes for b in group), group[0].first),
        lambda group: (-sum(b.bytes * (b.last - b.first + 1) for b in group), group[0].first),
        lambda group: (group[0].first, -max(b.bytes for b in group)),
    ]
    if online:
        groups = _groups(memory, steps, alignment, [op.out_shape for op in graph] + [graph.input_shape])
        blocks = _pack(sorted(groups, key=keys[2]), True, grow=False)
        end = max((b.offset + b.bytes for b in blocks), default=0)
        return Arena(tuple(sorted(blocks, key=lambda b: (b.first, b.offset))), end, bound)
    best: list[Block] = []
    size = -1
    for key, tightest in itertools.product(keys, (True, False)):
        for blocks in _improved(sorted(groups, key=key), tightest):
            end = max((b.offset + b.bytes for b in blocks), default=0)
            if size < 0 or end < size:
                best, size = blocks, end
            if size == bound:
                return Arena(tuple(sorted(best, key=lambda b: (b.first, b.offset))), size, bound)
    return Arena(tuple(sorted(best, key=lambda b: (b.first, b.offset))), size, bound)


def _improved(groups: list[list[Block]], tightest: bool) -> Iterator[list[Block]]:
    """The packing in the given order, then after moving the group that sticks out most to the front, again and again: what was hard to
    place is placed first (squeaky wheel optimisation, Joslin & Clements 1999)."""
    order = list(groups)
    for _ in range(min(ROUNDS, 1 + 2 * len(order))):
        blocks = _pack(order, tightest)
        yield blocks
        end = max((b.offset + b.bytes for b in blocks), default=0)
        tops = {(b.tensor, b.first) for b in blocks if b.offset + b.bytes == end}
        worst = next((group for group in order if any((b.tensor, b.first) in tops for b in group)), None)
        if worst is None or worst is order[0]:
            return
        order = [worst, *(group for group in order if group is not worst)]


def _alive(group: list[Block], step: int) -> int:
    """Bytes that a group takes at a step: while an op works in place, operand and output are one block, as large as the larger."""
    return max((b.bytes for b in group if b.first <= step <= b.last), default=0)


def _groups(memory: Lifetimes, order: list[int], alignment: int, shapes: Sequence[Shape] | None = None) -> list[list[Block]]:
    """Blocks that share an offset: a tensor and those that replace it, one after the other; each workspace is a group of its own.

    With the `shapes` of all tensors, one also replaces a tensor of its own shape that is dead; the place is kept in between.
    """
    final = max(len(order) - 1, 0)
    ends = dict.fromkeys((-1, *order), final)
    for step, index in enumerate(order):
        ends.update((source, step) for source in memory.sources[index])

    def block(tensor: int, first: int) -> Block:
        return Block(tensor, -(-memory.size[tensor] // alignment) * alignment, first, ends[tensor])

    groups = {-1: [block(-1, 0)]}
    spaces: list[list[Block]] = []
    dead: list[int] = []  # the one that died last comes first
    done = 0
    for step, index in enumerate(order):
        over = memory.overwritten(index, done)
        if over is None and shapes is not None and memory.size[index]:
            gone = next((t for t in dead if shapes[t] == shapes[index] and memory.size[t] == memory.size[index]), None)
            if gone is not None:
                dead.remove(gone)
                groups[gone][-1] = replace(groups[gone][-1], last=step - 1)
                over = gone
        elif over is not None and memory.workspace[index]:
            spaces.append([Block(None, -(-memory.workspace[index] // alignment) * alignment, step, step)])
        groups[index] = [] if over is None else groups[over]
        groups[index].append(block(index, step))
        done |= 1 << index
        dead[:0] = [t for t in reversed(memory.dying(index, done)) if memory.size[t] and groups[t][-1].tensor == t]
    distinct = {id(group): group for tensor, group in groups.items() if memory.size[tensor]}
    return [*distinct.values(), *spaces]


def _pack(groups: list[list[Block]], tightest: bool, grow: bool = True) -> list[Block]:
    """Give each group in turn the tightest gap that holds it (otherwise the lowest) between the blocks that are placed already.

    Without `grow`, what is free at the end of the bytes in use counts as a gap like the others.
    """
    placed: list[Block] = []
    for group in groups:
        # Offsets of the group at which one of its blocks would overlap a placed one, in time and in space.
        barred = sorted(
            (there.offset - own.bytes + 1, there.offset + there.bytes)
            for own in group
            for there in placed
            if own.first <= there.last and there.first <= own.last
        )
        gaps: list[tuple[float, int]] = []
        free = 0
        for low, high in barred:
            if low > free:
                gaps.append((low - free, free))
            free = max(free, high)
        room = 0 if grow else max((b.offset + b.bytes for b in placed), default=0) - free - max(b.bytes for b in group) + 1
        gaps.append((room if room > 0 else math.inf, free))
        offset = (min(gaps) if tightest else gaps[0])[1]
        placed += [replace(block, offset=offset) for block in group]
    return placed
