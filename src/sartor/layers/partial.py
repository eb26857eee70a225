"""Mixed operations on a part of the channels (PC-DARTS), and skip connections with dropout (P-DARTS): search-time forms of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.layers.base import Chain, OneOf, Searchable, plain
from sartor.layers.choice import AnyArch
from sartor.layers.conv import ConvBNAct, ElasticBatchNorm2d, ElasticConv2d
from sartor.layers.plain import PartialBranch, shuffle_channels


class PartialChannels(Searchable):
    """A mixed operation on the first 1/k of the channels; the others pass by, and a channel shuffle mixes the two.

    Xu et al. 2020, "PC-DARTS: Partial channel connections for memory-efficient architecture search", section 3.2, equation 2; the
    shuffle of k groups is that of the published code: without it the same channels would pass by in every layer. What passes by is
    weighted by the sum of the mixture's weights, 1 without edge normalisation and the weight of the edge with it (section 3.3, equation 4).

    Args:
        inner: made for 1/k of the channels.
        k: divides the channels.
    """

    def __init__(self, inner: OneOf, k: int) -> None:
        super().__init__()
        self.inner, self.k = inner, k

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        part = x.shape[1] // self.k
        mixed = self.inner(x[:, :part], arch, drop_path)
        rest = x[:, part:]
        if mixed.shape[-1] != rest.shape[-1]:
            rest = F.max_pool2d(rest, 2, 2)
        value = self.inner.choice.value(arch)
        if isinstance(value, Mapping):
            rest = rest * sum(value.values())
        return shuffle_channels(torch.cat((mixed, rest), 1), self.k)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return PartialBranch(plain(self.inner, arch), self.k)


class SkipDropout(Searchable):
    """A skip connection with dropout of the rate that the network is given as `drop_path` (Chen et al. 2019, P-DARTS, section 3.3)."""

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        return F.dropout(x, drop_path) if drop_path > 0 else x

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return nn.Identity()


# -- modified networks -----------------------------------------------------------------------------------------------------


def partial_channels(net: nn.Module, k: int) -> nn.Module:
    """A copy of `net` whose mixed operations run on 1/k of the channels, with new weights there; all other weights are copied.

    Every :class:`OneOf` whose options keep the number of channels takes part, with the largest divisor of its channels up to `k`. A network
    that builds its mixed operations otherwise has a method `partial_channels(k)`, which is then used.

    Raises:
        UserError: if `k` is below 1, or no mixed operation can take part.
    """
    if k < 1:
        raise UserError(f"partial channels: expected k of at least 1, got {k}")
    own: Callable[[int], nn.Module] | None = getattr(net, "partial_channels", None)
    if own is not None:
        return own(k)
    found = copied(net)
    count = 0
    for parent, name, mixed in _mixed_operations(found):
        channels = _channels(mixed)
        part = max((d for d in range(1, k + 1) if channels % d == 0), default=1) if channels else 1
        if part > 1:
            setattr(parent, name, PartialChannels(narrowed(mixed, part), part))
            count += 1
    if not count and k > 1:
        raise UserError("partial channels: this network has no mixed operation with weights of its own that keeps the number of channels")
    return found


def skip_dropout(net: nn.Module, *, label: str = "skip_connect") -> nn.Module:
    """A copy of `net` in which every option `label` that is an identity drops out at the rate `drop_path` that the network is given.

    A network that builds its operations otherwise has a method `skip_dropout()`, which is then used.

    Raises:
        UserError: if it has no such option.
    """
    own: Callable[[], nn.Module] | None = getattr(net, "skip_dropout", None)
    if own is not None:
        return own()
    found = copied(net)
    count = 0
    for _, _, mixed in _mixed_operations(found):
        for number, option in enumerate(mixed.choice.options):
            if option == label and isinstance(mixed.options[number], nn.Identity):
                mixed.options[number] = SkipDropout()
                count += 1
    if not count:
        raise UserError(f"skip dropout: this network has no option '{label}' that is an identity")
    return found


def fixed_norms(net: nn.Module) -> nn.Module:
    """A copy of `net` whose mixed operations learn no scale and shift of batch normalisation.

    Learned scales would undo the weights of the mixture (Liu et al. 2019, DARTS, appendix A.1.1).
    """
    found = copied(net)
    for _, _, mixed in _mixed_operations(found):
        for module in mixed.options.modules():
            if isinstance(module, ElasticBatchNorm2d | nn.BatchNorm2d):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)
    return found


def copied(net: nn.Module) -> nn.Module:
    """A deep copy that forgets what a network remembers of its own layers (op graphs, factors)."""
    found = copy.deepcopy(net)
    for name in ("_op_graphs", "_factors"):
        found.__dict__.pop(name, None)
    if isinstance(getattr(found, "_graphs", None), dict):
        found._graphs = {}  # type: ignore[assignment]  # an attribute of sartor.extract.Net, which lies above
    return found


def _mixed_operations(net: nn.Module) -> list[tuple[nn.Module, str, OneOf]]:
    return [(parent, name, child) for parent in net.modules() for name, child in parent.named_children() if isinstance(child, OneOf)]


def _channels(mixed: OneOf) -> int:
    """Channels in and out of a mixed operation, if all options with weights have the same there; else 0."""
    widths = [w for option in mixed.options for w in _ends(option)]
    return widths[0] if widths and len(set(widths)) == 1 else 0


def _ends(option: nn.Module) -> tuple[int, ...]:
    convs = [m for m in option.modules() if isinstance(m, ElasticConv2d | nn.Conv2d)]
    if not convs:
        return ()
    first, last = convs[0], convs[-1]
    inputs = first.in_channels if isinstance(first, nn.Conv2d) else sum(w.max for w in first.segments)
    return inputs, last.out_channels if isinstance(last, nn.Conv2d) else last.outputs.max


def _conv(m: Any, k: int) -> nn.Module:
    if len(m.segments) > 1 or m.outputs.scope or m.segments[0].scope:
        raise UserError("partial channels: a mixed operation with elastic widths cannot be narrowed")
    inputs, outputs = m.segments[0].max // k, m.outputs.max // k
    groups = max(1, m.groups // k)
    return ElasticConv2d(inputs, outputs, m.kernel, m.stride, groups=groups, depthwise=m.depthwise)


def _conv_bn_act(m: Any, k: int) -> nn.Module:
    c = m.conv
    made = ConvBNAct(
        c.segments[0].max // k, c.outputs.max // k, c.kernel, c.stride, groups=max(1, c.groups // k), depthwise=c.depthwise, act=m.act
    )
    return made


def _torch_conv(m: Any, k: int) -> nn.Module:
    return nn.Conv2d(
        m.in_channels // k, m.out_channels // k, m.kernel_size, m.stride, m.padding, m.dilation, max(1, m.groups // k), m.bias is not None
    )


#: How a layer is made anew for 1/k of its channels. To teach a kind of layer, add it here or give it a method `narrowed(k)`.
NARROWED: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    ElasticConv2d: _conv,
    ConvBNAct: _conv_bn_act,
    ElasticBatchNorm2d: lambda m, k: ElasticBatchNorm2d(m.width.max // k, m.eps),
    nn.Conv2d: _torch_conv,
    nn.BatchNorm2d: lambda m, k: nn.BatchNorm2d(m.num_features // k, m.eps, m.momentum, m.affine, m.track_running_stats),
    Chain: lambda m, k: Chain(*(narrowed(step, k) for step in m.steps)),
    nn.Sequential: lambda m, k: nn.Sequential(*(narrowed(step, k) for step in m)),
    OneOf: lambda m, k: OneOf(m.choice.name, {o: narrowed(n, k) for o, n in zip(m.choice.options, m.options, strict=True)}),
}


def narrowed(module: Any, k: int) -> Any:
    """`module` made anew for 1/k of its channels, with fresh weights.

    Raises:
        UserError: for a layer with weights of an unknown kind.
    """
    own = getattr(module, "narrowed", None)
    if callable(own):
        return own(k)
    if type(module) in NARROWED:
        return NARROWED[type(module)](module, k)
    if next(module.parameters(), None) is None:
        return copy.deepcopy(module)
    raise UserError(f"partial channels: a {type(module).__name__} cannot be narrowed; give it a method narrowed(k)")
