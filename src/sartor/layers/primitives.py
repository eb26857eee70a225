"""Candidate operations of the DARTS cell (Liu et al. 2019, section 3.1 and appendix A), in three forms.

`forward(x)` is the textbook form, with batch statistics; `term(node)` is what :func:`sartor.layers.mixed.mixed_sum` adds up, reading from a
:class:`Node` what the candidates on all its edges share; :func:`plain_operation` makes the ordinary torch module of an extracted or
evaluated network, to which :func:`copy_weights` brings the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.layers.depthwise import depthwise_conv2d
from sartor.layers.mixed import EPS, Term, average_pool, channel_norm, pointwise_norms, to_phases

#: In the order of the published code, which is that of the options of every edge.
PRIMITIVES = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
NONE = PRIMITIVES.index("none")
SKIP = PRIMITIVES.index("skip_connect")


class Node:
    """A node of the cell `(batch, C, H, W)`, and what the candidates on all edges from it share, made when first asked for.

    `stride` is that of the edges that leave it.
    """

    def __init__(self, x: Tensor, stride: int) -> None:
        self.x, self.stride = x.contiguous(memory_format=torch.channels_last), stride

    @cached_property
    def relu(self) -> Tensor:
        return torch.relu(self.x)

    @cached_property
    def dilated(self) -> tuple[Tensor, bool]:
        """The activated map on which a convolution of dilation 2 is an ordinary one of stride 1, and whether it is in phases."""
        if self.stride == 2:  # all it reads lies on the pixels of even row and column
            return self.relu[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), False
        return to_phases(self.relu), True

    @property
    def divisible(self) -> bool:
        """Whether the phases of the map are of one size."""
        return self.stride == 2 or not (self.x.shape[2] % 2 or self.x.shape[3] % 2)

    @cached_property
    def corners(self) -> Tensor:
        """The activated pixels at even and at odd places, side by side: `(batch, 2 C, H / 2, W / 2)`, what a factorised reduction reads."""
        odd = F.pad(self.relu, (-1, 1, -1, 1))
        return torch.cat([self.relu[:, :, ::2, ::2], odd[:, :, ::2, ::2]], 1).contiguous(memory_format=torch.channels_last)

    @cached_property
    def max_pool(self) -> Tensor:
        return channel_norm(F.max_pool2d(self.x, 3, self.stride, 1))

    @cached_property
    def average_pool(self) -> Tensor:
        return channel_norm(average_pool(self.x, self.stride))


def _norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, None, None, training=True, eps=EPS)


def depthwise(channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)


def pointwise(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class Candidate(nn.Module):
    """One option of an edge.

    `term` gives its summand, None adding nothing. A candidate that needs a normalised and activated map of its own first has `before`:
    (map, weight) of the 1x1 convolution that makes it, to be normalised with those of other candidates; `term` is then given the result.
    """

    def before(self, node: Node) -> tuple[Tensor, Tensor] | None:
        return None

    def term(self, node: Node, inner: Tensor | None = None) -> Term | None:
        raise NotImplementedError


def terms_of(candidates: Sequence[tuple[Candidate, Node]]) -> list[Term | None]:
    """The summands of candidates, each on the edge from its node."""
    befores = [option.before(node) for option, node in candidates]
    waiting = [before for before in befores if before is not None]
    inner = iter(pointwise_norms([z for z, _ in waiting], [w for _, w in waiting], relu=True) if waiting else ())
    return [
        option.term(node) if before is None else option.term(node, next(inner))
        for (option, node), before in zip(candidates, befores, strict=True)
    ]


class Zero(Candidate):
    """`none`: carries nothing."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0

    def term(self, node: Node, inner: Tensor | None = None) -> None:
        return None


class Pool(Candidate):
    """3x3 max or average pool, normalised. The padding is not counted."""

    def __init__(self, kind: str, stride: int) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "max":
            return _norm(F.max_pool2d(x, 3, self.stride, 1))
        return _norm(F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False))

    def term(self, node: Node, inner: Tensor | None = None) -> Term:
        return Term(node.max_pool if self.kind == "max" else node.average_pool)


