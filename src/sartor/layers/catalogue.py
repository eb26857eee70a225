"""The rest of the edge block catalogue: a lone convolution, pools, dense connection, skip; and the table of all kinds by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sartor.hardware.graph import Op
from sartor.layers import plain
from sartor.layers.base import Searchable, drop_path_of
from sartor.layers.blocks import HW, Basic, Block, BlockConfig, FusedMBConv, Ghost, MBConv, MBConvG2, SeparableTwice, Wires, _act, _out
from sartor.layers.choice import AnyArch, Choice, Width
from sartor.layers.conv import ConvBNAct


class Conv(Searchable):
    """One ordinary 3x3 convolution with normalisation and activation, and a residual connection where shapes allow."""

    uses: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config, self.residual = config, config.residual
        self.conv = ConvBNAct(config.inputs, config.outputs, 3, config.stride, act=config.act)

    def choices(self) -> tuple[Choice, ...]:
        return self.conv.choices()

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        y = self.conv(x, arch)
        if not self.residual:
            return y  # type: ignore[no-any-return]
        return x + (drop_path_of(y, drop_path) if drop_path > 0 else y)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        conv = self.conv.extract(arch)
        return plain.Residual(conv) if self.residual else conv

    def ops(self, arch: Mapping[str, int], hw: HW) -> list[Op]:
        c, wires = self.config, Wires()
        inputs, outputs, out = c.inputs.at(arch), c.outputs.at(arch), _out(hw, c.stride)
        act = _act(c.act.pick(arch))
        last = wires.add("conv", "spatial", (-1,), (inputs, *hw), (outputs, *out), kernel=3, stride=c.stride, act=act)
        if self.residual:
            wires.add("add", "add", (-1, last), (outputs, *out), (outputs, *out))
        return wires.ops

    def roles(self) -> dict[str, tuple[Choice, ...]]:
        c = self.config
        return {"spatial": (*c.inputs.scope, *c.outputs.scope, c.act), "add": c.outputs.scope}


class _Pool(Block):
    """3x3 pooling, then a 1x1 convolution to the output width."""

    uses: ClassVar[frozenset[str]] = frozenset()
    kind: ClassVar[str]

    def build_hidden(self) -> Width:
        return self.config.inputs

    def choices(self) -> tuple[Choice, ...]:
        return (*self.config.inputs.scope, *self.config.outputs.scope)

    def roles(self) -> dict[str, tuple[Choice, ...]]:
        inputs, outputs = self.config.inputs.scope, self.config.outputs.scope
        return {"spatial": inputs, "project": (*inputs, *outputs), "add": outputs}

    def build(self) -> nn.ModuleDict:
        return nn.ModuleDict({"pool": self._pool()})

    def _pool(self) -> nn.Module:
        stride = self.config.stride
        return nn.MaxPool2d(3, stride, 1) if self.kind == "maxpool" else nn.AvgPool2d(3, stride, 1, count_include_pad=False)

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        return self.body["pool"](x)  # type: ignore[no-any-return]

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        return self._pool()

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        channels = self.config.inputs.at(arch)
        shape = (channels, *_out(hw, self.config.stride))
        return wires.add(self.kind, "spatial", (-1,), (channels, *hw), shape, kernel=3, stride=self.config.stride)


class MaxPool(_Pool):
    """3x3 maximum pooling and a 1x1 convolution."""

    kind = "maxpool"


class AvgPool(_Pool):
    """3x3 average pooling and a 1x1 convolution."""

    kind = "avgpool"


class Dense(Block):
    """Dense connection (Huang et al. 2017): the input and new features beside it, concatenated, then projected to the output width."""

    uses: ClassVar[frozenset[str]] = frozenset({"kernel", "expand"})

    def build(self) -> nn.ModuleDict:
        c = self.config
        self.residual = False
        body = nn.ModuleDict({"grow": ConvBNAct(c.inputs, self.hidden, c.kernel, c.stride, act=c.act)})
        body["shortcut"] = nn.AvgPool2d(3, c.stride, 1, count_include_pad=False) if c.stride > 1 else nn.Identity()
        return body

    def build_project(self) -> ConvBNAct:
        return ConvBNAct((self.config.inputs, self.hidden), self.config.outputs, 1, act="none")

    def features(self, x: Tensor, arch: AnyArch) -> Tensor:
        return torch.cat((self.body["shortcut"](x), self.body["grow"](x, arch)), 1)

    def plain_features(self, arch: Mapping[str, int]) -> nn.Module:
        stride = self.config.stride
        shortcut = nn.AvgPool2d(3, stride, 1, count_include_pad=False) if stride > 1 else nn.Identity()
        return plain.DenseFeatures(self.body["grow"].extract(arch), shortcut)  # type: ignore[operator]

    def feature_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires) -> int:
        c = self.config
        inputs, hidden, out = c.inputs.at(arch), self.hidden.at(arch), _out(hw, c.stride)
        source = -1
        if c.stride > 1:
            source = wires.add("avgpool", "spatial", (-1,), (inputs, *hw), (inputs, *out), kernel=3, stride=c.stride)
        act = _act(c.act.pick(arch))
        grown = wires.add("conv", "spatial", (-1,), (inputs, *hw), (hidden, *out), kernel=c.kernel.pick(arch), stride=c.stride, act=act)
        joined = (inputs + hidden, *out)
        return wires.add("concat", "spatial", (source, grown), joined, joined)

    def project_ops(self, arch: Mapping[str, int], hw: HW, wires: Wires, last: int, hidden: int, outputs: int) -> int:
        return wires.add("conv", "project", (last,), (self.config.inputs.at(arch) + hidden, *hw), (outputs, *hw))

    def roles(self) -> dict[str, tuple[Choice, ...]]:
        found = super().roles()
        found["project"] = (*self.config.inputs.scope, *found["project"])
        return found


class Skip(Searchable):
    """Nothing at all (FBNet's skip): only where input and output are tied."""

    uses: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        return x

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return nn.Identity()

    def ops(self, arch: Mapping[str, int], hw: HW) -> list[Op]:
        return []

    def roles(self) -> dict[str, tuple[Choice, ...]]:
        return {}


#: Block kinds by the name that a space's `kind` options use.
KINDS: dict[str, type[Block] | type[Conv] | type[Skip]] = {
    "mbconv": MBConv,
    "mbconv_g2": MBConvG2,
    "fused": FusedMBConv,
    "basic": Basic,
    "conv": Conv,
    "sep5as33": SeparableTwice,
    "ghost": Ghost,
    "dense": Dense,
    "maxpool": MaxPool,
    "avgpool": AvgPool,
    "skip": Skip,
}
