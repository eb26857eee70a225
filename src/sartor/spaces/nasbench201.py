"""The network of NAS-Bench-201 (Dong & Yang 2020, section 2.1 and appendix A), searchable: every cell in one set of weights.

Stem of 3x3 convolution and batch norm with 16 channels, three stages of five cells at 16, 32 and 64 channels, a residual block of stride 2
between stages, batch norm, ReLU, global average pool, linear classifier. The choice of each edge is shared by all cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from sartor.benchmarks.nasbench201 import CHOICES, EDGES, OPS, SPACE, from_string, to_string
from sartor.errors import UserError
from sartor.extract import Net
from sartor.hardware.cost import Factor
from sartor.hardware.graph import OpGraph
from sartor.layers.base import Chain, OneOf, Searchable, plain
from sartor.layers.choice import AnyArch
from sartor.layers.conv import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear
from sartor.spaces.nasbench201_graph import factors, op_graph

NONE = OPS.index("none")


class Zero(nn.Module):
    """The operation `none`: zeros of the input's shape."""

    zero = True  # :class:`OneOf` need not compute it

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0


def _zeros(channels: int) -> nn.Conv2d:
    """Zeros spelled as a convolution whose weights are a buffer: op graphs and exporters know it, and it has no parameters."""
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    del conv.weight
    conv.register_buffer("weight", torch.zeros(channels, 1, 1, 1))
    return conv


def _relu_conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Chain:
    """ReLU, convolution, batch norm, in this order; the ReLU is not in place, as other edges read its input."""
    return Chain(nn.ReLU(), ElasticConv2d(inputs, outputs, kernel, stride), ElasticBatchNorm2d(outputs))


def _operation(name: str, channels: int) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return _relu_conv_bn(channels, channels, 3 if name == "nor_conv_3x3" else 1)


