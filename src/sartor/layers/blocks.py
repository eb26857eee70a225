"""The edge block catalogue: inverted residuals and their relatives, each elastic in widths, expansion and kernel.

Every block computes features of an expanded width, optionally squeezes and excites them, projects them linearly to its output width and
adds the input where shapes allow. `ops(arch, hw)` lists the block's fused operations for a discrete architecture, wired among themselves;
`roles` says on which choices each of them depends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.hardware.graph import Op
from sartor.layers import plain
from sartor.layers.base import Searchable, drop_path_of
from sartor.layers.choice import AnyArch, Choice, Width, make_divisible, mix
from sartor.layers.conv import ConvBNAct

HW = tuple[int, int]


@dataclass(frozen=True)
class Hidden:
    """An expansion option given as an absolute number of hidden channels (MobileNetV3 has blocks of 200 and 184)."""

    channels: int


@dataclass(frozen=True)
class BlockConfig:
    """What a block position offers. `inputs` and `outputs` are the same object where a residual connection ties them."""

    inputs: Width
    outputs: Width
    stride: int
    kernel: Choice
    expand: Choice  # ratios (int, float) or Hidden
    act: Choice
    se: Choice  # False, True
    gate: str = "hardsigmoid"
    se_from: str = "hidden"  # squeeze to a quarter of the "hidden" (MobileNetV3) or of the block's "input" (MnasNet)

    @property
    def residual(self) -> bool:
        same = self.inputs is self.outputs or (not self.inputs.scope and not self.outputs.scope and self.inputs.max == self.outputs.max)
        return self.stride == 1 and same

    def hidden(self, multiple: int = 8) -> Width:
        """Width between expansion and projection; a ratio of 1 keeps the input width exactly."""

        def channels(*parts: int | float | Hidden) -> int:
            *widths, option = parts
            if isinstance(option, Hidden):
                return option.channels
            base = self.inputs.table[tuple(s.options.index(w) for s, w in zip(self.inputs.scope, widths, strict=True))]
            return base if option == 1 else make_divisible(base * option, multiple)

        return Width((*self.inputs.scope, self.expand), channels)


class Wires:
    """Collects the ops of a block; `-1` stands for the block's input."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def add(
        self,
        kind: str,
        role: str,
        inputs: tuple[int, ...],
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        **more: int | str,
    ) -> int:
        self.ops.append(Op(kind, in_shape, out_shape, inputs=inputs, name=role, **more))  # type: ignore[arg-type]  # kernel=, act=, ...
        return len(self.ops) - 1


def _act(name: str) -> str:
    return "" if name == "none" else name


def _out(hw: HW, stride: int) -> HW:
    return (hw[0] + stride - 1) // stride, (hw[1] + stride - 1) // stride


class SqueezeExcite(Searchable):
    """Channel attention (Hu et al. 2018) with an elastic width, that a choice may switch off."""

    def __init__(self, channels: Width, squeezed: Width, on: Choice, gate: str = "hardsigmoid") -> None:
        super().__init__()
        self.channels, self.squeezed, self.on, self.gate = channels, squeezed, on, gate
        self.reduce_weight = nn.Parameter(torch.empty(squeezed.max, channels.max, 1, 1))
        self.reduce_bias = nn.Parameter(torch.zeros(squeezed.max))
        self.expand_weight = nn.Parameter(torch.empty(channels.max, squeezed.max, 1, 1))
        self.expand_bias = nn.Parameter(torch.zeros(channels.max))
        nn.init.kaiming_normal_(self.reduce_weight)
        nn.init.kaiming_normal_(self.expand_weight)

    def choices(self) -> tuple[Choice, ...]:
        return (*self.channels.scope, *self.squeezed.scope, self.on)

    def _scale(self, x: Tensor, arch: AnyArch) -> Tensor:
        channels, squeezed = x.shape[1], self.squeezed.at(arch)
        pooled = F.adaptive_avg_pool2d(x, 1)
        hidden = torch.relu(F.conv2d(pooled, self.reduce_weight[:squeezed, :channels], self.reduce_bias[:squeezed]))
        hidden = self.squeezed.apply_mask(hidden, arch)
        logits = F.conv2d(hidden, self.expand_weight[:channels, :squeezed], self.expand_bias[:channels])
        return F.hardsigmoid(logits) if self.gate == "hardsigmoid" else torch.sigmoid(logits)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        return mix(self.on.value(arch), lambda i: x * self._scale(x, arch) if self.on.options[i] else x)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        if not self.on.pick(arch):
            return nn.Identity()
        channels, squeezed = self.channels.at(arch), self.squeezed.at(arch)
        module = plain.SqueezeExcite(channels, squeezed, self.gate)
        module.reduce.weight.data.copy_(self.reduce_weight[:squeezed, :channels].detach())
        module.reduce.bias.data.copy_(self.reduce_bias[:squeezed].detach())  # type: ignore[union-attr]  # Conv2d with bias=True
        module.expand.weight.data.copy_(self.expand_weight[:channels, :squeezed].detach())
        module.expand.bias.data.copy_(self.expand_bias[:channels].detach())  # type: ignore[union-attr]
        return module


