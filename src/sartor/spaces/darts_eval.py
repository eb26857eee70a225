"""Networks of one DARTS genotype: what is trained after the search (Liu et al. 2019, DARTS, section 3.3).

Twenty cells at 36 channels for pictures of 32 pixels, with an auxiliary head at two thirds of the depth; fourteen cells at 48 channels
behind a stem of stride 4 for ImageNet. :class:`CellNetwork` is plain torch: `forward(x)` gives the logits and nothing else, so that it
exports and profiles like any module; training asks :meth:`CellNetwork.training_outputs` for the auxiliary logits and drop-path too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.layers.base import drop_path_of
from sartor.layers.primitives import PRIMITIVES, PlainFactorizedReduce, activated, plain_operation, pointwise

Edges = tuple[tuple[str, int], ...]  # (operation, source), two for each node in turn; sources 0 and 1 are the cell's inputs


class Genotype(NamedTuple):
    """A normal and a reduction cell: eight (operation, source) pairs each, two for each of the nodes 2 to 5."""

    normal: Edges
    reduce: Edges


def _edges(text: str) -> Edges:
    """From `sep3:1 skip:0 ...`."""
    names = {
        "max": "max_pool_3x3", "avg": "avg_pool_3x3", "skip": "skip_connect", "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5",
        "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5",
    }  # fmt: skip
    return tuple((names[word.split(":")[0]], int(word.split(":")[1])) for word in text.split())


#: Published cells, all searched on CIFAR-10: DARTS of first and second order (Liu et al. 2019), P-DARTS (Chen et al. 2019) and PC-DARTS
#: (Xu et al. 2020).
GENOTYPES: dict[str, Genotype] = {
    "darts-v1": Genotype(
        _edges("sep3:1 sep3:0 skip:0 sep3:1 skip:0 sep3:1 sep3:0 skip:2"), _edges("max:0 max:1 skip:2 max:0 max:0 skip:2 skip:2 avg:0")
    ),
    "darts-v2": Genotype(
        _edges("sep3:0 sep3:1 sep3:0 sep3:1 sep3:1 skip:0 skip:0 dil3:2"), _edges("max:0 max:1 skip:2 max:1 max:0 skip:2 skip:2 max:1")
    ),
    "p-darts": Genotype(
        _edges("skip:0 dil3:1 skip:0 sep3:1 sep3:1 sep3:3 sep3:0 dil5:4"), _edges("avg:0 sep5:1 sep3:0 dil5:2 max:0 dil3:1 dil3:1 dil5:3")
    ),
    "pc-darts": Genotype(
        _edges("sep3:1 skip:0 sep3:0 dil3:1 sep5:0 sep3:1 avg:0 dil3:1"), _edges("sep5:1 max:0 sep5:1 sep5:2 sep3:0 sep3:3 sep3:1 sep3:2")
    ),
}


def check_genotype(genotype: Genotype) -> None:
    """Raise UserError unless both cells have four nodes of two known operations from two different earlier nodes."""
    for cell, edges in zip(("normal", "reduce"), genotype, strict=True):
        if len(edges) != 8:
            raise UserError(f"genotype: expected eight (operation, source) pairs in the {cell} cell, got {len(edges)}")
        for number, (op, source) in enumerate(edges):
            target = 2 + number // 2
            if op not in PRIMITIVES[1:]:
                raise UserError(f"genotype: expected one of {', '.join(PRIMITIVES[1:])} in the {cell} cell, got '{op}'")
            if not 0 <= source < target:
                raise UserError(f"genotype: node {target} of the {cell} cell expects sources from 0 to {target - 1}, got {source}")
            if number % 2 and source == edges[number - 1][1]:
                raise UserError(f"genotype: node {target} of the {cell} cell expects two different sources, got {source} twice")


def reductions(cells: int) -> frozenset[int]:
    """Positions of the reduction cells: one and two thirds of the depth."""
    return frozenset((cells // 3, 2 * cells // 3))


class PlainCell(nn.Module):
    """One discrete cell of torch layers.

    Its inputs `(batch, C0, H0, W0)` and `(batch, C1, H, W)` are the activated outputs of the two cells before it, its output
    `(batch, 4 * channels, H', W')` joins the four nodes.
    """

    def __init__(
        self, edges: Edges, before: int, previous: int, channels: int, *, reduction: bool, after_reduction: bool, pool_norm: bool = False
    ) -> None:
        super().__init__()
        self.preprocess0 = PlainFactorizedReduce(before, channels) if after_reduction else _conv_norm(before, channels)
        self.preprocess1 = _conv_norm(previous, channels)
        self.ops = nn.ModuleDict()  # identities are not among them
        self.plan: list[list[tuple[int, str]]] = []  # node -> its (source, name in ops or "")
        for node in range(4):
            entries = []
            for op, source in edges[2 * node : 2 * node + 2]:
                stride = 2 if reduction and source < 2 else 1
                name = "" if op == "skip_connect" and stride == 1 else f"edge{source}{node + 2}"
                if name:
                    module = plain_operation(op, channels, stride, pool_norm=pool_norm)
                    self.ops[name] = nn.Sequential(nn.ReLU(), module) if activated(op, stride) else module
                entries.append((source, name))
            self.plan.append(entries)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        return self.dropping(s0, s1, 0.0)

    def dropping(self, s0: Tensor, s1: Tensor, drop_path: float) -> Tensor:
        """`forward`, every operation but identities dropped for whole pictures at rate `drop_path` (FractalNet, Larsson et al. 2017)."""
        nodes = [self.preprocess0(s0), self.preprocess1(s1)]
        for entries in self.plan:
            parts = []
            for source, name in entries:
                part = nodes[source]
                if name:
                    part = self.ops[name](part)
                    part = drop_path_of(part, drop_path) if drop_path > 0.0 else part
                parts.append(part)
            nodes.append(parts[0] + parts[1])
        return torch.cat(nodes[2:], 1)


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(pointwise(inputs, outputs), nn.BatchNorm2d(outputs))


class AuxiliaryHead(nn.Module):
    """Classifier on the activated maps of 8x8 pixels (7x7 for ImageNet) at two thirds of the depth, for training only."""

    def __init__(self, channels: int, classes: int, *, imagenet: bool = False) -> None:
        super().__init__()
        last: list[nn.Module] = [] if imagenet else [nn.BatchNorm2d(768)]  # the published ImageNet networks have none there
        self.features = nn.Sequential(
            nn.AvgPool2d(5, 2 if imagenet else 3, 0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            *last,
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return out


class CellNetwork(nn.Module):
    """The network of a genotype, `(batch, C, H, W)` to logits `(batch, classes)`.

    Args:
        genotype: the cells, or a name among :data:`GENOTYPES`.
        input_shape: (C, H, W).
        channels: of the first cells; doubled at each reduction.
        auxiliary: give it an auxiliary head, which `forward` does not use. It needs maps of 8x8 pixels at two thirds of the depth (7x7 for
            ImageNet): pictures of 32 (224) pixels.
        imagenet: a stem of three convolutions that divides each side by 8.
        pool_norm: normalise pools, as the search network does.

    Raises:
        UserError: for an unknown name, a cell that is none, fewer than three cells, or pictures that do not fit.
    """

    def __init__(
        self,
        genotype: Genotype | str,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        *,
        channels: int = 36,
        cells: int = 20,
        auxiliary: bool = False,
        imagenet: bool = False,
        pool_norm: bool = False,
    ) -> None:
        super().__init__()
        found = genotype_named(genotype) if isinstance(genotype, str) else genotype
        check_genotype(found)
        check_size(input_shape, channels, cells)
        self.input_shape, self.classes, self.genotype = input_shape, classes, found
        self.relu = nn.ReLU()
        before, previous = self._stems(input_shape[0], channels, imagenet)
        self.cells = nn.ModuleList()
        self.auxiliary_after = 2 * cells // 3
        self.auxiliary: AuxiliaryHead | None = None
        after_reduction = imagenet
        for number in range(cells):
            reduction = number in reductions(cells)
            channels = 2 * channels if reduction else channels
            edges = found.reduce if reduction else found.normal
            self.cells.append(
                PlainCell(edges, before, previous, channels, reduction=reduction, after_reduction=after_reduction, pool_norm=pool_norm)
            )
            before, previous, after_reduction = previous, 4 * channels, reduction
            if auxiliary and number == self.auxiliary_after:
                _check_auxiliary(input_shape, cells, imagenet)
                self.auxiliary = AuxiliaryHead(previous, classes, imagenet=imagenet)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous, classes)

    def _stems(self, colours: int, channels: int, imagenet: bool) -> tuple[int, int]:
        """Make the stem; the widths of what the first cell is given."""
        if not imagenet:
            self.stem = nn.Sequential(nn.Conv2d(colours, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels))
            self.stem2: nn.Module | None = None
            return 3 * channels, 3 * channels
        half = channels // 2
        first = (nn.Conv2d(colours, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True))
        self.stem = nn.Sequential(*first, nn.Conv2d(half, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels))
        self.stem2 = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels))
        return channels, channels

    def forward(self, x: Tensor) -> Tensor:
        features, _ = self._features(x, 0.0, False)
        out: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return out

    def training_outputs(self, x: Tensor, drop_path: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Logits `(batch, classes)`, and those of the auxiliary head if there is one. Paths are dropped at rate `drop_path`."""
        features, auxiliary = self._features(x, drop_path, self.auxiliary is not None)
        return self.classifier(torch.flatten(self.pool(features), 1)), auxiliary

    def _features(self, x: Tensor, drop_path: float, with_auxiliary: bool) -> tuple[Tensor, Tensor | None]:
        s0 = s1 = self.relu(self.stem(x))
        if self.stem2 is not None:
            s1 = self.relu(self.stem2(s0))
        auxiliary: Tensor | None = None
        out = s1
        cell: Any  # a PlainCell; torch's containers hold modules of any kind
        for number, cell in enumerate(self.cells):
            out = cell.dropping(s0, s1, drop_path) if drop_path > 0.0 else cell(s0, s1)
            if number + 1 < len(self.cells):
                s0, s1 = s1, self.relu(out)
            if with_auxiliary and number == self.auxiliary_after:
                assert self.auxiliary is not None
                auxiliary = self.auxiliary(s1)
        return out, auxiliary


