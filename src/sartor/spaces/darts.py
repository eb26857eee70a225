"""The cell space of DARTS (Liu et al. 2019, "DARTS: Differentiable architecture search", section 2), searchable in one set of weights.

A cell has two inputs (nodes 0 and 1: the outputs of the two cells before it) and four nodes (2 to 5), each the sum of operations on earlier
nodes; its output joins the four. There is a normal and a reduction cell, the latter at one and two thirds of the depth.

Two spaces belong to it. In :data:`RELAXED`, what gradients search, every one of the 14 edges of a cell has a choice among eight
operations, and a node sums all its edges. In :data:`SPACE`, what can be derived from it, a node has exactly two of them: the inputs of a
node are a choice among pairs of earlier nodes, an edge's operation is a choice that exists where the edge does, and it is never `none`.
The network takes architectures of either, and mixtures of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.extract import Net
from sartor.hardware.graph import OpGraph
from sartor.layers.choice import AnyArch
from sartor.layers.mixed import EPS, channel_norm, mixed_sum
from sartor.layers.primitives import NONE, PRIMITIVES, FactorizedReduce, Node, candidate, copy_weights, pointwise
from sartor.spaces.darts_eval import GENOTYPES, CellNetwork, Genotype, PlainCell, check_genotype, check_size, reductions
from sartor.spaces.darts_graph import op_graph

CELLS = ("normal", "reduce")
NODES = (2, 3, 4, 5)


def edge_name(cell: str, source: int, target: int) -> str:
    return f"{cell}.edge{source}{target}"


def inputs_name(cell: str, target: int) -> str:
    return f"{cell}.inputs{target}"


def pairs(target: int) -> list[tuple[int, int]]:
    """Pairs of earlier nodes that may enter a node, in the order of its choice's options."""
    return list(itertools.combinations(range(target), 2))


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
    if isinstance(genotype, str):
        if genotype not in GENOTYPES:
            raise UserError(f"genotype: expected one of {', '.join(GENOTYPES)}, got '{genotype}'")
        genotype = GENOTYPES[genotype]
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
        presence = _presence(mixture, cell, target)
        strongest: dict[int, tuple[float, int]] = {}
        for source in range(target):
            value = mixture.get(edge_name(cell, source, target), NONE)
            weights = {value: 1.0} if isinstance(value, int) else {i: float(w) for i, w in value.items()}
            real = {i: presence[source] * w for i, w in weights.items() if i != NONE}
            if real and presence[source]:
                option = min(real, key=lambda i: (-real[i], i))
                strongest[source] = (real[option], option)
        if len(strongest) < 2:
            raise UserError(
                f"derive: node {target} of the {cell} cell needs two edges with an operation, and the mixture has {len(strongest)}"
            )
        kept = sorted(sorted(strongest, key=lambda s: (-strongest[s][0], s))[:2])
        if len(pairs(target)) > 1:
            values[inputs_name(cell, target)] = pairs(target).index((kept[0], kept[1]))
        values.update({edge_name(cell, source, target): strongest[source][1] for source in kept})
    return SPACE.canonical(values)


def _presence(arch: Mapping[str, Any], cell: str, target: int) -> list[Any]:
    """Weight with which each earlier node enters a node: 1 where `arch` says nothing of its inputs."""
    value = arch.get(inputs_name(cell, target))
    if value is None:
        return [1.0] * target
    weights = value if isinstance(value, Mapping) else {int(value): 1.0}
    found: list[Any] = [0.0] * target
    for option, weight in weights.items():
        for source in pairs(target)[option]:
            found[source] = found[source] + weight
    return found


# -- the network --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sum:
    """What enters one node: (source, option) of every summand, and the weights `(summands,)`."""

    entries: tuple[tuple[int, int], ...]
    shares: Tensor


Plan = tuple[_Sum, ...]


