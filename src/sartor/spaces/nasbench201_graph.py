"""The op graph of a network of NAS-Bench-201 and the factors of its costs, written down from the cell: what :func:`sartor.hardware.trace`
finds in the extracted network, a hundred times faster. What an edge costs depends
on all six, since those that lead nowhere are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

from sartor.benchmarks.nasbench201 import CHOICES, EDGES
from sartor.hardware.cost import Factor
from sartor.hardware.graph import Op, OpGraph, Shape
from sartor.spaces.op_writer import OpWriter, absorbed

STAGES = 3
Pieces = Mapping[str, tuple[Op, ...]]  # stem, 0.0 (a stage's first cell), reduction1, ... -> ops
Operations = tuple[str, ...]  # of the edges, those that lead nowhere being none


def op_graph(operations: Operations, input_shape: Shape, classes: int, *, channels: int, cells: int) -> tuple[OpGraph, int]:
    """The op graph of the network, and its number of parameters in torch."""
    w = OpWriter()
    state = w.conv("stem/conv", -1, channels, shape=input_shape, kernel=3)
    for stage in range(STAGES):
        if stage:
            state = _reduction(w, f"reduction{stage}", state)
        for number in range(cells):
            state = _cell(w, f"{stage}.{number}", operations, state)
    last = w.relu("last/relu", _norm(w, "last/norm", state))
    width = w.shapes[last][0]
    pooled = w.add("pool", "last/pool", (last,), w.shapes[last], (width, 1, 1))
    linear = w.add("linear", "last/classifier", (pooled,), (width, 1, 1), (classes, 1, 1))
    w.numel += w.ops[linear].params
    return OpGraph(tuple(absorbed(w.ops)), input_shape), w.numel


def _reduction(w: OpWriter, name: str, source: int) -> int:
    channels, height, width = w.shapes[source]
    pooled = w.add("avgpool", f"{name}/pool", (source,), w.shapes[source], (channels, height // 2, width // 2), kernel=2, stride=2)
    shortcut = w.conv(f"{name}/shortcut", pooled, 2 * channels, norm=False)
    first = w.conv(f"{name}/first", w.relu(f"{name}/relu1", source), 2 * channels, kernel=3, stride=2)
    second = w.conv(f"{name}/second", w.relu(f"{name}/relu2", first), 2 * channels, kernel=3)
    return w.add("add", f"{name}/add", (shortcut, second), w.shapes[second], w.shapes[second])


def _cell(w: OpWriter, name: str, operations: Operations, source: int) -> int:
    nodes: list[int | None] = [source]
    for target in (1, 2, 3):
        total = None
        parts = [(number, start) for number, (start, to) in enumerate(EDGES) if to == target and operations[number] != "none"]
        for number, part in [(n, _operation(w, f"{name}/{CHOICES[n]}", operations[n], nodes[start])) for n, start in parts]:
            shape = w.shapes[part]
            total = part if total is None else w.add("add", f"{name}/add{number}", (total, part), shape, shape)
        nodes.append(total)
    if nodes[3] is not None:
        return nodes[3]
    zero = w.conv(f"{name}/zero", source, w.shapes[source][0], norm=False, groups=w.shapes[source][0])
    w.numel -= w.shapes[source][0]  # its weights are no parameters
    return zero


def _operation(w: OpWriter, name: str, operation: str, source: int | None) -> int:
    assert source is not None, "an edge from a node that nothing enters leads nowhere"
    if operation == "skip_connect":
        return source
    if operation == "avg_pool_3x3":
        return w.add("avgpool", name, (source,), w.shapes[source], w.shapes[source], kernel=3)
    return w.conv(name, w.relu(f"{name}.relu", source), w.shapes[source][0], kernel=int(operation[-1]))


def _norm(w: OpWriter, name: str, source: int) -> int:
    """A batch norm: taken in by a convolution that has none, which only the one of zeros is."""
    w.numel += 2 * w.shapes[source][0]
    if w.ops[source].name.endswith("/zero"):
        return source
    return w.add("act", name, (source,), w.shapes[source], w.shapes[source], act="affine")


def factors(live: Callable[[tuple[int, ...]], Operations], input_shape: Shape, classes: int, *, channels: int, cells: int) -> list[Factor]:
    """Factors whose ops add up to those of :func:`op_graph`: one for each piece of the network. `live` gives the operations of six indices.

    Cells between the first and the last of a stage cost the same: their factors share what is worked out for one.
    """
    shown = min(cells, 3)
    shared: dict[str, Op] = {}  # ops that cost the same need no memory of their own

    @cache
    def pieces(operations: Operations) -> Pieces:
        graph, _ = op_graph(operations, input_shape, classes, channels=channels, cells=shown)
        found: dict[str, list[Op]] = {name: [] for name in _names(shown)}
        for op in graph:
            found[op.name.partition("/")[0]].append(shared.setdefault(op.signature, op))
        return {name: tuple(ops) for name, ops in found.items()}

    def factor(name: str) -> Factor:
        return Factor(CHOICES, lambda indices: pieces(live(indices))[name])

    found = {name: factor(name) for name in _names(shown)}
    middle = [found[f"{stage}.1"] for stage in range(STAGES) for _ in range(cells - 3)]
    return [*found.values(), *middle]


def _names(cells: int) -> Iterator[str]:
    yield "stem"
    for stage in range(STAGES):
        if stage:
            yield f"reduction{stage}"
        yield from (f"{stage}.{number}" for number in range(cells))
    yield "last"


__all__ = ["factors", "op_graph"]