class Block(Searchable):
    """Features -> squeeze-excite -> linear projection -> residual. Subclasses define the features."""

    uses: ClassVar[frozenset[str]] = frozenset({"kernel", "expand", "se"})

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden = self.build_hidden()
        self.residual = config.residual
        self.body = self.build()
        self.se: SqueezeExcite | None = None
        if "se" in self.uses and any(config.se.options):
            self.se = SqueezeExcite(self.hidden, self._squeezed(), config.se, config.gate)
        self.project: ConvBNAct = self.build_project()

    def _squeezed(self) -> Width:
        source = self.hidden if self.config.se_from == "hidden" else self.config.inputs
        divisor = 8 if self.config.se_from == "hidden" else 1
        return Width(source.scope, lambda *o: make_divisible(_lookup(source, o) / 4, divisor))

    def build_hidden(self) -> Width:
        """Width of the features."""
        return self.config.hidden()

    def build(self) -> nn.ModuleDict:
        """The modules that compute the features."""
        raise NotImplementedError

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        """`(batch, in, H, W)` -> `(batch, hidden, H', W')`."""
        raise NotImplementedError

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        """Appends the ops of :meth:`features` and returns the index of the last one."""
        raise NotImplementedError

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        """The plain counterpart of :meth:`features`."""
        raise NotImplementedError

    def build_project(self) -> ConvBNAct:
        return ConvBNAct(self.hidden, self.config.outputs, 1, act="none")

    def choices(self) -> tuple[Choice, ...]:
        c = self.config
        own = {"kernel": c.kernel, "expand": c.expand, "se": c.se}
        return (*c.inputs.scope, *c.outputs.scope, c.act, *(own[name] for name in sorted(self.uses)))

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        y = self.features(x, arch)
        if self.se is not None:
            y = self.se(y, arch)
        y = self.project(y, arch)
        if not self.residual:
            return y
        return x + (drop_path_of(y, drop_path) if drop_path > 0 else y)

    def start_as_identity(self) -> bool:
        """Scale the last normalisation by zero where the block has a residual connection; says whether it has."""
        if self.residual:
            nn.init.zeros_(self.project.bn.weight)
        return self.residual

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        se = self.se.extract(arch) if self.se is not None else nn.Identity()
        return plain.Bottleneck(self.plain_features(arch), se, self.project.extract(arch), self.residual)

    def ops(self, arch: Mapping[str, int], hw: HW) -> list[Op]:
        """Fused operations for an input of `hw` (height, width), wired among themselves."""
        wires = Wires()
        last = self.feature_ops(arch, hw, wires)
        hw = _out(hw, self.config.stride)
        hidden, outputs = self.hidden.at(arch), self.config.outputs.at(arch)
        if self.se is not None and self.config.se.pick(arch):
            shape = (hidden, *hw)
            last = wires.add("se", "se", (last,), shape, shape, hidden=self._squeezed().at(arch), act=self.config.gate)
        last = self.project_ops(arch, hw, wires, last, hidden, outputs)
        if self.residual:
            wires.add("add", "add", (-1, last), (outputs, *hw), (outputs, *hw))
        return wires.ops

    def project_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires, last: int, hidden: int, outputs: int) -> int:
        return wires.add("conv", "project", (last,), (hidden, *hw), (outputs, *hw))

    def roles(self) -> dict[str, tuple[Choice, ...]]:
        """Role of an op -> the choices on which it depends (besides the block's existence and the resolution)."""
        c, hidden = self.config, self.hidden.scope
        found = {"expand": (*c.inputs.scope, *hidden, c.act), "project": (*hidden, *c.outputs.scope), "add": c.outputs.scope}
        if "kernel" in self.uses:
            found["spatial"] = (*c.inputs.scope, *hidden, c.kernel, c.act)
        else:
            found["spatial"] = (*c.inputs.scope, *hidden, c.act)
        if self.se is not None:
            found["se"] = (*hidden, c.se)
        return found


