"""The op graph of a genotype's network, written down from the genotype: what :func:`sartor.hardware.trace` finds in a built
:class:`sartor.spaces.darts_eval.CellNetwork`, a hundred times faster. The stem is that for small pictures, there is no auxiliary head."""

from __future__ import annotations

from dataclasses import dataclass

from sartor.hardware.graph import Op, OpGraph
from sartor.layers.primitives import activated
from sartor.spaces.darts_eval import Edges, Genotype, reductions
from sartor.spaces.op_writer import OpWriter

Shape = tuple[int, int, int]


class _Writer(OpWriter):
    def norm(self, name: str, source: int) -> int:
        """A normalisation that no convolution takes in."""
        self.numel += 2 * self.shapes[source][0]
        return self.add("act", name, (source,), self.shapes[source], self.shapes[source], act="affine")

    def reduce(self, name: str, source: int, outputs: int) -> int:
        halves = tuple(
            self.conv(f"{name}.conv_{n}", source, width, stride=2, norm=False)
            for n, width in ((1, outputs - outputs // 2), (2, outputs // 2))
        )
        shape = (outputs, *self.shapes[halves[0]][1:])
        return self.norm(f"{name}.norm", self.add("concat", f"{name}.cat", halves, shape, shape))

    def operation(self, op: str, name: str, source: int, stride: int, pool_norm: bool) -> int:
        channels, height, width = self.shapes[source]
        if op == "skip_connect":
            return self.reduce(name, source, channels)
        if op in ("max_pool_3x3", "avg_pool_3x3"):
            out = (channels, -(-height // stride), -(-width // stride))
            pool = self.add(f"{op[:3]}pool", f"{name}.pool", (source,), self.shapes[source], out, kernel=3, stride=stride)
            return self.norm(f"{name}.norm", pool) if pool_norm else pool
        kernel, dilation = int(op[-1]), 2 if op.startswith("dil") else 1
        spatial = self.conv(f"{name}.0", source, channels, norm=False, stride=stride, kernel=kernel, groups=channels, dilation=dilation)
        if dilation == 2:
            return self.conv(f"{name}.1", spatial, channels)
        inner = self.conv(f"{name}.1", spatial, channels, act="relu")
        again = self.conv(f"{name}.4", inner, channels, norm=False, kernel=kernel, groups=channels)
        return self.conv(f"{name}.5", again, channels)

    def cell(
        self, name: str, edges: Edges, s0: int, s1: int, channels: int, *, reduction: bool, after_reduction: bool, pool_norm: bool
    ) -> int:
        """The concatenated nodes."""
        entries = [(op, source, 2 if reduction and source < 2 else 1, 2 + number // 2) for number, (op, source) in enumerate(edges)]
        nodes: list[int] = []
        fused = set()  # inputs whose one reader is a ReLU: their convolution does it
        for number, source in enumerate((s0, s1)):
            path = f"{name}.preprocess{number}"
            if after_reduction and number == 0:
                nodes.append(self.reduce(path, source, channels))
                continue
            readers = [activated(op, stride) for op, start, stride, _ in entries if start == number]
            fused |= {number} if readers == [True] else set()
            nodes.append(self.conv(f"{path}.0", source, channels, act="relu" if number in fused else ""))
        for target in range(2, 6):
            parts = []
            for op, source, stride, to in entries:
                if to != target:
                    continue
                path = f"{name}.edge{source}{target}"
                start = nodes[source]
                if activated(op, stride) and source not in fused:
                    start = self.relu(f"{path}.relu", start)
                identity = op == "skip_connect" and stride == 1
                parts.append(start if identity else self.operation(op, path, start, stride, pool_norm))
            shape = self.shapes[parts[0]]
            nodes.append(self.add("add", f"{name}.node{target}.add", (parts[0], parts[1]), shape, shape))
        joined = (4 * channels, *self.shapes[nodes[2]][1:])
        return self.add("concat", f"{name}.out.cat", tuple(nodes[2:]), joined, joined)


def edge_ops(op: str, shape: Shape, stride: int, *, pool_norm: bool, relu: bool) -> tuple[Op, ...]:
    """What an operation costs on an edge from a map of `shape`: its ops, with a ReLU of its own if `relu` and it begins with one."""
    w = _Writer()
    start = w.relu("relu", w.add("act", "map", (-1,), shape, shape, act="relu"))
    if op != "skip_connect" or stride == 2:
        w.operation(op, "edge", start, stride, pool_norm)
    return tuple(w.ops[1 if relu and activated(op, stride) else 2 :])


def op_graph(
    genotype: Genotype, input_shape: Shape, classes: int, *, channels: int, cells: int, pool_norm: bool = False
) -> tuple[OpGraph, int]:
    """The op graph of the network, and its number of parameters in torch."""
    w = _Writer()
    state = w.conv("stem.0", -1, 3 * channels, shape=input_shape, kernel=3, act="relu")
    s0 = s1 = state
    out, after_reduction = state, False
    for number in range(cells):
        reduction = number in reductions(cells)
        channels = 2 * channels if reduction else channels
        edges = genotype.reduce if reduction else genotype.normal
        out = w.cell(f"cells.{number}", edges, s0, s1, channels, reduction=reduction, after_reduction=after_reduction, pool_norm=pool_norm)
        after_reduction = reduction
        if number + 1 < cells:
            s0, s1 = s1, w.relu(f"cells.{number}.out_relu.relu", out)
    width = w.shapes[out][0]
    pooled = w.add("pool", "pool", (out,), w.shapes[out], (width, 1, 1))
    last = w.add("linear", "classifier", (pooled,), (width, 1, 1), (classes, 1, 1))
    w.numel += w.ops[last].params
    return OpGraph(tuple(w.ops), input_shape), w.numel


@dataclass(frozen=True)
class CellShapes:
    """Where a cell stands: shapes of its two inputs, its channels, and the sides of its nodes."""

    reduction: bool
    after_reduction: bool
    inputs: tuple[Shape, Shape]
    channels: int

    def source(self, number: int) -> Shape:
        """Shape of a node as an edge finds it."""
        height, width = self.inputs[1][1:]
        return (self.channels, height, width) if number < 2 or not self.reduction else (self.channels, -(-height // 2), -(-width // 2))


def cell_shapes(input_shape: Shape, *, channels: int, cells: int) -> list[CellShapes]:
    """The cells of the network, first to last."""
    height, width = input_shape[1:]
    before = previous = (3 * channels, height, width)
    found = []
    after_reduction = False
    for number in range(cells):
        reduction = number in reductions(cells)
        channels = 2 * channels if reduction else channels
        found.append(CellShapes(reduction, after_reduction, (before, previous), channels))
        height, width = (-(-height // 2), -(-width // 2)) if reduction else (height, width)
        before, previous, after_reduction = previous, (4 * channels, height, width), reduction
    return found


__all__ = ["CellShapes", "cell_shapes", "edge_ops", "op_graph"]
