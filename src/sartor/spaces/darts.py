"""The cell space of DARTS (Liu et al. 2019, "DARTS: Differentiable architecture search", section 2), searchable in one set of weights.

A cell has two inputs (nodes 0 and 1: the outputs of the two cells before it) and four nodes (2 to 5), each the sum of operations on earlier
nodes; its output joins the four. There is a normal and a reduction cell, the latter at one and two thirds of the depth.

Two spaces belong to it. In :data:`RELAXED`, what gradients search, every one of the 14 edges of a cell has a choice among eight
operations, and a node sums all its edges. In :data:`SPACE`, what can be derived from it, a node has exactly two of them: the inputs of a
node are a choice among pairs of earlier nodes, an edge's operation is a choice that exists where the edge does, and it is never `none`.
The network takes architectures of either, and mixtures of both.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.extract import Net
from sartor.hardware.cost import Factor
from sartor.hardware.graph import OpGraph
from sartor.layers.choice import AnyArch
from sartor.layers.primitives import NONE, PRIMITIVES, copy_weights
from sartor.spaces.darts_cell import CELLS, NODES, MixedCell, edge_name, inputs_name, normalised, pairs, plan_of, presence
from sartor.spaces.darts_costs import cell_factors, constant_factor
from sartor.spaces.darts_eval import GENOTYPES, CellNetwork, Genotype, check_genotype, check_size, genotype_named, reductions
from sartor.spaces.darts_graph import cell_shapes, op_graph

#: Edges by the node that they enter, the normal cell's first: what edge normalisation weighs against each other.
INCOMING: tuple[tuple[str, ...], ...] = tuple(
    tuple(edge_name(cell, source, target) for source in range(target)) for cell in CELLS for target in NODES
)
RELAXED = Space({name: PRIMITIVES for group in INCOMING for name in group})


def _discrete() -> Space:
    choices: dict[str, tuple[str, ...]] = {}
    conditions: dict[str, dict[str, list[str]]] = {}
    for cell, target in itertools.product(CELLS, NODES):
        labels = {pair: f"{pair[0]},{pair[1]}" for pair in pairs(target)}
        if len(labels) > 1:
            choices[inputs_name(cell, target)] = tuple(labels.values())
        for source in range(target):
            name = edge_name(cell, source, target)
            choices[name] = PRIMITIVES
            if len(labels) > 1:
                conditions[name] = {inputs_name(cell, target): [label for pair, label in labels.items() if source in pair]}
    kept = [index for index in range(len(PRIMITIVES)) if index != NONE]
    return Space(choices, conditions, allowed=dict.fromkeys(RELAXED.choices, kept))


SPACE = _discrete()


# -- genotypes ----------------------------------------------------------------------------------------------------------------


def arch_of(genotype: Genotype | str) -> Arch:
    """The architecture of a genotype, or of one of the published ones by name.

    Raises:
        UserError: for an unknown name, or what is no genotype.
    """
    genotype = genotype_named(genotype) if isinstance(genotype, str) else genotype
    check_genotype(genotype)
    values: dict[str, int] = {}
    for cell, edges in zip(CELLS, genotype, strict=True):
        for target, (first, second) in zip(NODES, zip(edges[::2], edges[1::2], strict=True), strict=True):
            pair = (min(first[1], second[1]), max(first[1], second[1]))
            if len(pairs(target)) > 1:
                values[inputs_name(cell, target)] = pairs(target).index(pair)
            for op, source in (first, second):
                values[edge_name(cell, source, target)] = PRIMITIVES.index(op)
    return SPACE.canonical(values)


def genotype_of(arch: Mapping[str, int]) -> Genotype:
    """Inverse of :func:`arch_of`, each node's edges by source."""
    cells = []
    for cell in CELLS:
        edges: list[tuple[str, int]] = []
        for target in NODES:
            edges += [(PRIMITIVES[arch[edge_name(cell, s, target)]], s) for s in pairs(target)[arch.get(inputs_name(cell, target), 0)]]
        cells.append(tuple(edges))
    return Genotype(*cells)


