"""The macro space: a chain of layers with skip connections (Zoph & Le 2017, "Neural Architecture Search with Reinforcement Learning",
ICLR, section 3.3; Pham et al. 2018, "Efficient Neural Architecture Search via Parameter Sharing", ICML, section 2.3).

Layer i takes the layer before it and any of the outputs 0..i-2 besides (0 is the stem), concatenates them, brings them to its width by a
1x1 convolution, and applies its operation: an ordinary or a separable convolution of a kernel, or a pool, with a stride. Pictures shrink
where a stride says so; what is taken from a larger layer is pooled down to the size of the layer before. So every string of choices builds
and runs.

With K kernels, W widths and S strides a chain of L layers has (2 (K + 1) W S)^L 2^(L (L - 1) / 2) architectures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.extract import Net
from sartor.layers.base import Chain, OneOf, Searchable
from sartor.layers.choice import AnyArch, Choice, Width
from sartor.layers.conv import ConvBNAct, ElasticLinear

_CONVOLUTIONS = ("conv", "sep_conv")
OPS = (*_CONVOLUTIONS, "avg_pool", "max_pool")
_LAYER = re.compile(r"(\w+?)(?:_(\d+)x\2)?:(\d+)/(\d+)(?:\+(\d+(?:,\d+)*))?", re.ASCII)


def size_of(layers: int, kernels: int = 3, widths: int = 3, strides: int = 2) -> int:
    """Number of architectures."""
    return int((2 * (kernels + 1) * widths * strides) ** layers * 2 ** (layers * (layers - 1) // 2))


def to_string(space: Space, arch: Mapping[str, int]) -> str:
    """One word a layer: ``conv_5x5:32/2+0,1`` is a 5x5 convolution of width 32 and stride 2, with outputs 0 and 1 as extra inputs."""
    labels = space.labels(space.canonical(arch))
    words = []
    for i in range(1, 1 + sum(name.endswith(".op") for name in space.choices)):
        kernel = labels.get(f"layer{i}.kernel")
        op = str(labels[f"layer{i}.op"]) + (f"_{kernel}x{kernel}" if kernel is not None else "")
        extra = [str(j) for j in range(i - 1) if labels[f"layer{i}.from{j}"]]
        words.append(f"{op}:{labels[f'layer{i}.width']}/{labels[f'layer{i}.stride']}" + ("+" + ",".join(extra) if extra else ""))
    return " ".join(words)


def from_string(space: Space, text: str) -> Arch:
    """Inverse of :func:`to_string`.

    Raises:
        UserError: for another form, and options that the space does not have.
    """
    labels: dict[str, str | int | bool] = {}
    for i, word in enumerate(text.split(), start=1):
        found = _LAYER.fullmatch(word)
        if found is None:
            raise UserError(f"expected layers such as conv_5x5:32/2+0,1 or max_pool:16/1, got {word[:80]!r}")
        op, kernel, width, stride, extra = found.groups()
        if kernel is not None and op not in _CONVOLUTIONS:
            raise UserError(f"layer {i}: '{op}' takes no kernel, got {word!r}")
        labels |= {f"layer{i}.op": op, f"layer{i}.width": int(width), f"layer{i}.stride": int(stride)}
        if kernel is not None:
            labels[f"layer{i}.kernel"] = int(kernel)
        taken = {int(j) for j in extra.split(",")} if extra else set()
        if taken and max(taken) > i - 2:
            raise UserError(f"layer {i} can take outputs 0 to {i - 2} besides the one before it, got {max(taken)} in {word!r}")
        labels |= {f"layer{i}.from{j}": j in taken for j in range(i - 1)}
    return space.from_labels(labels)


class StridedPool(Searchable):
    """3x3 average or maximum pool with a chosen stride."""

    def __init__(self, kind: str, stride: Choice) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride

    def choices(self) -> tuple[Choice, ...]:
        return (self.stride,)

    def _pool(self, arch: AnyArch) -> nn.Module:
        stride = int(self.stride.pick(arch))
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False) if self.kind == "avg_pool" else nn.MaxPool2d(3, stride, 1)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        out: Tensor = self._pool(arch)(x)
        return out

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return self._pool(arch)


def _taken(on: Choice, of: Width) -> Width:
    return Width((on, *of.scope), lambda taken, *width: (width[0] if width else of.max) if taken else 0)


class Layer(Searchable):
    """One layer of the chain. `before` are the widths of the outputs 0..number-1."""

    def __init__(self, number: int, before: Sequence[Width], widths: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        name = f"layer{number}"
        width, kernel = Choice(f"{name}.width", tuple(widths)), Choice(f"{name}.kernel", tuple(kernels))
        self.stride = Choice(f"{name}.stride", tuple(strides))
        self.extra = [Choice(f"{name}.from{j}", (False, True)) for j in range(number - 1)]
        self.width = Width.of(width)
        # An extra input that is not taken has no channels, and so no columns in the weight.
        taken = [_taken(on, of) for on, of in zip(self.extra, before, strict=False)]
        self.merge = ConvBNAct([before[-1], *taken], width)
        spatial = ConvBNAct(width, width, kernel, self.stride, depthwise=True)
        options: dict[str, nn.Module] = {
            "conv": ConvBNAct(width, width, kernel, self.stride),
            "sep_conv": Chain(spatial, ConvBNAct(width, width)),
            "avg_pool": StridedPool("avg_pool", self.stride),
            "max_pool": StridedPool("max_pool", self.stride),
        }
        self.op = OneOf(f"{name}.op", options)

    def forward(self, x: Sequence[Tensor], arch: AnyArch, shrunk: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        """`x`: the outputs so far, the stem's first; `shrunk`: the product of strides on the way to each."""
        parts = [x[-1]]
        for on, output, of in zip(self.extra, x, shrunk, strict=False):
            value = on.value(arch)
            share = value.get(1, 0.0) if isinstance(value, Mapping) else float(value)
            if not isinstance(share, Tensor) and share == 0.0 and not (isinstance(value, Mapping) and 1 in value):
                continue
            factor = shrunk[-1] // of
            small = F.max_pool2d(output, 3, factor, 1) if factor > 1 else output
            parts.append(small if not isinstance(share, Tensor) and share == 1.0 else share * small)
        merged = self.merge(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], arch)
        out: Tensor = self.op(merged, arch)
        return out