def _lookup(width: Width, options: tuple[object, ...]) -> int:
    return width.table[tuple(c.options.index(o) for c, o in zip(width.scope, options, strict=True))]


class MBConv(Block):
    """Inverted residual with linear bottleneck (MobileNetV2, Sandler et al. 2018; MobileNetV3). Ratio 1 has no expansion layer.

    `groups` splits both 1x1 convolutions (FBNet, Wu et al. 2019).
    """

    groups: ClassVar[int] = 1

    def build(self) -> nn.ModuleDict:
        c = self.config
        self.bare = frozenset(i for i, o in enumerate(c.expand.options) if self._is_bare(o))
        body = nn.ModuleDict({"spatial": ConvBNAct(self.hidden, self.hidden, c.kernel, c.stride, depthwise=True, act=c.act)})
        if len(self.bare) < len(c.expand.options):
            body["expand"] = ConvBNAct(c.inputs, self.hidden, 1, groups=self.groups, act=c.act)
        return body

    def _is_bare(self, option: float | Hidden) -> bool:
        inputs = self.config.inputs
        return option == 1 or (isinstance(option, Hidden) and not inputs.scope and option.channels == inputs.max)

    def build_project(self) -> ConvBNAct:
        return ConvBNAct(self.hidden, self.config.outputs, 1, groups=self.groups, act="none")

    def _expanded(self, x: Tensor, arch: AnyArch) -> Tensor:
        value = self.config.expand.value(arch)
        if not isinstance(value, Mapping):
            return x if value in self.bare else self.body["expand"](x, arch)  # type: ignore[no-any-return]
        wide = {i: w for i, w in value.items() if i not in self.bare}
        terms = [self.body["expand"](x, {**arch, self.config.expand.name: wide})] if wide else []
        terms += [value[index] * x for index in value if index in self.bare]
        channels = max(term.shape[1] for term in terms)
        padded = [F.pad(term, (0, 0, 0, 0, 0, channels - term.shape[1])) for term in terms]
        return torch.stack(padded).sum(0)

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        return self.body["spatial"](self._expanded(x, arch), arch)  # type: ignore[no-any-return]

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        bare = self.config.expand.value(arch) in self.bare
        spatial = self.body["spatial"].extract(arch)  # type: ignore[operator]
        return spatial if bare else nn.Sequential(self.body["expand"].extract(arch), spatial)  # type: ignore[operator, no-any-return]

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        c, hidden, act = self.config, self.hidden.at(arch), _act(self.config.act.pick(arch))
        last = -1
        if c.expand.value(arch) not in self.bare:
            last = wires.add("conv", "expand", (-1,), (c.inputs.at(arch), *hw), (hidden, *hw), groups=self.groups, act=act)
        shape = (hidden, *_out(hw, c.stride))
        return wires.add(
            "conv", "spatial", (last,), (hidden, *hw), shape, kernel=c.kernel.pick(arch), stride=c.stride, groups=hidden, act=act
        )

    def project_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires, last: int, hidden: int, outputs: int) -> int:
        return wires.add("conv", "project", (last,), (hidden, *hw), (outputs, *hw), groups=self.groups)


class MBConvG2(MBConv):
    """Inverted residual whose 1x1 convolutions have two groups (FBNet's k3_e1_g2)."""

    groups: ClassVar[int] = 2


class FusedMBConv(Block):
    """Expansion and depthwise convolution fused into one ordinary 3x3 convolution (EfficientNetV2, Tan & Le 2021)."""

    uses: ClassVar[frozenset[str]] = frozenset({"expand", "se"})

    def build(self) -> nn.ModuleDict:
        c = self.config
        return nn.ModuleDict({"spatial": ConvBNAct(c.inputs, self.hidden, 3, c.stride, act=c.act)})

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        return self.body["spatial"](x, arch)  # type: ignore[no-any-return]

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        return self.body["spatial"].extract(arch)  # type: ignore[operator, no-any-return]

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        c = self.config
        shape = (self.hidden.at(arch), *_out(hw, c.stride))
        return wires.add("conv", "spatial", (-1,), (c.inputs.at(arch), *hw), shape, kernel=3, stride=c.stride, act=_act(c.act.pick(arch)))