class PlainCell(nn.Module):
    """A cell of ordinary torch modules: `edges` maps a choice to what stands there; node 3 is the output. What nothing enters is absent."""

    def __init__(self, edges: Mapping[str, nn.Module], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(edges)
        if not any(choice.endswith("3") for choice in edges):
            self.zero = _zeros(channels)

    def forward(self, x: Tensor) -> Tensor:
        nodes: list[Tensor | None] = [x]
        for target in (1, 2, 3):
            parts = []
            for source, node in enumerate(nodes):
                choice = f"edge{source}{target}"
                if node is not None and choice in self.edges:
                    parts.append(self.edges[choice](node))
            nodes.append(_total(parts))
        return nodes[3] if nodes[3] is not None else self.zero(x)  # type: ignore[no-any-return]


class Cell(Searchable):
    """One cell, `(batch, channels, H, W)` to the same shape: six edges of five operations, each with weights of its own.

    A node that no operation but `none` enters is absent, and so are the edges from it; in the benchmark a convolution there still adds
    the shift of its batch norm, a constant (:meth:`published` keeps it).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.edges = nn.ModuleList(OneOf(choice, {op: _operation(op, channels) for op in OPS}) for choice in CHOICES)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        nodes: list[Tensor | None] = [x]
        for target in (1, 2, 3):
            parts = []
            for edge, choice, (source, to) in zip(self.edges, CHOICES, EDGES, strict=True):
                node = nodes[source] if to == target else None
                if node is not None and not _is_none(arch[choice]):
                    parts.append(edge(node, arch, drop_path))
            nodes.append(_total(parts))
        return nodes[3] if nodes[3] is not None else x * 0.0

    def extract(self, arch: Mapping[str, int]) -> PlainCell:
        """Edges that are on no path from input to output are left out, with their weights."""
        return self._plain(arch, live_edges(arch))

    def published(self, arch: Mapping[str, int]) -> PlainCell:
        """As the benchmark built it: with the edges that lead nowhere, and their weights."""
        return self._plain(arch, frozenset(CHOICES))

    def _plain(self, arch: Mapping[str, int], kept: frozenset[str]) -> PlainCell:
        edges = {c: plain(edge, arch) for c, edge in zip(CHOICES, self.edges, strict=True) if c in kept}
        return PlainCell(edges, self.channels)


class Reduction(Searchable):
    """Residual block of stride 2 that doubles the channels: two 3x3 convolutions beside an average pool with a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = Chain(_relu_conv_bn(inputs, outputs, 3, stride=2), _relu_conv_bn(outputs, outputs, 3))
        self.shortcut = Chain(nn.AvgPool2d(2, 2), ElasticConv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        return self.shortcut(x, arch) + self.body(x, arch)


class NasBench201(Net):
    """The macro network for pictures (C, H, W), both sides divisible by four; its space is the benchmark's, choice for choice.

    Args:
        channels: of the first stage; the benchmark has 16.
        cells: of each stage; the benchmark has 5.

    `drop_path` reaches the operations of the cells; it is the dropout of the skip connections where they have one
    (:func:`sartor.layers.partial.skip_dropout`), else without effect.

    Raises:
        UserError: for pictures whose sides four does not divide.
    """

    #: The choices that enter each node of a cell: what edge normalisation weighs against each other.
    incoming = tuple(tuple(c for c, (_, to) in zip(CHOICES, EDGES, strict=True) if to == node) for node in (1, 2, 3))

    def __init__(self, input_shape: tuple[int, int, int], classes: int, *, channels: int = 16, cells: int = 5) -> None:
        super().__init__(input_shape, classes)
        if any(side % 4 or side < 4 for side in self.input_shape[1:]):
            raise UserError(
                f"nasbench201: expected pictures whose sides are multiples of 4, got {self.input_shape[1]}x{self.input_shape[2]}"
            )
        if channels < 1 or cells < 1:
            raise UserError(f"nasbench201: channels and cells must be at least 1, got {channels} and {cells}")
        self.channels, self.cells = channels, cells
        self.stem = Chain(ElasticConv2d(self.input_shape[0], channels, 3), ElasticBatchNorm2d(channels))
        body: list[Searchable] = []
        for stage in range(3):
            if stage:
                body.append(Reduction(channels << (stage - 1), channels << stage))
            body += [Cell(channels << stage) for _ in range(cells)]
        self.body = nn.ModuleList(body)
        self.last = Chain(ElasticBatchNorm2d(channels << 2), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = ElasticLinear(channels << 2, self.classes)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        x = self.stem(x, arch)
        for part in self.body:
            x = part(x, arch, drop_path)
        return self.classifier(torch.flatten(self.pool(self.last(x, arch)), 1), arch)  # type: ignore[no-any-return]

    def _graph(self, arch: Mapping[str, int]) -> tuple[OpGraph, int]:
        operations = live_operations(self.space.canonical(arch))
        return op_graph(operations, self.input_shape, self.classes, channels=self.channels, cells=self.cells)

    @cached_property
    def _factors(self) -> list[Factor]:
        def live(indices: tuple[int, ...]) -> tuple[str, ...]:
            return live_operations(dict(zip(CHOICES, indices, strict=True)))

        return factors(live, self.input_shape, self.classes, channels=self.channels, cells=self.cells)

    def deepened(self, factor: float) -> NasBench201:
        """A new network of so many times the cells in each stage (Chen et al. 2019, P-DARTS, section 3.2)."""
        return NasBench201(self.input_shape, self.classes, channels=self.channels, cells=round(factor * self.cells))

    def published(self, arch: Mapping[str, int]) -> nn.Module:
        """The plain network as the benchmark trained it, dead edges included: its parameters are those of the table. Weights are copies."""
        found = self.space.canonical(arch)
        body = [part.published(found) if isinstance(part, Cell) else plain(part, found) for part in self.body]
        tail = [plain(self.last, found), self.pool, nn.Flatten(1), plain(self.classifier, found)]
        return nn.Sequential(plain(self.stem, found), *body, *tail)


def live_edges(arch: Mapping[str, int]) -> frozenset[str]:
    """Edges on a path of operations other than `none` from input to output of a discrete cell."""
    used = [(choice, source, target) for choice, (source, target) in zip(CHOICES, EDGES, strict=True) if arch[choice] != NONE]
    reached, leading = {0}, {3}
    for _, source, target in used:
        if source in reached:
            reached.add(target)
    for _, source, target in reversed(used):
        if target in leading:
            leading.add(source)
    return frozenset(choice for choice, source, target in used if source in reached and target in leading)


def live_operations(arch: Mapping[str, int]) -> tuple[str, ...]:
    """The operations of the six edges, `none` where an edge leads nowhere."""
    live = live_edges(arch)
    return tuple(OPS[arch[choice]] if choice in live else "none" for choice in CHOICES)


def _is_none(value: object) -> bool:
    return set(value) == {NONE} if isinstance(value, Mapping) else value == NONE


def _total(parts: list[Tensor]) -> Tensor | None:
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


__all__ = ["SPACE", "Cell", "NasBench201", "PlainCell", "Reduction", "from_string", "live_edges", "to_string"]