def genotype_named(name: str) -> Genotype:
    """One of :data:`GENOTYPES`. Raises UserError for another name."""
    if name not in GENOTYPES:
        raise UserError(f"genotype: expected one of {', '.join(GENOTYPES)}, got '{name}'")
    return GENOTYPES[name]


def check_size(input_shape: Sequence[int], channels: int, cells: int) -> None:
    """Raise UserError for cells, channels or pictures of no size. Fewer than three cells have no normal one."""
    if cells < 3 or channels < 2:
        raise UserError(f"darts: expected at least 3 cells and 2 channels, got {cells} and {channels}")
    if min(input_shape[1:]) < 4:
        raise UserError(f"darts: expected pictures of at least 4x4 pixels, got {input_shape[1]}x{input_shape[2]}")


def _check_auxiliary(input_shape: tuple[int, int, int], cells: int, imagenet: bool) -> None:
    size = 224 if imagenet else 32
    if input_shape[1:] != (size, size) or cells < 4:
        raise UserError(
            f"auxiliary: the head is made for pictures of {size}x{size} pixels and at least 4 cells, got "
            f"{input_shape[1]}x{input_shape[2]} and {cells}; leave it out"
        )


__all__ = ["GENOTYPES", "AuxiliaryHead", "CellNetwork", "Edges", "Genotype", "PlainCell", "check_genotype", "genotype_named", "reductions"]