def derive(mixture: Mapping[str, int | Mapping[int, Any]]) -> Arch:
    """The architecture that a mixture stands for, by the paper's rule (section 2.4): of the edges into each node, the two whose strongest
    operation other than `none` is strongest, each with that operation.

    Weights are compared as they are, so that edge weights which multiply them (Xu et al. 2020, PC-DARTS) take part. Of equal ones the first
    stays, as in the published code. A mixture over :data:`SPACE` may weigh the pairs of inputs too: an edge then counts as often as it is
    among them.

    Raises:
        UserError: if a node has fewer than two edges that hold anything but `none`.
    """
    values: dict[str, int] = {}
    for cell, target in itertools.product(CELLS, NODES):
        present = presence(mixture, cell, target)
        strongest: dict[int, tuple[float, int]] = {}
        for source in range(target):
            value = mixture.get(edge_name(cell, source, target), NONE)
            weights = {value: 1.0} if isinstance(value, int) else dict(value)
            real = {i: present[source] * float(w) for i, w in weights.items() if i != NONE}
            if real and present[source]:
                option = min(real, key=lambda i: (-real[i], i))
                strongest[source] = (real[option], option)
        if len(strongest) < 2:
            raise UserError(f"derive: expected two edges with an operation into node {target} of the {cell} cell, got {len(strongest)}")
        kept = sorted(sorted(strongest, key=lambda s: (-strongest[s][0], s))[:2])
        if len(pairs(target)) > 1:
            values[inputs_name(cell, target)] = pairs(target).index((kept[0], kept[1]))
        values.update({edge_name(cell, source, target): strongest[source][1] for source in kept})
    return SPACE.canonical(values)


# -- the network --------------------------------------------------------------------------------------------------------------