class MacroNet(Net):
    """A stem, the chain, a global average pool and a linear classifier, for pictures (C, H, W) of any size.

    Args:
        layers: L.
        widths, kernels, strides: options of every layer.
        stem: channels of the stem.

    Raises:
        UserError: for no layers, even kernels, and strides other than 1, 2 and 4.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        layers: int = 6,
        widths: Sequence[int] = (16, 32, 48),
        kernels: Sequence[int] = (3, 5, 7),
        strides: Sequence[int] = (1, 2),
        stem: int = 16,
    ) -> None:
        super().__init__(input_shape, classes)
        if layers < 1:
            raise UserError(f"macro: expected at least one layer, got {layers}")
        for what, values, allowed in (("kernels", kernels, (1, 3, 5, 7, 9)), ("strides", strides, (1, 2, 4))):
            wrong = next((value for value in values if value not in allowed), None)
            if wrong is not None:
                raise UserError(f"macro: {what} must be of {', '.join(map(str, allowed))}, got {wrong}")
        self.stem = ConvBNAct(self.input_shape[0], stem, 3)
        before = [Width.of(stem)]
        chain = []
        for number in range(1, layers + 1):
            chain.append(Layer(number, before, widths, kernels, strides))
            before.append(chain[-1].width)
        self.chain = nn.ModuleList(chain)
        self.classifier = ElasticLinear(before[-1], self.classes)

    def forward(self, x: Tensor, arch: AnyArch) -> Tensor:  # type: ignore[override]  # Net passes drop_path to those that take it
        outputs: list[Tensor] = [self.stem(x, arch)]
        shrunk = [1]
        layer: Any
        for layer in self.chain:
            outputs.append(layer(outputs, arch, shrunk))
            shrunk.append(shrunk[-1] * int(layer.stride.pick(arch)))
        pooled = torch.flatten(F.adaptive_avg_pool2d(outputs[-1], 1), 1)
        return self.classifier(pooled, arch)  # type: ignore[no-any-return]


__all__ = ["OPS", "Layer", "MacroNet", "StridedPool", "from_string", "size_of", "to_string"]
