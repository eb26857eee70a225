"""The cell of the DARTS search network: all edges, all operations, and what of them an architecture asks for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.layers.choice import AnyArch, Value
from sartor.layers.mixed import EPS, Term, channel_norm, mixed_sum
from sartor.layers.plain import shuffle_channels
from sartor.layers.primitives import NONE, PRIMITIVES, SKIP, FactorizedReduce, Node, candidate, copy_weights, pointwise, terms_of
from sartor.spaces.darts_eval import PlainCell

CELLS = ("normal", "reduce")
NODES = (2, 3, 4, 5)


def edge_name(cell: str, source: int, target: int) -> str:
    return f"{cell}.edge{source}{target}"


def inputs_name(cell: str, target: int) -> str:
    return f"{cell}.inputs{target}"


def pairs(target: int) -> list[tuple[int, int]]:
    """Pairs of earlier nodes that may enter a node, in the order of its choice's options."""
    return list(itertools.combinations(range(target), 2))


def presence(arch: Mapping[str, Any], cell: str, target: int) -> list[Any]:
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


# -- what an architecture asks for --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entering:
    """What enters one node: (source, option) of every summand with their weights `(summands,)`, and the edges' sources with the sum of all
    weights on each, `none` included, `(edges,)`."""

    entries: tuple[tuple[int, int], ...]
    shares: Tensor
    sources: tuple[int, ...]
    totals: Tensor


Plan = tuple[Entering, ...]


def plan_of(arch: AnyArch, cell: str, like: Tensor, *, passing: bool = True) -> Plan:
    """What enters the four nodes, weights in the type of `like`. `none` carries nothing and is no summand. Without `passing`, edges have
    no sums of their weights: only channels that pass the operations by need them.

    Raises:
        UserError: if `arch` lacks an edge.
    """
    plan = []
    for target in NODES:
        entries: list[tuple[int, int]] = []
        shares: list[Any] = []
        totals: dict[int, Any] = {}
        for source, weight in enumerate(presence(arch, cell, target)):
            if isinstance(weight, float) and weight == 0.0:
                continue
            name = edge_name(cell, source, target)
            if name not in arch:
                raise UserError(f"the architecture has no choice '{name}', which the {cell} cell reads")
            value = arch[name]
            shared = _scaled(value, weight)
            entries += [(source, option) for option in shared if option != NONE]
            shares += [w for option, w in shared.items() if option != NONE]
            if passing:
                totals[source] = sum(shared.values())
        plan.append(Entering(tuple(entries), _stacked(shares, like), tuple(totals), _stacked(list(totals.values()), like)))
    return tuple(plan)


def _scaled(value: Value, weight: Any) -> dict[int, Any]:
    if not isinstance(value, Mapping):
        return {int(value): weight}
    if isinstance(weight, float) and weight == 1.0:  # the common case: hundreds of small products less
        return dict(value)
    return {option: share * weight for option, share in value.items()}


def _stacked(shares: Sequence[Any], like: Tensor) -> Tensor:
    if not any(isinstance(share, Tensor) for share in shares):
        return torch.tensor(shares, dtype=like.dtype, device=like.device)
    return torch.stack([torch.as_tensor(share, dtype=like.dtype, device=like.device) for share in shares])


# -- the cell -----------------------------------------------------------------------------------------------------------------


class Preprocess(nn.Module):
    """1x1 convolution of an activated map and normalisation, `(batch, inputs, H, W)` to `(batch, channels, H, W)`."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = pointwise(inputs, channels)

    def forward(self, x: Tensor, fast: bool) -> Tensor:
        return normalised(self.conv(x), fast)


class PreprocessReduce(nn.Module):
    """The same at half the resolution."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.reduce = FactorizedReduce(inputs, channels)

    def forward(self, x: Tensor, fast: bool) -> Tensor:
        return normalised(self.reduce.join(x), fast)


def normalised(x: Tensor, fast: bool) -> Tensor:
    return channel_norm(x) if fast else F.batch_norm(x, None, None, None, None, training=True, eps=EPS)


