"""Mobile inverted-residual spaces and their supernet: MobileNetV3, MnasNet, ProxylessNAS, FBNet, Once-for-all, BigNAS and our own.

A :class:`MobileSpec` says what is on offer; :class:`MobileNet` is the weight-sharing network over all of it. With one option everywhere
it is a published network.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.hardware.cost import Factor
from sartor.hardware.graph import Op
from sartor.layers.base import OneOf, Searchable, activation, copy_of
from sartor.layers.blocks import HW, BlockConfig, Hidden, _act, _out
from sartor.layers.catalogue import KINDS
from sartor.layers.choice import AnyArch, Choice, Width, mix
from sartor.layers.conv import ConvBNAct, ElasticBatchNorm2d, ElasticLinear
from sartor.layers.plain import Resize
from sartor.spaces.costs import ChainCosts, Part


@dataclass(frozen=True)
class Stage:
    """A run of blocks of one width; the first has the stride. Each field lists the options of a choice.

    `tied`: kind, activation and squeeze-excite are one choice for the whole stage; otherwise one for each block.
    `overrides`: per block position, other options for some fields, e.g. ``{"expands": (Hidden(200),)}``.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (1,)
    stride: int = 1
    kinds: tuple[str, ...] = ("mbconv",)
    kernels: tuple[int, ...] = (3,)
    expands: tuple[float | Hidden, ...] = (6,)
    acts: tuple[str, ...] = ("relu",)
    ses: tuple[bool, ...] = (False,)
    tied: bool = True
    overrides: tuple[Mapping[str, Any], ...] = ()

    def at(self, position: int) -> Stage:
        """The options at one block position."""
        return replace(self, **self.overrides[position]) if position < len(self.overrides) else self


@dataclass(frozen=True)
class MobileSpec:
    """What a mobile space offers. `resolutions` empty: the input as it comes."""

    name: str
    stages: tuple[Stage, ...]
    stem_widths: tuple[int, ...] = (16,)
    stem_strides: tuple[int, ...] = (2,)
    stem_act: str = "relu"
    head_widths: tuple[int, ...] = ()
    head_act: str = "relu"
    hidden: int = 0
    hidden_act: str = "hardswish"
    dropout: float = 0.0
    resolutions: tuple[int, ...] = ()
    eps: float = 1e-5
    gate: str = "hardsigmoid"
    se_from: str = "hidden"


@dataclass
class _Position:
    """One block position: its searchable module by kind, and the choices on which its existence depends."""

    stage: int
    number: int
    depth: Choice
    kind: Choice
    modules: Mapping[str, Any]

    def exists(self, arch: Mapping[str, int]) -> bool:
        return int(self.depth.pick(arch)) > self.number

    def block(self, arch: Mapping[str, int]) -> Any:
        return self.modules[self.kind.pick(arch)]