class DartsNet(Net):
    """The search network, `(batch, C, H, W)` to logits `(batch, classes)`: all cells with all edges and all operations.

    Its `space` is :data:`SPACE`; a policy that relaxes every edge is made from `relaxed` with ``derive=net.derive``, and with
    ``edges=net.incoming`` where edges into a node compete (PC-DARTS).

    Args:
        channels: of the first cells, doubled at each reduction; the paper searches with 16.
        cells: the paper searches with 8 (P-DARTS with 5, 11 and 17).
        k: the mixed operations run on 1/k of the channels (PC-DARTS, see :class:`sartor.spaces.darts_cell.MixedCell`).
        fast: the mixed operation of :mod:`sartor.layers.mixed`; False gives the textbook one, which computes the same several times
            slower and with more memory.

    Raises:
        UserError: for fewer than three cells or pictures under four pixels.
    """

    relaxed: Space = RELAXED
    incoming: tuple[tuple[str, ...], ...] = INCOMING

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, *, channels: int = 16, cells: int = 8, k: int = 1, fast: bool = True
    ) -> None:
        super().__init__(input_shape, classes)
        check_size(self.input_shape, channels, cells)
        self.channels, self.k, self.fast, self.drops_skips = channels, k, fast, False
        width = 3 * channels
        self.stem = nn.Conv2d(self.input_shape[0], width, 3, padding=1, bias=False)
        self.stem_scale, self.stem_shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.cells = nn.ModuleList()
        before, previous, after_reduction = width, width, False
        for number in range(cells):
            reduction = number in reductions(cells)
            channels = 2 * channels if reduction else channels
            self.cells.append(MixedCell(CELLS[reduction], before, previous, channels, after_reduction=after_reduction, k=k))
            before, previous, after_reduction = previous, 4 * channels, reduction
        self.classifier = nn.Linear(previous, classes)

    @cached_property
    def space(self) -> Space:
        return SPACE

    @staticmethod
    def derive(mixture: Mapping[str, int | Mapping[int, Any]]) -> Arch:
        return derive(mixture)

    def partial_channels(self, k: int) -> DartsNet:
        """A copy whose mixed operations run on 1/k of the channels, with new weights there; all other weights are copied."""
        twin = DartsNet(self.input_shape, self.classes, channels=self.channels, cells=len(self.cells), k=k, fast=self.fast)
        own = {name: value for name, value in self.state_dict().items() if ".edges." not in name}
        twin.load_state_dict(own, strict=False)
        twin.drops_skips = self.drops_skips
        return twin.train(self.training)

    def deepened(self, factor: float) -> DartsNet:
        """A new network of so many times the cells (Chen et al. 2019, P-DARTS, section 3.2)."""
        cells = round(factor * len(self.cells))
        return DartsNet(self.input_shape, self.classes, channels=self.channels, cells=cells, k=self.k, fast=self.fast)

    def skip_dropout(self) -> DartsNet:
        """A copy whose identities drop out at the rate `drop_path` (Chen et al. 2019, P-DARTS, section 3.3)."""
        twin = copy.deepcopy(self)
        twin.drops_skips = True
        return twin

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        """Logits. `drop_path` is the dropout of identities in a network of :meth:`skip_dropout`, else without effect."""
        plans = {cell: plan_of(arch, cell, self.stem_scale, passing=self.k > 1) for cell in CELLS}
        rate = drop_path if self.drops_skips else 0.0
        x = normalised(self.stem(x.contiguous(memory_format=torch.channels_last)), self.fast)
        s0 = s1 = torch.relu(x * self.stem_scale.view(1, -1, 1, 1) + self.stem_shift.view(1, -1, 1, 1))
        out = s1
        cell: Any  # a MixedCell; torch's containers hold modules of any kind
        for number, cell in enumerate(self.cells):
            out = cell(s0, s1, plans[cell.kind], self.fast, rate)
            if number + 1 < len(self.cells):
                s0, s1 = s1, torch.relu(out)
        logits: Tensor = self.classifier(out.mean((2, 3)))
        return logits

    def _plain(self, arch: Mapping[str, int]) -> CellNetwork:
        return CellNetwork(genotype_of(arch), self.input_shape, self.classes, channels=self.channels, cells=len(self.cells), pool_norm=True)

    def extract(self, arch: Mapping[str, int]) -> CellNetwork:
        """The plain network of a discrete architecture, with normalised pools as in the search.

        Raises:
            UserError: from a network with partial channels, whose operations have the weights of a part only.
        """
        cells: list[Any] = list(self.cells)
        if self.k > 1:
            raise UserError("darts: a network with partial channels is for searching; extract from one with k=1")
        found = self.space.canonical(arch)
        plain = self._plain(found)
        copy_weights(self.stem, plain.stem)
        norm: Any = plain.stem[1]
        norm.weight.data.copy_(self.stem_scale.detach())
        norm.bias.data.copy_(self.stem_shift.detach())
        for cell, twin in zip(cells, plain.cells, strict=True):
            cell.copy_to(twin, found)
        plain.classifier.load_state_dict(self.classifier.state_dict())
        return plain.to(self.stem.weight.dtype).train(self.training)

    def _graph(self, arch: Mapping[str, int]) -> tuple[OpGraph, int]:
        key = self.space.canonical(arch)
        if key not in self._graphs:
            if len(self._graphs) >= 2_000:
                self._graphs.clear()
            self._graphs[key] = op_graph(
                genotype_of(key), self.input_shape, self.classes, channels=self.channels, cells=len(self.cells), pool_norm=True
            )
        return self._graphs[key]

    @cached_property
    def _factors(self) -> list[Factor]:
        shapes = cell_shapes(self.input_shape, channels=self.channels, cells=len(self.cells))
        found = [factor for cell in shapes for factor in cell_factors(cell, CELLS[cell.reduction])]
        return [*found, constant_factor(self.graph, SPACE.at(0), found)]


__all__ = [
    "CELLS", "GENOTYPES", "INCOMING", "NODES", "RELAXED", "SPACE", "DartsNet", "Genotype", "arch_of", "derive", "edge_name",
    "genotype_of", "inputs_name",
]  # fmt: skip