class Skip(Candidate):
    """Identity."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def term(self, node: Node, inner: Tensor | None = None) -> Term:
        return Term(node.x)


class FactorizedReduce(Candidate):
    """ReLU, two 1x1 convolutions of stride 2, the second one pixel further down and right, side by side, normalised: a skip of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_1 = pointwise(inputs, outputs - outputs // 2, 2)
        self.conv_2 = pointwise(inputs, outputs // 2, 2)

    def join(self, x: Tensor) -> Tensor:
        """Both convolutions of an activated map, side by side."""
        return torch.cat([self.conv_1(x), self.conv_2(F.pad(x, (-1, 1, -1, 1)))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return _norm(self.join(torch.relu(x)))

    def term(self, node: Node, inner: Tensor | None = None) -> Term:
        return Term(node.corners, torch.block_diag(self.conv_1.weight.flatten(1), self.conv_2.weight.flatten(1)))


class SeparableConv(Candidate):
    """ReLU, depthwise convolution, 1x1 convolution, normalisation: all twice, the stride in the first."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise_1, self.pointwise_1 = depthwise(channels, kernel, stride), pointwise(channels, channels)
        self.depthwise_2, self.pointwise_2 = depthwise(channels, kernel), pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = _norm(self.pointwise_1(self.depthwise_1(torch.relu(x))))
        return _norm(self.pointwise_2(self.depthwise_2(torch.relu(x))))

    def before(self, node: Node) -> tuple[Tensor, Tensor]:
        first = self.depthwise_1(node.relu) if node.stride == 2 else depthwise_conv2d(node.relu, self.depthwise_1.weight)
        return first, self.pointwise_1.weight

    def term(self, node: Node, inner: Tensor | None = None) -> Term:
        assert inner is not None
        return Term(depthwise_conv2d(inner, self.depthwise_2.weight), self.pointwise_2.weight)


class DilatedConv(Candidate):
    """ReLU, depthwise convolution of dilation 2, 1x1 convolution, normalisation."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise(channels, kernel, stride, 2), pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return _norm(self.pointwise(self.depthwise(torch.relu(x))))

    def term(self, node: Node, inner: Tensor | None = None) -> Term:
        if not node.divisible:
            return Term(self.depthwise(node.relu), self.pointwise.weight)
        x, phases = node.dilated
        return Term(depthwise_conv2d(x, self.depthwise.weight), self.pointwise.weight, phases)


def candidate(name: str, channels: int, stride: int) -> Candidate:
    """The searchable form of one of :data:`PRIMITIVES`."""
    if name == "none":
        return Zero(stride)
    if name in ("max_pool_3x3", "avg_pool_3x3"):
        return Pool(name[:3], stride)
    if name == "skip_connect":
        return Skip() if stride == 1 else FactorizedReduce(channels, channels)
    kernel = int(name[-1])
    return SeparableConv(channels, kernel, stride) if name.startswith("sep") else DilatedConv(channels, kernel, stride)


# -- plain counterparts -----------------------------------------------------------------------------------------------------------

Norm = Callable[[int], nn.Module]


class PlainFactorizedReduce(nn.Module):
    """:class:`FactorizedReduce` of torch layers, without its ReLU. The shift by one pixel is a padding of minus one."""

    def __init__(self, inputs: int, outputs: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = pointwise(inputs, outputs - outputs // 2, 2), pointwise(inputs, outputs // 2, 2)
        self.shift = nn.ZeroPad2d((-1, 1, -1, 1))
        self.norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(torch.cat([self.conv_1(x), self.conv_2(self.shift(x))], 1))
        return out


def plain_operation(name: str, channels: int, stride: int, *, pool_norm: bool = False) -> nn.Module:
    """A primitive as ordinary torch layers with batch normalisation that keeps statistics, without its leading ReLU (:func:`activated`).

    `pool_norm`: pools are normalised, as in the search network; in the evaluation network they are not.
    """
    if name in ("max_pool_3x3", "avg_pool_3x3"):
        pool = nn.MaxPool2d(3, stride, 1) if name.startswith("max") else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(channels)) if pool_norm else pool
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else PlainFactorizedReduce(channels, channels)
    kernel = int(name[-1])
    tail = (pointwise(channels, channels), nn.BatchNorm2d(channels))
    if name.startswith("dil"):
        return nn.Sequential(depthwise(channels, kernel, stride, 2), *tail)
    again = (nn.ReLU(), depthwise(channels, kernel), pointwise(channels, channels), nn.BatchNorm2d(channels))
    return nn.Sequential(depthwise(channels, kernel, stride), *tail, *again)


def activated(name: str, stride: int) -> bool:
    """Whether a primitive begins with a ReLU."""
    return name.endswith(("conv_3x3", "conv_5x5")) or (name == "skip_connect" and stride == 2)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """The convolution weights of a searchable module into its plain counterpart, in order; normalisation has none to bring."""
    ours = [m for m in source.modules() if isinstance(m, nn.Conv2d)]
    theirs = [m for m in target.modules() if isinstance(m, nn.Conv2d)]
    for a, b in zip(ours, theirs, strict=True):
        b.weight.data.copy_(a.weight.detach())


__all__ = [
    "NONE", "PRIMITIVES", "SKIP", "Candidate", "FactorizedReduce", "Node", "PlainFactorizedReduce", "activated", "candidate",
    "copy_weights", "depthwise", "plain_operation", "pointwise", "terms_of",
]  # fmt: skip