class MobileNet(Searchable):
    """The supernet of a :class:`MobileSpec`: `net(x, arch)` maps `(batch, C, H, W)` to logits `(batch, classes)`.

    Attributes: `space`, `input_shape`, `classes`, `largest` and `smallest` (architectures for the sandwich rule).

    Raises:
        UserError: if the input is too small for the strides, or a block kind is unknown.
    """

    def __init__(self, spec: MobileSpec, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        check_size(spec, input_shape)
        self.spec, self.classes = spec, classes
        self.input_shape: tuple[int, int, int] = (int(input_shape[0]), int(input_shape[1]), int(input_shape[2]))
        self._choices: dict[str, Choice] = {}
        self._conditions: dict[str, dict[str, list[Any]]] = {}
        self.resolution = self._choice("resolution", spec.resolutions or (0,))
        stem = self._choice("stem.width", spec.stem_widths)
        self.stem_stride = self._choice("stem.stride", spec.stem_strides)
        self.stem = ConvBNAct(input_shape[0], stem, 3, self.stem_stride, act=spec.stem_act)
        width = self.stem.conv.outputs
        self.depths: list[Choice] = []
        self.positions: list[_Position] = []
        self.blocks = nn.ModuleList()
        for number, stage in enumerate(spec.stages):
            width = self._build_stage(number, stage, width)
        self.head: ConvBNAct | None = None
        if spec.head_widths:
            head = Width.of(self._choice("head.width", spec.head_widths))
            self.head = ConvBNAct(width, head, 1, act=spec.head_act)
            width = head
        self.hidden = ElasticLinear(width, spec.hidden) if spec.hidden else None
        self.classifier = ElasticLinear(spec.hidden or width, classes)
        for module in self.modules():
            if isinstance(module, ElasticBatchNorm2d):
                module.eps = spec.eps
        self.space = Space({c.name: c.options for c in self._choices.values()}, self._conditions)

    # -- construction ------------------------------------------------------------------------------------------------

    def _choice(self, name: str, options: tuple[Any, ...], needs: Mapping[str, list[Any]] | None = None) -> Choice:
        choice = self._choices.get(name) or Choice(name, options)
        if not choice.fixed and name not in self._choices:
            labelled = Choice(name, tuple(f"{o.channels}ch" if isinstance(o, Hidden) else o for o in options))
            self._choices[name] = labelled
            held = {p: labels for p, labels in (needs or {}).items() if p in self._choices}
            if held:
                self._conditions[name] = held
        return Choice(name, options)

    def _build_stage(self, number: int, stage: Stage, inputs: Width) -> Width:
        prefix = f"s{number + 1}"
        depth = self._choice(f"{prefix}.depth", stage.depths)
        self.depths.append(depth)
        outputs = Width.of(self._choice(f"{prefix}.width", stage.widths))
        tied: dict[str, Choice] = {}
        for position in range(max(stage.depths)):
            offer = stage.at(position)
            deeper = {depth.name: [d for d in stage.depths if d > position]} if position >= min(stage.depths) else {}
            shared = prefix if stage.tied else f"{prefix}.b{position}"
            own = {} if stage.tied else deeper
            kinds = tuple(k for k in offer.kinds if k != "skip" or position > 0) or offer.kinds
            if stage.tied and tied:
                kinds = tied["kind"].options
            unknown = [k for k in kinds if k not in KINDS]
            if unknown:
                raise UserError(f"unknown block kind '{unknown[0]}'; kinds: {', '.join(KINDS)}")
            if not stage.tied or not tied:
                kind = tied["kind"] = self._choice(f"{shared}.kind", kinds, own)
                acting = [k for k in kinds if k not in ("skip", "maxpool", "avgpool")]
                tied["act"] = self._choice(f"{shared}.act", offer.acts, {**own, kind.name: acting})
                tied["se"] = self._choice(f"{shared}.se", offer.ses, {**own, kind.name: [k for k in kinds if "se" in KINDS[k].uses]})
            kind = tied["kind"]
            block = f"{prefix}.b{position}"
            kernel = self._choice(f"{block}.kernel", offer.kernels, {**deeper, kind.name: [k for k in kinds if "kernel" in KINDS[k].uses]})
            expand = self._choice(f"{block}.expand", offer.expands, {**deeper, kind.name: [k for k in kinds if "expand" in KINDS[k].uses]})
            stride = stage.stride if position == 0 else 1
            config = BlockConfig(
                inputs, outputs, stride, kernel, expand, tied["act"], tied["se"], gate=self.spec.gate, se_from=self.spec.se_from
            )
            modules = {k: KINDS[k](config) for k in kinds}
            self.blocks.append(OneOf(kind.name, modules) if len(kinds) > 1 else modules[kinds[0]])
            self.positions.append(_Position(number, position, depth, Choice(kind.name, kinds), modules))
            inputs = outputs
        return outputs

    # -- the network -------------------------------------------------------------------------------------------------

    def choices(self) -> tuple[Choice, ...]:
        return tuple(self._choices.values())

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        """Logits `(batch, classes)`. `drop_path` is the rate of the last block; earlier ones get less, linearly."""
        size = self.resolution.pick(arch)
        if size and (size, size) != tuple(x.shape[-2:]):
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        x = self.stem(x, arch)
        total = max(1, len(self.positions) - 1)
        numbered = list(enumerate(zip(self.positions, self.blocks, strict=True)))
        for _, group in itertools.groupby(numbered, key=lambda item: item[1][0].stage):
            blocks = list(group)
            depth = blocks[0][1][0].depth
            wanted = {int(depth.options[i]): i for i in depth.support(arch)}
            outputs: dict[int, Tensor] = {}
            for number, (position, block) in blocks[: max(wanted)]:
                x = block(x, arch, drop_path * number / total)
                if position.number + 1 in wanted:
                    outputs[wanted[position.number + 1]] = x
            x = mix(depth.value(arch), outputs.__getitem__)
        if self.head is not None:
            x = self.head(x, arch)
        x = x.mean((2, 3))
        if self.hidden is not None:
            x = activation(self.spec.hidden_act)(self.hidden(x, arch))
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        return self.classifier(x, arch)  # type: ignore[no-any-return]

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        """The plain network of a discrete architecture, with weights of its own copied from the supernet's slices.

        Its batch norms have no statistics yet: calibrate them on training data before evaluating.
        """
        arch = self.space.canonical(arch)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        size = self.resolution.pick(arch)
        if size and (size, size) != self.input_shape[1:]:
            parts["resize"] = Resize(size)
        parts["stem"] = self.stem.extract(arch)
        for position, block in zip(self.positions, self.blocks, strict=True):
            if position.exists(arch):
                module = block.extract(arch)  # type: ignore[operator]
                if not isinstance(module, nn.Identity):
                    parts[f"s{position.stage + 1}_b{position.number}"] = module
        if self.head is not None:
            parts["head"] = self.head.extract(arch)
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        if self.hidden is not None:
            parts["hidden"] = self.hidden.extract(arch)
            parts["hidden_act"] = activation(self.spec.hidden_act)
        if self.spec.dropout:
            parts["dropout"] = nn.Dropout(self.spec.dropout)
        parts["classifier"] = self.classifier.extract(arch)
        return copy_of(nn.Sequential(parts)).train(self.training)

    # -- extremes ----------------------------------------------------------------------------------------------------

    def extreme(self, largest: bool, fixed: Mapping[str, int] | None = None) -> Arch:
        """The architecture with every option at its largest (or smallest); choices in `fixed` as given; kinds have no size: the first."""
        values: dict[str, int] = {}
        for name, options in self.space.choices.items():
            allowed = self.space.allowed[name]
            if fixed and name in fixed:
                values[name] = fixed[name]
                continue
            if name.endswith(".kind"):
                values[name] = allowed[0]
                continue
            size = {i: _size_of(options[i]) * (-1 if name == "stem.stride" else 1) for i in allowed}
            values[name] = (max if largest else min)(allowed, key=size.__getitem__)
        return self.space.canonical(values)

    @cached_property
    def largest(self) -> Arch:
        return self.extreme(True)

    @cached_property
    def smallest(self) -> Arch:
        return self.extreme(False)

    def extremes(self, rng: np.random.Generator) -> tuple[Arch, Arch]:
        """The largest and the smallest architecture of one sandwich step, for kinds of block and a picture scale drawn at random.

        Kinds have no size, so all of them must take their turn. Resolution and first stride scale the cost of everything behind them:
        drawing them, instead of always training the largest net on the largest picture, about halves the cost of a step.
        """
        drawn = [n for n in self.space.choices if n.endswith("kind") or n in ("resolution", "stem.stride")]
        fixed = {n: int(rng.choice(self.space.allowed[n])) for n in drawn}
        return self.extreme(True, fixed), self.extreme(False, fixed)

    # -- costs -------------------------------------------------------------------------------------------------------

    def _hw(self, arch: Mapping[str, int], stage: int, position: int) -> HW:
        """Height and width of the input of a block position."""
        size = self.resolution.pick(arch)
        hw = (size, size) if size else (self.input_shape[1], self.input_shape[2])
        hw = _out(hw, int(self.stem_stride.pick(arch)))
        for number, earlier in enumerate(self.spec.stages[: stage + 1]):
            if number < stage or position > 0:
                hw = _out(hw, earlier.stride)
        return hw

    def _parts(self) -> Iterator[Part]:
        """Stem, block positions, head."""
        picture = (self.resolution, self.stem_stride)
        stem = self.stem.conv.outputs

        def stem_ops(arch: Mapping[str, int]) -> list[Op]:
            channels, height, width = self.input_shape
            size = self.resolution.pick(arch)
            found = []
            if size and (size, size) != (height, width):
                found = [Op("resize", self.input_shape, (channels, size, size), name="resize")]
                height = width = size
            stride = int(self.stem_stride.pick(arch))
            shape = (stem.at(arch), *_out((height, width), stride))
            return [
                *found,
                Op("conv", (channels, height, width), shape, kernel=3, stride=stride, act=_act(self.spec.stem_act), name="stem"),
            ]

        yield Part(picture, {"resize": (), "stem": stem.scope}, stem_ops)
        for position in self.positions:
            roles: dict[str, dict[str, Choice]] = {}
            for module in position.modules.values():
                for role, scope in module.roles().items():
                    roles.setdefault(role, {}).update((c.name, c) for c in scope)

            def block_ops(arch: Mapping[str, int], position: _Position = position) -> list[Op]:
                if not position.exists(arch):
                    return []
                return position.block(arch).ops(arch, self._hw(arch, position.stage, position.number))  # type: ignore[no-any-return]

            shapeless = frozenset(name for name in self._choices if name.endswith((".kernel", ".act")))
            yield Part((*picture, position.depth, position.kind), {r: tuple(s.values()) for r, s in roles.items()}, block_ops, shapeless)
        last = self.positions[-1]

        def head_ops(arch: Mapping[str, int]) -> list[Op]:
            hw = _out(self._hw(arch, last.stage, 0), self.spec.stages[-1].stride)
            channels = self._stage_width.at(arch)
            found = []
            if self.head is not None:
                out = self.head.conv.outputs.at(arch)
                found.append(Op("conv", (channels, *hw), (out, *hw), act=_act(self.spec.head_act), name="head"))
                channels = out
            found.append(Op("pool", (channels, *hw), (channels, 1, 1), name="pool"))
            if self.hidden is not None:
                found.append(Op("linear", (channels, 1, 1), (self.spec.hidden, 1, 1), act=_act(self.spec.hidden_act), name="hidden"))
                channels = self.spec.hidden
            return [*found, Op("linear", (channels, 1, 1), (self.classes, 1, 1), name="classifier")]

        head_scope = self.head.conv.outputs.scope if self.head is not None else ()
        final = head_scope or self._stage_width.scope
        scopes = {"head": (*self._stage_width.scope, *head_scope), "pool": final, "hidden": final, "classifier": final}
        yield Part(picture, scopes, head_ops)

    @property
    def _stage_width(self) -> Width:
        stage = len(self.spec.stages)
        return Width.of(Choice(f"s{stage}.width", self.spec.stages[-1].widths))

    @cached_property
    def _chain(self) -> ChainCosts:
        return ChainCosts(self._parts())

    def factors(self) -> list[Factor]:
        """Fused operations as factors over few choices each: what the latency table and every other cost sums over."""
        return self._chain.factors

    def costs(self, arch: Mapping[str, int]) -> dict[str, float]:
        """Parameters as in torch, multiply-accumulates, and peak bytes of int8 activations, without building the network.

        Raises:
            UserError: if a choice is missing or is a mixture.
        """
        return self._chain(arch)


def _size_of(label: Any) -> float:
    """A number to order options by size: kernels, widths, ratios, `200ch`, squeeze-excite on; activations are all alike."""
    if isinstance(label, str):
        return float(label[:-2]) if label.endswith("ch") else 0.0
    return float(label)


def check_size(spec: MobileSpec, input_shape: tuple[int, int, int]) -> None:
    """Refuse an input that the strides reduce to less than one pixel in effect.

    Raises:
        UserError: saying the smallest size that fits.
    """
    total = min(spec.stem_strides)
    for stage in spec.stages:
        total *= stage.stride
    if min(input_shape[1:]) < total:
        raise UserError(
            f"space '{spec.name}' halves its input down to 1/{total}: expected images of at least {total} pixels, got {input_shape[1:]}"
        )
