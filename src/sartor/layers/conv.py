"""Elastic convolution, normalisation and linear layers: the weights of a small net are a slice of the large one's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.hardware.graph import Op
from sartor.layers.base import Searchable, activate, activation
from sartor.layers.choice import AnyArch, Choice, Value, Width
from sartor.layers.depthwise import depthwise_conv2d


class ElasticConv2d(Searchable):
    """Convolution with elastic widths and an elastic kernel, no bias, padding `kernel // 2`.

    Kernels: the smaller one is the centre of the next larger one through a learned linear map that starts as the identity
    (Once-for-all, Cai et al. 2020, section 3.3). Convolution is linear in its weight, so a mixture of kernels is one convolution with the
    mixed weight. `depthwise` ties the output width to the input width. Several `inputs` stand for their concatenation: each keeps columns
    of its own in the weight, so that a channel meets the same weights whatever the width of the segments before it.
    """

    def __init__(
        self,
        inputs: int | Choice | Width | Sequence[Width],
        outputs: int | Choice | Width,
        kernel: int | Choice = 1,
        stride: int | Choice = 1,
        *,
        groups: int = 1,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.segments = tuple(inputs) if isinstance(inputs, Sequence) else (Width.of(inputs),)
        self.outputs = Width.of(outputs)
        self.kernel = kernel if isinstance(kernel, Choice) else Choice("kernel", (kernel,))
        self.stride = stride if isinstance(stride, Choice) else Choice("stride", (stride,))
        self.groups, self.depthwise = groups, depthwise
        size = max(self.kernel.options)
        per_filter = 1 if depthwise else sum(w.max for w in self.segments) // groups
        self.weight = nn.Parameter(torch.empty(self.outputs.max, per_filter, size, size))
        fan_out = size * size * (1 if depthwise else self.outputs.max // groups)
        nn.init.normal_(self.weight, 0.0, math.sqrt(2.0 / fan_out))
        sizes = sorted(set(self.kernel.options), reverse=True)
        self.transforms = nn.ParameterDict({str(k): nn.Parameter(torch.eye(k * k)) for k in sizes[1:]})

    def choices(self) -> tuple[Choice, ...]:
        return (*(c for w in self.segments for c in w.scope), *self.outputs.scope, self.kernel, self.stride)

    def kernel_weight(self, size: int, outputs: int, inputs: Sequence[int]) -> Tensor:
        """Weight `(outputs, sum of inputs, size, size)` of one kernel option; `inputs` is the width of each segment."""
        weight = self.weight[:outputs]
        if len(inputs) > 1:
            starts = itertools.accumulate((w.max for w in self.segments), initial=0)
            weight = torch.cat([weight[:, start : start + n] for start, n in zip(starts, inputs, strict=False)], dim=1)
        elif not self.depthwise:
            weight = weight[:, : inputs[0] // self.groups]
        for step in sorted((int(k) for k in self.transforms), reverse=True):
            if step < size:
                break
            margin = (weight.shape[-1] - step) // 2
            centre = weight[..., margin : margin + step, margin : margin + step]
            weight = (centre.reshape(-1, step * step) @ self.transforms[str(step)].T).reshape(centre.shape)
        return weight

    def _weight(self, value: Value, outputs: int, inputs: Sequence[int]) -> tuple[Tensor, int]:
        if not isinstance(value, Mapping):
            size = int(self.kernel.options[int(value)])
            return self.kernel_weight(size, outputs, inputs), size
        size = max(int(self.kernel.options[i]) for i in value)
        total: Tensor | None = None
        for index, share in value.items():
            part = self.kernel_weight(int(self.kernel.options[index]), outputs, inputs)
            margin = (size - part.shape[-1]) // 2
            part = share * F.pad(part, (margin, margin, margin, margin))
            total = part if total is None else total + part
        assert total is not None
        return total, size

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        outputs = x.shape[1] if self.depthwise else self.outputs.at(arch)
        inputs = (x.shape[1],) if len(self.segments) == 1 else tuple(w.at(arch) for w in self.segments)
        weight, size = self._weight(self.kernel.value(arch), outputs, inputs)
        if self.depthwise:
            return depthwise_conv2d(x, weight, int(self.stride.pick(arch)))
        return F.conv2d(x, weight, None, self.stride.pick(arch), size // 2, 1, self.groups)

    def extract(self, arch: Mapping[str, int]) -> nn.Conv2d:
        inputs, outputs = tuple(w.at(arch) for w in self.segments), self.outputs.at(arch)
        size = int(self.kernel.pick(arch))
        groups = outputs if self.depthwise else self.groups
        conv = nn.Conv2d(sum(inputs), outputs, size, self.stride.pick(arch), size // 2, groups=groups, bias=False)
        conv.weight.data.copy_(self.kernel_weight(size, outputs, inputs).detach())
        return conv


class ElasticBatchNorm2d(Searchable):
    """Batch normalisation over the first channels, always by the statistics of the batch: a supernet keeps no running ones."""

    def __init__(self, channels: int | Choice | Width, eps: float = 1e-5) -> None:
        super().__init__()
        self.width = Width.of(channels)
        self.weight = nn.Parameter(torch.ones(self.width.max))
        self.bias = nn.Parameter(torch.zeros(self.width.max))
        self.eps = eps

    def choices(self) -> tuple[Choice, ...]:
        return self.width.scope

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        channels = x.shape[1]
        return F.batch_norm(x, None, None, self.weight[:channels], self.bias[:channels], training=True, eps=self.eps)

    def extract(self, arch: Mapping[str, int]) -> nn.BatchNorm2d:
        channels = self.width.at(arch)
        norm = nn.BatchNorm2d(channels, eps=self.eps)
        norm.weight.data.copy_(self.weight[:channels].detach())
        norm.bias.data.copy_(self.bias[:channels].detach())
        return norm


class ElasticLinear(Searchable):
    """Linear layer `(batch, inputs)` -> `(batch, outputs)` whose widths may be elastic.

    The mask of a mixture of output widths acts at once, as no normalisation follows; the activation after it should map 0 to 0.
    """

    def __init__(self, inputs: int | Choice | Width, outputs: int | Choice | Width) -> None:
        super().__init__()
        self.inputs, self.outputs = Width.of(inputs), Width.of(outputs)
        self.weight = nn.Parameter(torch.empty(self.outputs.max, self.inputs.max))
        nn.init.normal_(self.weight, 0.0, 0.01)
        self.bias = nn.Parameter(torch.zeros(self.outputs.max))

    def choices(self) -> tuple[Choice, ...]:
        return (*self.inputs.scope, *self.outputs.scope)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        outputs = self.outputs.at(arch)
        return self.outputs.apply_mask(F.linear(x, self.weight[:outputs, : x.shape[1]], self.bias[:outputs]), arch)

    def extract(self, arch: Mapping[str, int]) -> nn.Linear:
        inputs, outputs = self.inputs.at(arch), self.outputs.at(arch)
        linear = nn.Linear(inputs, outputs)
        linear.weight.data.copy_(self.weight[:outputs, :inputs].detach())
        linear.bias.data.copy_(self.bias[:outputs].detach())
        return linear


class ConvBNAct(Searchable):
    """Convolution, batch normalisation, activation, then the width mask of a mixture."""

    def __init__(
        self,
        inputs: int | Choice | Width | Sequence[Width],
        outputs: int | Choice | Width,
        kernel: int | Choice = 1,
        stride: int | Choice = 1,
        *,
        groups: int = 1,
        depthwise: bool = False,
        act: str | Choice = "relu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = ElasticConv2d(inputs, outputs, kernel, stride, groups=groups, depthwise=depthwise)
        self.bn = ElasticBatchNorm2d(outputs, eps)
        self.act = act if isinstance(act, Choice) else Choice("act", (act,))

    def choices(self) -> tuple[Choice, ...]:
        return (*self.conv.choices(), self.act)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        x = activate(self.bn(self.conv(x, arch), arch), self.act, arch, inplace=True)
        return self.conv.outputs.apply_mask(x, arch)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        steps: list[nn.Module] = [self.conv.extract(arch), self.bn.extract(arch)]
        act = self.act.pick(arch)
        return nn.Sequential(*steps) if act == "none" else nn.Sequential(*steps, activation(act))

    def ops(self, arch: Mapping[str, int], hw: tuple[int, int]) -> list[Op]:
        """The one fused operation for an input of `hw` (height, width)."""
        outputs, stride, act = self.conv.outputs.at(arch), int(self.conv.stride.pick(arch)), self.act.pick(arch)
        return [
            Op(
                "conv",
                (sum(w.at(arch) for w in self.conv.segments), *hw),
                (outputs, -(-hw[0] // stride), -(-hw[1] // stride)),
                kernel=self.conv.kernel.pick(arch),
                stride=stride,
                groups=outputs if self.conv.depthwise else self.conv.groups,
                act="" if act == "none" else act,
                inputs=(-1,),
                name="conv",
            )
        ]
