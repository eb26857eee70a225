"""Patch-based execution (MCUNetV2, Lin et al. 2021, section 3): the first ops of a network, whose maps are the largest, are executed for
one patch of their last map at a time, so that only patches of the maps between are ever alive.

A patch needs a halo: each op of the stage needs the outputs of the one before in the patch's receptive field, so neighbouring patches
compute some values twice. Which ops form the stage and how fine the grid is is a scheduling choice: it changes memory and arithmetic, not
the result (:class:`sartor.hardware.patched.Patched` executes a plan and gives the same numbers).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph
from sartor.hardware.memory import NEVER, peak_bytes

#: Kinds whose outputs depend on a bounded neighbourhood of their inputs.
LOCAL = ("conv", "maxpool", "avgpool", "act", "add", "mul", "concat")
GRIDS = (2, 3, 4, 5, 6, 8)

Span = tuple[int, int]
Region = tuple[Span, Span]


@dataclass(frozen=True)
class PatchPlan:
    """Ops `first` to `last` are executed patch by patch, over a grid (rows, columns) of the map of `last`; the others as usual.

    `stage_bytes` is the peak while patches run: the stage's whole input, the map that the patches fill, and what one patch needs at most.
    `rest_bytes` is the peak of everything before and after. `recomputed_macs` are multiply-accumulates done more than once.
    """

    first: int
    last: int
    grid: tuple[int, int]
    stage_bytes: int
    rest_bytes: int
    macs: int
    recomputed_macs: int

    @property
    def peak_bytes(self) -> int:
        return max(self.stage_bytes, self.rest_bytes)


def back(region: Span, size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Span:
    """The inputs, of `size` along one axis, that outputs `region` (from, to) of a sliding window read; the padding is cut off."""
    low = region[0] * stride - padding
    high = (region[1] - 1) * stride - padding + dilation * (kernel - 1) + 1
    return max(low, 0), min(high, size)


def tiles(size: int, count: int) -> list[Span]:
    """`size` positions in `count` runs whose lengths differ by at most one."""
    edges = [round(size * i / count) for i in range(count + 1)]
    return [(low, high) for low, high in itertools.pairwise(edges) if high > low]


def padding_of(op: Op, axis: int) -> int:
    """Zeros before the first value along axis 1 (height) or 2 (width): half the window, as every layer here has it, or the fewest that
    give the op's output size.

    Raises:
        UserError: if no symmetric padding gives that size.
    """
    found = _padding(op, axis)
    if found is None:
        sizes = f"a size of {op.in_shape[axis]} that becomes {op.out_shape[axis]} (kernel {op.kernel})"
        raise UserError(f"expected symmetric padding at {op.name or op.kind}, got {sizes}")
    return found


def _padding(op: Op, axis: int) -> int | None:
    reach = op.dilation * (op.kernel - 1)
    fits = (p for p in (reach // 2, *range(reach + 1)) if (op.in_shape[axis] + 2 * p - reach - 1) // op.stride + 1 == op.out_shape[axis])
    return next(fits, None)


def stages(graph: OpGraph) -> Iterator[tuple[int, int]]:
    """(first, last) of every stretch that may run patch by patch: local ops from the start, of which only the last is read later.

    Resizes of the input come before the stage and run as usual.
    """
    first = 0
    while first < len(graph) and graph.ops[first].kind == "resize":
        first += 1
    reads = [graph.sources(index) for index in range(len(graph))]
    for last in range(first, len(graph)):
        if not _is_local(graph, last) or any(source < first - 1 for source in reads[last]):
            return
        later = {source for sources in reads[last + 1 :] for source in sources}
        inside = {source for sources in reads[first : last + 1] for source in sources}
        if all(source >= last for source in later) and last in later and inside >= set(range(first, last)):
            yield first, last


def _is_local(graph: OpGraph, index: int) -> bool:
    op = graph.ops[index]
    if op.kind not in LOCAL or op.out_shape[1:] == (1, 1):
        return False
    if op.kind in ("conv", "maxpool", "avgpool"):
        # One that adds a second map belongs to a runtime's own graph; of one with uneven padding the halo is not known.
        return len(op.inputs) < 2 and _padding(op, 1) is not None and _padding(op, 2) is not None
    shapes = [graph.input_shape if s < 0 else graph.ops[s].out_shape for s in graph.sources(index)]
    return all(shape[1:] == op.out_shape[1:] for shape in shapes)  # nothing is broadcast


def plan(
    graph: OpGraph,
    first: int,
    last: int,
    grid: tuple[int, int],
    bytes_per_value: int = 1,
    *,
    in_place: Collection[str] = NEVER,
) -> PatchPlan:
    """Memory and arithmetic of executing ops `first` to `last` (one of :func:`stages`) over `grid` = (rows, columns) patches.

    Raises:
        UserError: if the stretch cannot run patch by patch.
    """
    if (first, last) not in set(stages(graph)):
        raise UserError(
            f"ops {first} to {last} cannot run patch by patch: expected local ops from the start, of which only the last is read"
        )
    height, width = graph.ops[last].out_shape[1:]
    cropped: dict[tuple[object, ...], tuple[int, int]] = {}  # patches of equal sizes cost the same
    worst = macs = 0
    for rows in tiles(height, grid[0]):
        for columns in tiles(width, grid[1]):
            regions = _regions(graph, first, last, (rows, columns))
            key = tuple(tuple(high - low for low, high in region) for region in regions)
            if key not in cropped:
                local = _crop(graph, first, last, regions)
                outside = (-1, len(local) - 1)
                cropped[key] = peak_bytes(local, bytes_per_value, in_place=in_place, external=outside), local.macs
            worst, macs = max(worst, cropped[key][0]), macs + cropped[key][1]
    source, target = _bytes(graph, first - 1, bytes_per_value), _bytes(graph, last, bytes_per_value)
    before = peak_bytes(OpGraph(graph.ops[:first], graph.input_shape), bytes_per_value) if first else 0
    rest = OpGraph(tuple(_moved(graph, i, last + 1) for i in range(last + 1, len(graph))), graph.ops[last].out_shape)
    after = peak_bytes(rest, bytes_per_value, in_place=in_place)
    recomputed = macs - sum(op.macs for op in graph.ops[first : last + 1])
    return PatchPlan(first, last, grid, source + target + worst, max(before, after), graph.macs + recomputed, recomputed)


def plans(graph: OpGraph, bytes_per_value: int = 1, *, grids: Sequence[int] = GRIDS, in_place: Collection[str] = NEVER) -> list[PatchPlan]:
    """Every stage with every square grid that its map is large enough for."""
    found = []
    for first, last in stages(graph):
        smallest = min(graph.ops[last].out_shape[1:])
        found += [plan(graph, first, last, (n, n), bytes_per_value, in_place=in_place) for n in grids if n <= smallest]
    return found


def choose(candidates: Sequence[PatchPlan], limit_bytes: int | None = None) -> PatchPlan | None:
    """Of the plans within `limit_bytes` the one that recomputes least; without a limit, or if none keeps it, the one with the lowest peak.

    None if there is no candidate.
    """
    fitting = [p for p in candidates if limit_bytes is not None and p.peak_bytes <= limit_bytes]
    if fitting:
        return min(fitting, key=lambda p: (p.recomputed_macs, p.peak_bytes))
    return min(candidates, key=lambda p: (p.peak_bytes, p.recomputed_macs), default=None)


def _regions(graph: OpGraph, first: int, last: int, patch: Region) -> list[Region]:
    """What is needed of the stage's input (entry 0) and of each op's output for one patch of the last output."""
    needed: dict[int, Region] = {last: patch}
    for index in range(last, first - 1, -1):
        op, region = graph.ops[index], needed[index]
        for source in graph.sources(index):
            height, width = (graph.input_shape if source < 0 else graph.ops[source].out_shape)[1:]
            if op.kind in ("conv", "maxpool", "avgpool"):
                rows = back(region[0], height, op.kernel, op.stride, padding_of(op, 1), op.dilation)
                columns = back(region[1], width, op.kernel, op.stride, padding_of(op, 2), op.dilation)
                reads = (rows, columns)
            else:
                reads = region
            needed[source] = _hull(needed[source], reads) if source in needed else reads
    return [needed[index] for index in range(first - 1, last + 1)]


def _hull(a: Region, b: Region) -> Region:
    return (min(a[0][0], b[0][0]), max(a[0][1], b[0][1])), (min(a[1][0], b[1][0]), max(a[1][1], b[1][1]))


def _crop(graph: OpGraph, first: int, last: int, regions: list[Region]) -> OpGraph:
    """The stage for one patch, as a graph of its own with smaller maps."""

    def shape(channels: int, region: Region) -> tuple[int, int, int]:
        return channels, region[0][1] - region[0][0], region[1][1] - region[1][0]

    ops = []
    for index in range(first, last + 1):
        op = _moved(graph, index, first)
        source = regions[op.inputs[0] + 1]
        ops.append(replace(op, in_shape=shape(op.in_shape[0], source), out_shape=shape(op.out_shape[0], regions[index - first + 1])))
    channels = graph.input_shape[0] if first == 0 else graph.ops[first - 1].out_shape[0]
    return OpGraph(tuple(ops), shape(channels, regions[0]))


def _moved(graph: OpGraph, index: int, by: int) -> Op:
    return replace(graph.ops[index], inputs=tuple(source - by for source in graph.sources(index)))


def _bytes(graph: OpGraph, tensor: int, bytes_per_value: int) -> int:
    channels, height, width = graph.input_shape if tensor < 0 else graph.ops[tensor].out_shape
    return channels * height * width * bytes_per_value
