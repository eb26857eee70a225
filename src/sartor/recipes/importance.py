"""Channels in the order of their importance, so that a narrower sub-net keeps the ones that matter most.

Cai et al. 2020, "Once-for-all: Train one network and specialize it for efficient deployment", section 3.3, "elastic width": the channels of
the trained network are sorted by the L1 norm of the weights that read them, which leaves its function as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.layers.blocks import SqueezeExcite
from sartor.layers.choice import Width
from sartor.layers.conv import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear

Key = tuple[tuple[str, ...], tuple[tuple[Any, int], ...]]


@dataclass
class _Group:
    """Everything that follows one width: slices (tensor, axis, first entry) permuted together, and the importance of its channels."""

    width: Width
    slices: list[tuple[Tensor, int, int]] = field(default_factory=list)
    importance: Tensor | None = None
    mixed: bool = False  # a grouped convolution reads or writes it: its channels cannot change places

    def read_by(self, strength: Tensor) -> None:
        self.importance = strength if self.importance is None else self.importance + strength


def sort_channels(net: nn.Module, space: Space, *, keep: Sequence[Arch], tolerance: float = 1e-3, seed: int = 0) -> list[str]:
    """Reorder the channels of every elastic width of `net` by falling L1 norm of the weights that read them, in place.

    A channel stays on its side of every width that `space` allows, so that all widths which are elastic already keep their channels, hence
    their function; with the largest width alone, all its channels are sorted.

    Args:
        space: the sub-space that has been trained so far.
        keep: architectures of `space` whose function must not change; it is verified on random images, and a width for which it fails (its
            channels are concatenated or shuffled by code that this function cannot see) is left as it was.
        tolerance: largest change of an output relative to the largest output.

    Returns:
        the names of the choices that decide the widths that were sorted, one entry for each width.
    """
    groups = _groups(net)
    generator = torch.Generator().manual_seed(seed)
    shape: tuple[int, ...] = getattr(net, "input_shape", (3, 32, 32))
    x = torch.randn(8, *shape, generator=generator)
    before = [_run(net, x, arch) for arch in keep]
    done: list[str] = []
    for group in groups.values():
        if group.importance is None or group.mixed or not group.width.scope:
            continue
        order = _order(group.importance, _edges(group.width, space))
        if bool((order == torch.arange(len(order))).all()):
            continue
        _permute(group, order)
        if any(_differs(_run(net, x, arch), out, tolerance) for arch, out in zip(keep, before, strict=True)):
            _permute(group, torch.argsort(order))
            continue
        done.append(" ".join(group.width.names))
    return done


def _run(net: nn.Module, x: Tensor, arch: Mapping[str, int]) -> Tensor:
    mode = net.training
    net.eval()
    with torch.no_grad():
        out: Tensor = net(x, arch)
    net.train(mode)
    return out


def _differs(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return not bool((a - b).abs().max() <= tolerance * max(1e-6, float(b.abs().max())))


def _edges(width: Width, space: Space) -> list[int]:
    """Channel counts that `space` allows, rising; the last is the largest there is."""
    counts = {
        channels
        for key, channels in width.table.items()
        if all(index in space.allowed.get(c.name, (index,)) for c, index in zip(width.scope, key, strict=True))
    }
    return sorted({*counts, width.max})


def _order(importance: Tensor, edges: Sequence[int]) -> Tensor:
    """Channels by falling importance within each band between two edges."""
    parts, low = [], 0
    for high in edges:
        parts.append(low + torch.argsort(importance[low:high], descending=True, stable=True))
        low = high
    return torch.cat(parts)


def _permute(group: _Group, order: Tensor) -> None:
    with torch.no_grad():
        for tensor, axis, start in group.slices:
            part = tensor.narrow(axis, start, len(order))
            part.copy_(part.index_select(axis, order))


def _key(width: Width) -> Key:
    """Layers whose widths follow the same choices in the same way carry the same channels."""
    return width.names, tuple(sorted(width.table.items()))


def _groups(net: nn.Module) -> dict[Key, _Group]:
    groups: dict[Key, _Group] = {}

    def group(width: Width) -> _Group:
        return groups.setdefault(_key(width), _Group(width))

    for module in net.modules():
        if isinstance(module, ElasticConv2d):
            _convolution(module, group)
        elif isinstance(module, ElasticBatchNorm2d):
            group(module.width).slices += [(module.weight, 0, 0), (module.bias, 0, 0)]
        elif isinstance(module, ElasticLinear):
            group(module.outputs).slices += [(module.weight, 0, 0), (module.bias, 0, 0)]
            group(module.inputs).slices.append((module.weight, 1, 0))
            group(module.inputs).read_by(module.weight.detach().abs().sum(0))
        elif isinstance(module, SqueezeExcite):
            group(module.channels).slices += [(module.reduce_weight, 1, 0), (module.expand_weight, 0, 0), (module.expand_bias, 0, 0)]
            squeezed = group(module.squeezed)
            squeezed.slices += [(module.reduce_weight, 0, 0), (module.reduce_bias, 0, 0), (module.expand_weight, 1, 0)]
            squeezed.read_by(module.expand_weight.detach().abs().sum((0, 2, 3)))
    return groups


def _convolution(module: ElasticConv2d, group: Any) -> None:
    group(module.outputs).slices.append((module.weight, 0, 0))
    if module.depthwise:
        return
    if module.groups > 1:
        for width in (module.outputs, *module.segments):
            group(width).mixed = True
        return
    starts = np.cumsum([0, *(w.max for w in module.segments)])
    for width, start in zip(module.segments, starts, strict=False):
        reader = group(width)
        reader.slices.append((module.weight, 1, int(start)))
        reader.read_by(module.weight.detach().narrow(1, int(start), width.max).abs().sum((0, 2, 3)))


__all__ = ["sort_channels"]