class Basic(FusedMBConv):
    """Two ordinary 3x3 convolutions (basic block of ResNet, He et al. 2016), the second linear; `expand` sets the width between them."""

    uses: ClassVar[frozenset[str]] = frozenset({"expand"})

    def build_project(self) -> ConvBNAct:
        return ConvBNAct(self.hidden, self.config.outputs, 3, act="none")

    def project_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires, last: int, hidden: int, outputs: int) -> int:
        return wires.add("conv", "project", (last,), (hidden, *hw), (outputs, *hw), kernel=3)


class SeparableTwice(MBConv):
    """Inverted residual whose 5x5 depthwise convolution is two 3x3 ones: the same receptive field, 18 instead of 25 weights a channel."""

    uses: ClassVar[frozenset[str]] = frozenset({"expand", "se"})

    def build(self) -> nn.ModuleDict:
        c = self.config
        body = super().build()
        body["spatial"] = ConvBNAct(self.hidden, self.hidden, 3, c.stride, depthwise=True, act=c.act)
        body["second"] = ConvBNAct(self.hidden, self.hidden, 3, 1, depthwise=True, act=c.act)
        return body

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        return self.body["second"](super().features(x, arch), arch)  # type: ignore[no-any-return]

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        return nn.Sequential(super().plain_features(arch), self.body["second"].extract(arch))  # type: ignore[operator]

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        c, hidden, act = self.config, self.hidden.at(arch), _act(self.config.act.pick(arch))
        last = -1
        if c.expand.value(arch) not in self.bare:
            last = wires.add("conv", "expand", (-1,), (c.inputs.at(arch), *hw), (hidden, *hw), act=act)
        shape = (hidden, *_out(hw, c.stride))
        last = wires.add("conv", "spatial", (last,), (hidden, *hw), shape, kernel=3, stride=c.stride, groups=hidden, act=act)
        return wires.add("conv", "spatial", (last,), shape, shape, kernel=3, groups=hidden, act=act)


class Ghost(Block):
    """Ghost module (Han et al. 2020): half of the expanded features by a 1x1 convolution, the other half by a cheap depthwise one on them.

    The two halves stay separate segments of the projection's input, so that a channel keeps its weights at every width. The projection is
    an ordinary one: GhostNet's second ghost module would tie the meaning of an output channel to the chosen width.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"expand"})

    def build(self) -> nn.ModuleDict:
        c = self.config
        hidden = self.hidden
        self.halved = Width(hidden.scope, lambda *o: (_lookup(hidden, o) + 1) // 2)
        body = nn.ModuleDict(
            {
                "primary": ConvBNAct(c.inputs, self.halved, 1, act=c.act),
                "cheap": ConvBNAct(self.halved, self.halved, 3, depthwise=True, act=c.act),
            }
        )
        if c.stride > 1:
            body["down_primary"] = ConvBNAct(self.halved, self.halved, 3, c.stride, depthwise=True, act="none")
            body["down_cheap"] = ConvBNAct(self.halved, self.halved, 3, c.stride, depthwise=True, act="none")
        return body

    def build_project(self) -> ConvBNAct:
        return ConvBNAct((self.halved, self.halved), self.config.outputs, 1, act="none")

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        primary = self.body["primary"](x, arch)
        cheap = self.body["cheap"](primary, arch)
        if self.config.stride > 1:
            primary, cheap = self.body["down_primary"](primary, arch), self.body["down_cheap"](cheap, arch)
        return torch.cat((primary, cheap), 1)

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        return plain.GhostFeatures(**{name: module.extract(arch) for name, module in self.body.items()})  # type: ignore[operator]

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        c, half, act = self.config, self.halved.at(arch), _act(self.config.act.pick(arch))
        a = wires.add("conv", "expand", (-1,), (c.inputs.at(arch), *hw), (half, *hw), act=act)
        b = wires.add("conv", "spatial", (a,), (half, *hw), (half, *hw), kernel=3, groups=half, act=act)
        out = _out(hw, c.stride)
        if c.stride > 1:
            a = wires.add("conv", "spatial", (a,), (half, *hw), (half, *out), kernel=3, stride=c.stride, groups=half)
            b = wires.add("conv", "spatial", (b,), (half, *hw), (half, *out), kernel=3, stride=c.stride, groups=half)
        return wires.add("concat", "spatial", (a, b), (2 * half, *out), (2 * half, *out))

    def project_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires, last: int, hidden: int, outputs: int) -> int:
        return wires.add("conv", "project", (last,), (2 * self.halved.at(arch), *hw), (outputs, *hw))
