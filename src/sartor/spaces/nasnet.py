"""The cell space of NASNet (Zoph, Vasudevan, Shlens & Le 2018, "Learning Transferable Architectures for Scalable Image Recognition",
CVPR, section 3), searchable in one set of weights.

A cell has B blocks. A block takes two hidden states (the outputs of the two cells before, or of earlier blocks), applies an operation to
each, and combines the two results, by addition or by concatenation. The blocks that no later block takes, concatenated, are its output.
With M operations and N ways to combine there are prod_i (i + 2)^2 M^2 N cells, i = 0..B-1; normal and reduction cells are chosen apart.

Departures from the paper: of its 13 operations those with asymmetric kernels (1x3 then 3x1, 1x7 then 7x1) and the larger max pools are left
out; a concatenation is projected back to the cell's width, so that every hidden state has the same; a reduction's inputs pass a convolution
of stride 2 instead of a factorised reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.arch import Space
from sartor.errors import UserError
from sartor.extract import Net
from sartor.hardware.cost import Factor
from sartor.hardware.graph import OpGraph
from sartor.layers.base import Chain, OneOf, Searchable
from sartor.layers.choice import AnyArch, Choice, mix
from sartor.layers.conv import ElasticBatchNorm2d, ElasticConv2d
from sartor.spaces.nasnet_cell import (
    BLOCKS,
    COMBINERS,
    KINDS,
    NASNET_A,
    OPS,
    Block,
    decode,
    encode,
    from_string,
    make_space,
    size_of,
    states,
    to_string,
)
from sartor.spaces.nasnet_graph import op_graph


def _relu_conv_bn(channels: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.ReLU(), ElasticConv2d(channels, channels, kernel, stride), ElasticBatchNorm2d(channels)]


def _separable(channels: int, kernel: int, stride: int) -> list[nn.Module]:
    depthwise = ElasticConv2d(channels, channels, kernel, stride, depthwise=True)
    return [nn.ReLU(), depthwise, ElasticConv2d(channels, channels, 1), ElasticBatchNorm2d(channels)]


def operation(name: str, channels: int, stride: int) -> nn.Module:
    """One of :data:`OPS` with weights of its own, `(batch, channels, H, W)` to the same channels at 1 / `stride` of the size.

    Separable convolutions are applied twice (section A.4 of the paper).
    """
    if name == "identity":
        return nn.Identity() if stride == 1 else Chain(*_relu_conv_bn(channels, 1, stride))
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    kernel = int(name[-1])
    if name.startswith("conv"):
        return Chain(*_relu_conv_bn(channels, kernel, stride))
    return Chain(*_separable(channels, kernel, stride), *_separable(channels, kernel, 1))


class Loose(Searchable):
    """1x1 convolution of the concatenated blocks that no block takes: each block has columns of its own in the weight.

    `x` holds those blocks with a share above zero, in order, `share` tells them from the others.
    """

    def __init__(self, cell: CellSpec, channels: int, outputs: int, stride: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.cell, self.channels, self.stride = cell, channels, stride
        self.weight = nn.Parameter(torch.empty(outputs, cell.blocks * channels, 1, 1))
        nn.init.normal_(self.weight, 0.0, math.sqrt(2.0 / outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def choices(self) -> tuple[Choice, ...]:
        return self.cell.inputs

    def _columns(self, arch: AnyArch) -> Tensor:
        kept = self.cell.loose(arch)
        return torch.cat([self.weight[:, i * self.channels : (i + 1) * self.channels] for i in kept], dim=1)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        return F.conv2d(x, self._columns(arch), self.bias, self.stride)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        weight = self._columns(arch).detach()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, self.stride, bias=self.bias is not None)
        conv.weight.data.copy_(weight)
        if self.bias is not None and conv.bias is not None:
            conv.bias.data.copy_(self.bias.detach())
        return conv


class CellSpec:
    """What the choices of one kind of cell say about its wiring."""

    def __init__(self, kind: str, blocks: int) -> None:
        self.kind, self.blocks = kind, blocks
        self.slots = [(Choice(f"{kind}.b{i}.in1", states(i)), Choice(f"{kind}.b{i}.in2", states(i))) for i in range(blocks)]
        self.inputs = tuple(choice for slot in self.slots for choice in slot)

    def unused(self, arch: AnyArch) -> list[Any]:
        """Share of each block that reaches the output directly: 1 where no later block takes it, 0 where one does.

        Of a mixture the expectation, with independent choices.
        """
        shares: list[Any] = [1.0] * self.blocks
        for i, slot in enumerate(self.slots):
            for choice in slot:
                value = choice.value(arch)
                for index, weight in value.items() if isinstance(value, Mapping) else [(value, 1.0)]:
                    if 2 <= index < i + 2:
                        shares[index - 2] = shares[index - 2] * (1.0 - weight)
        return shares

    def loose(self, arch: AnyArch) -> list[int]:
        """Blocks whose share is not zero."""
        return [i for i, share in enumerate(self.unused(arch)) if isinstance(share, Tensor) or share != 0.0]

    def takes(self, arch: AnyArch) -> tuple[bool, bool]:
        """Whether any block takes the output of the cell before the last, and that of the last."""
        taken = {index for choice in self.inputs for index in choice.support(arch)}
        return 0 in taken, 1 in taken


class SearchCell(Searchable):
    """One cell, from the two inputs (already of the cell's width and size) to its concatenated loose blocks.

    In a reduction the operations on the inputs have stride 2 and weights of their own.
    """

    def __init__(self, spec: CellSpec, channels: int, ops: Sequence[str], combiners: Sequence[str]) -> None:
        super().__init__()
        self.spec, self.slots, self.inputs = spec, spec.slots, spec.inputs
        kind = spec.kind
        first, later = (2 if kind == "reduce" else 1), 1

        def sides(side: int, stride: int, start: int) -> nn.ModuleList:
            made = (OneOf(f"{kind}.b{i}.op{side}", {op: operation(op, channels, stride) for op in ops}) for i in range(start, spec.blocks))
            return nn.ModuleList(made)

        self.from_input = nn.ModuleList([sides(1, first, 0), sides(2, first, 0)])
        self.from_block = nn.ModuleList([sides(1, later, 1), sides(2, later, 1)] if first != later else [])
        self.combine = [Choice(f"{kind}.b{i}.combine", tuple(combiners)) for i in range(spec.blocks)]
        joins = [Chain(nn.ReLU(), ElasticConv2d(2 * channels, channels, 1), ElasticBatchNorm2d(channels)) for _ in range(spec.blocks)]
        self.join = nn.ModuleList(joins if "concat" in combiners else [])

    def forward(self, x: Sequence[Tensor | None], arch: AnyArch, drop_path: float = 0.0) -> Tensor:  # type: ignore[override]  # two inputs
        hidden: list[Any] = list(x)
        for i, slot in enumerate(self.slots):
            a, b = (self._side(side, i, slot[side], hidden, arch) for side in (0, 1))
            hidden.append(mix(self.combine[i].value(arch), self._combiner(i, a, b, arch)))
        shares = self.spec.unused(arch)
        kept = [hidden[2 + i] if _is_one(shares[i]) else shares[i] * hidden[2 + i] for i in self.spec.loose(arch)]
        return torch.cat(kept, dim=1) if len(kept) > 1 else kept[0]

    def _side(self, side: int, i: int, choice: Choice, hidden: Sequence[Any], arch: AnyArch) -> Tensor:
        own = len(self.from_block) > 0

        def term(index: int) -> Tensor:
            sides: Any = self.from_block if own and index >= 2 else self.from_input
            out: Tensor = sides[side][i - 1 if own and index >= 2 else i](hidden[index], arch)
            return out

        return mix(choice.value(arch), term)

    def _combiner(self, i: int, a: Tensor, b: Tensor, arch: AnyArch) -> Callable[[int], Tensor]:
        def combined(index: int) -> Tensor:
            if self.combine[i].options[index] == "add":
                return a + b
            joined: Tensor = self.join[i](torch.cat((a, b), dim=1), arch)
            return joined

        return combined


def _is_one(share: Any) -> bool:
    return not isinstance(share, Tensor) and share == 1.0


class NasNet(Net):
    """Three stages of `cells` normal cells with a reduction cell, which doubles the width, between them; pictures (C, H, W).

    A cell whose output nothing takes is not computed, and not in the extracted network.

    Args:
        channels: width of the first stage's hidden states.
        cells: normal cells a stage; NASNet-A has 6.
        blocks, ops, combiners: B, and the names of the M operations and the N combiners.

    Raises:
        UserError: for pictures whose sides four does not divide, and numbers below 1.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        channels: int = 16,
        cells: int = 2,
        blocks: int = BLOCKS,
        ops: Sequence[str] = OPS,
        combiners: Sequence[str] = COMBINERS,
    ) -> None:
        super().__init__(input_shape, classes)
        self._space, self.channels = make_space(blocks, ops, combiners), channels
        if any(side % 4 or side < 4 for side in self.input_shape[1:]):
            raise UserError(f"nasnet: expected images of at least 4x4 with sides that 4 divides, got {input_shape[1]}x{input_shape[2]}")
        if min(channels, cells, blocks) < 1:
            raise UserError(f"nasnet: channels, cells and blocks must be at least 1, got {channels}, {cells} and {blocks}")
        self.specs = {kind: CellSpec(kind, blocks) for kind in KINDS}
        self.kinds = [kind for stage in range(3) for kind in (["reduce"] if stage else []) + ["normal"] * cells]
        self.stem = Chain(ElasticConv2d(self.input_shape[0], channels, 3), ElasticBatchNorm2d(channels))
        widths = [channels << self.kinds[: k + 1].count("reduce") for k in range(len(self.kinds))]
        made = (SearchCell(self.specs[kind], width, ops, combiners) for kind, width in zip(self.kinds, widths, strict=True))
        self.cells = nn.ModuleList(made)
        self.prepare = nn.ModuleList(
            nn.ModuleList([self._prepare(k - 2, k, widths), self._prepare(k - 1, k, widths)]) for k in range(len(self.kinds))
        )
        self.classifier = Loose(self.specs[self.kinds[-1]], widths[-1], self.classes, bias=True)

    @property
    def space(self) -> Space:  # type: ignore[override]  # the layers would give the same choices in another order
        return self._space

    def _prepare(self, source: int, target: int, widths: Sequence[int]) -> Chain:
        """From the output of cell `source` (below 0: the stem) to the width and size of the inputs of cell `target`."""
        stride = 1 << self.kinds[max(source + 1, 0) : target].count("reduce")
        width = widths[target]
        if source < 0:
            conv: nn.Module = ElasticConv2d(widths[0], width, 1, stride)
        else:
            conv = Loose(self.specs[self.kinds[source]], widths[source], width, stride)
        return Chain(nn.ReLU(), conv, ElasticBatchNorm2d(width))

    def needed(self, arch: AnyArch) -> set[int]:
        """Cells whose output reaches the classifier."""
        found = {len(self.kinds) - 1}
        for k in range(len(self.kinds) - 1, -1, -1):
            if k in found:
                takes = self.specs[self.kinds[k]].takes(arch)
                found |= {source for source, taken in zip((k - 2, k - 1), takes, strict=True) if taken and source >= 0}
        return found

    def _graph(self, arch: Mapping[str, int]) -> tuple[OpGraph, int]:
        key = self._space.canonical(arch)
        if key not in self._graphs:
            if len(self._graphs) >= 2_000:
                self._graphs.clear()
            cells = dict(zip(KINDS, decode(self._space, key), strict=True))
            self._graphs[key] = op_graph(cells, self.kinds, self.input_shape, self.classes, channels=self.channels)
        return self._graphs[key]

    @cached_property
    def _factors(self) -> list[Factor]:
        """One of all choices: what an output's readers are, and whether a cell is there at all, depends on the wiring of both cells."""
        names = tuple(self._space.choices)
        return [Factor(names, lambda indices: self.graph(dict(zip(names, indices, strict=True))).ops)]

    def forward(self, x: Tensor, arch: AnyArch) -> Tensor:  # type: ignore[override]  # Net passes drop_path to those that take it
        stem = self.stem(x, arch)
        needed = self.needed(arch)
        outputs: dict[int, Tensor] = {-2: stem, -1: stem}
        for k, cell in enumerate(self.cells):
            if k not in needed:
                continue
            takes = self.specs[self.kinds[k]].takes(arch)
            prepare: Any = self.prepare[k]
            inputs = [prepare[i](outputs[k - 2 + i], arch) if takes[i] else None for i in (0, 1)]
            outputs[k] = cell(inputs, arch)
        pooled = F.adaptive_avg_pool2d(torch.relu(outputs[len(self.cells) - 1]), 1)
        return torch.flatten(self.classifier(pooled, arch), 1)


__all__ = [
    "NASNET_A",
    "OPS",
    "Block",
    "CellSpec",
    "Loose",
    "NasNet",
    "SearchCell",
    "decode",
    "encode",
    "from_string",
    "make_space",
    "size_of",
    "to_string",
]