def _plan(arch: AnyArch, cell: str, like: Tensor) -> Plan:
    """Summands of the four nodes. `none` carries nothing and is left out."""
    plan = []
    for target in NODES:
        presence = _presence(arch, cell, target)
        entries: list[tuple[int, int]] = []
        shares: list[Any] = []
        for source in range(target):
            if isinstance(presence[source], float) and presence[source] == 0.0:
                continue
            name = edge_name(cell, source, target)
            if name not in arch:
                raise UserError(f"the architecture has no choice '{name}', which the {cell} cell reads")
            value = arch[name]
            for option, weight in value.items() if isinstance(value, Mapping) else ((int(value), 1.0),):
                if option != NONE:
                    entries.append((source, option))
                    shares.append(weight * presence[source])
        plan.append(_Sum(tuple(entries), _stacked(shares, like)))
    return tuple(plan)


def _stacked(shares: list[Any], like: Tensor) -> Tensor:
    if not any(isinstance(share, Tensor) for share in shares):
        return torch.tensor(shares, dtype=like.dtype, device=like.device)
    return torch.stack([torch.as_tensor(share, dtype=like.dtype, device=like.device) for share in shares])


class _Preprocess(nn.Module):
    """1x1 convolution of an activated map and normalisation, `(batch, inputs, H, W)` to `(batch, channels, H, W)`."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = pointwise(inputs, channels)

    def forward(self, x: Tensor, fast: bool) -> Tensor:
        return _norm(self.conv(x), fast)


class _Reduce(nn.Module):
    """The same at half the resolution."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.reduce = FactorizedReduce(inputs, channels)

    def forward(self, x: Tensor, fast: bool) -> Tensor:
        return _norm(self.reduce.join(x), fast)


def _norm(x: Tensor, fast: bool) -> Tensor:
    if fast:
        return channel_norm(x)
    return nn.functional.batch_norm(x, None, None, None, None, training=True, eps=EPS)