class MixedCell(nn.Module):
    """One cell with all 14 edges. Takes the activated outputs of the two cells before it; gives `(batch, 4 * channels, H, W)`.

    `k`: the operations run on 1/k of the channels; the others pass by, weighted by the sum of the edge's weights, and a channel shuffle of
    k groups mixes the two (Xu et al. 2020, PC-DARTS, section 3.2, equation 2). The shuffle is the same on every edge, so that one, of the
    node's sum, does it.
    """

    def __init__(self, kind: str, before: int, previous: int, channels: int, *, after_reduction: bool, k: int = 1) -> None:
        super().__init__()
        self.kind, self.k = kind, max(d for d in range(1, k + 1) if channels % d == 0)
        self.part = channels // self.k
        self.preprocess0 = PreprocessReduce(before, channels) if after_reduction else Preprocess(before, channels)
        self.preprocess1 = Preprocess(previous, channels)
        self.edges = nn.ModuleDict()
        for target in NODES:
            for source in range(target):
                stride = self.stride(source)
                self.edges[f"{source}{target}"] = nn.ModuleList(candidate(name, self.part, stride) for name in PRIMITIVES)

    def stride(self, source: int) -> int:
        return 2 if self.kind == "reduce" and source < 2 else 1

    def option(self, source: int, target: int, option: int) -> Any:
        edge: Any = self.edges[f"{source}{target}"]
        return edge[option]

    def forward(self, s0: Tensor, s1: Tensor, plan: Plan, fast: bool, skip_dropout: float = 0.0) -> Tensor:
        nodes = [self.preprocess0(s0, fast), self.preprocess1(s1, fast)]
        shared: list[Node] = []
        passing: list[Tensor] = []
        for target, entering in zip(NODES, plan, strict=True):
            for x in nodes[len(shared) :]:
                stride = self.stride(len(shared))
                shared.append(Node(x if self.k == 1 else x[:, : self.part], stride))
                if self.k > 1:
                    rest = x[:, self.part :]
                    passing.append(F.max_pool2d(rest, 2, 2, ceil_mode=True) if stride == 2 else rest)
            sum_up = self._fast if fast else self._textbook
            x = sum_up(target, shared, entering, skip_dropout)
            if self.k > 1:
                past = [Term(passing[source]) for source in entering.sources]
                rest = mixed_sum(past, entering.totals) if past else passing[0] * 0.0
                x = shuffle_channels(torch.cat([x, rest], 1).contiguous(memory_format=torch.channels_last), self.k)
            nodes.append(x)
        return torch.cat(nodes[2:], 1)

    def _fast(self, target: int, nodes: list[Node], entering: Entering, skip_dropout: float) -> Tensor:
        dropped = [self._drops(source, option, skip_dropout) for source, option in entering.entries]
        kept = [pair for pair, drop in zip(entering.entries, dropped, strict=True) if not drop]
        found = iter(terms_of([(self.option(source, target, option), nodes[source]) for source, option in kept]))
        terms = [
            Term(F.dropout(nodes[source].x, skip_dropout)) if drop else next(found)
            for (source, _), drop in zip(entering.entries, dropped, strict=True)
        ]
        return mixed_sum([term for term in terms if term is not None], entering.shares) if terms else self._nothing(nodes[0].x)

    def _textbook(self, target: int, nodes: list[Node], entering: Entering, skip_dropout: float) -> Tensor:
        total: Tensor | None = None
        for (source, option), share in zip(entering.entries, entering.shares.unbind(0), strict=True):
            x = nodes[source].x
            dropped = self._drops(source, option, skip_dropout)
            part = share * (F.dropout(x, skip_dropout) if dropped else self.option(source, target, option)(x))
            total = part if total is None else total + part
        return self._nothing(nodes[0].x) if total is None else total

    def _drops(self, source: int, option: int, rate: float) -> bool:
        return rate > 0.0 and option == SKIP and self.stride(source) == 1

    def _nothing(self, x: Tensor) -> Tensor:
        """The value of a node that only `none` enters."""
        stride = self.stride(0)
        return x[:, :, ::stride, ::stride] * 0.0

    def copy_to(self, twin: PlainCell, arch: Mapping[str, int]) -> None:
        """Copy the weights of a discrete architecture into its plain cell."""
        copy_weights(self.preprocess0, twin.preprocess0)
        copy_weights(self.preprocess1, twin.preprocess1)
        for name, module in twin.ops.items():
            source, target = int(name[-2]), int(name[-1])
            copy_weights(self.option(source, target, arch[edge_name(self.kind, source, target)]), module)


__all__ = [
    "CELLS", "NODES", "Entering", "MixedCell", "Plan", "edge_name", "inputs_name", "normalised", "pairs", "plan_of", "presence",
]  # fmt: skip