class MixedCell(nn.Module):
    """One cell with all 14 edges. Takes the activated outputs of the two cells before it; gives `(batch, 4 * channels, H, W)`."""

    def __init__(self, kind: str, before: int, previous: int, channels: int, *, after_reduction: bool) -> None:
        super().__init__()
        self.kind = kind
        self.preprocess0 = _Reduce(before, channels) if after_reduction else _Preprocess(before, channels)
        self.preprocess1 = _Preprocess(previous, channels)
        self.edges = nn.ModuleDict()
        for target in NODES:
            for source in range(target):
                stride = self.stride(source)
                self.edges[f"{source}{target}"] = nn.ModuleList(candidate(name, channels, stride) for name in PRIMITIVES)

    def stride(self, source: int) -> int:
        return 2 if self.kind == "reduce" and source < 2 else 1

    def option(self, source: int, target: int, option: int) -> Any:
        edge: Any = self.edges[f"{source}{target}"]
        return edge[option]

    def forward(self, s0: Tensor, s1: Tensor, plan: Plan, fast: bool) -> Tensor:
        inputs = self.preprocess0(s0, fast), self.preprocess1(s1, fast)
        return self._fast(inputs, plan) if fast else self._textbook(inputs, plan)

    def _fast(self, inputs: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
        nodes = [Node(x, self.stride(source)) for source, x in enumerate(inputs)]
        for target, entering in zip(NODES, plan, strict=True):
            terms = [self.option(source, target, option).term(nodes[source]) for source, option in entering.entries]
            x = mixed_sum(terms, entering.shares) if terms else self._nothing(nodes[0].x)
            nodes.append(Node(x, 1))
        return torch.cat([node.x for node in nodes[2:]], 1)

    def _textbook(self, inputs: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
        nodes = list(inputs)
        for target, entering in zip(NODES, plan, strict=True):
            total: Tensor | None = None
            for (source, option), share in zip(entering.entries, entering.shares.unbind(0), strict=True):
                part = share * self.option(source, target, option)(nodes[source])
                total = part if total is None else total + part
            nodes.append(self._nothing(nodes[0]) if total is None else total)
        return torch.cat(nodes[2:], 1)

    def _nothing(self, x: Tensor) -> Tensor:
        """The value of a node that only `none` enters."""
        stride = self.stride(0)
        return x[:, :, ::stride, ::stride] * 0.0

    def plain(self, arch: Mapping[str, int], twin: PlainCell) -> None:
        """Copy the weights of a discrete architecture into its plain cell."""
        copy_weights(self.preprocess0, twin.preprocess0)
        copy_weights(self.preprocess1, twin.preprocess1)
        for name, module in twin.ops.items():
            source, target = int(name[-2]), int(name[-1])
            copy_weights(self.option(source, target, arch[edge_name(self.kind, source, target)]), module)


class DartsNet(Net):
    """The search network, `(batch, C, H, W)` to logits `(batch, classes)`: all cells with all edges and all operations.

    Its `space` is :data:`SPACE`; a policy that relaxes every edge is made from `relaxed` with ``derive=net.derive``, and with
    ``edges=net.incoming`` where edges into a node compete (PC-DARTS).

    Args:
        channels: of the first cells, doubled at each reduction; the paper searches with 16.
        cells: the paper searches with 8 (P-DARTS with 5, 11 and 17).
        fast: the mixed operation of :mod:`sartor.layers.mixed`; False gives the textbook one, which computes the same several times
            slower and with more memory.

    Raises:
        UserError: for fewer than three cells or pictures under four pixels.
    """

    relaxed: Space = RELAXED
    incoming: tuple[tuple[str, ...], ...] = INCOMING

    def __init__(self, input_shape: tuple[int, int, int], classes: int, *, channels: int = 16, cells: int = 8, fast: bool = True) -> None:
        super().__init__(input_shape, classes)
        check_size(self.input_shape, channels, cells)
        self.channels, self.fast = channels, fast
        width = 3 * channels
        self.stem = nn.Conv2d(self.input_shape[0], width, 3, padding=1, bias=False)
        self.stem_scale, self.stem_shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.cells = nn.ModuleList()
        before, previous, after_reduction = width, width, False
        for number in range(cells):
            reduction = number in reductions(cells)
            channels = 2 * channels if reduction else channels
            self.cells.append(MixedCell(CELLS[reduction], before, previous, channels, after_reduction=after_reduction))
            before, previous, after_reduction = previous, 4 * channels, reduction
        self.classifier = nn.Linear(previous, classes)

    @cached_property
    def space(self) -> Space:
        return SPACE

    @staticmethod
    def derive(mixture: Mapping[str, int | Mapping[int, Any]]) -> Arch:
        return derive(mixture)

    def forward(self, x: Tensor, arch: AnyArch) -> Tensor:  # type: ignore[override]  # Net passes drop_path to those that take it
        plans = {cell: _plan(arch, cell, self.stem_scale) for cell in CELLS}
        x = _norm(self.stem(x.contiguous(memory_format=torch.channels_last)), self.fast)
        s0 = s1 = torch.relu(x * self.stem_scale.view(1, -1, 1, 1) + self.stem_shift.view(1, -1, 1, 1))
        out = s1
        for number, cell in enumerate(self.cells):
            out = cell(s0, s1, plans[cell.kind], self.fast)
            if number + 1 < len(self.cells):
                s0, s1 = s1, torch.relu(out)
        logits: Tensor = self.classifier(out.mean((2, 3)))
        return logits

    def _plain(self, arch: Mapping[str, int]) -> CellNetwork:
        return CellNetwork(genotype_of(arch), self.input_shape, self.classes, channels=self.channels, cells=len(self.cells), pool_norm=True)

    def extract(self, arch: Mapping[str, int]) -> CellNetwork:
        """The plain network of a discrete architecture, with normalised pools as in the search."""
        found = self.space.canonical(arch)
        plain = self._plain(found)
        copy_weights(self.stem, plain.stem)
        plain.stem[1].weight.data.copy_(self.stem_scale.detach())
        plain.stem[1].bias.data.copy_(self.stem_shift.detach())
        for cell, twin in zip(self.cells, plain.cells, strict=True):
            cell.plain(found, twin)
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


__all__ = [
    "CELLS", "GENOTYPES", "INCOMING", "NODES", "RELAXED", "SPACE", "DartsNet", "Genotype", "MixedCell", "arch_of", "derive", "edge_name",
    "genotype_of", "inputs_name",
]  # fmt: skip
