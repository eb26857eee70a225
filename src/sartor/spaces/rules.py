"""What an op must keep to on a device so that a space conforms to it, and how much each objection weighs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from sartor.arch import Label
from sartor.errors import UserError
from sartor.hardware.graph import BYTES, Op
from sartor.hardware.spec import DeviceSpec

#: MobileNetV2's and MobileNetV3's largest expansions in int8; wider blocks spread the ranges of their channels further apart.
MAX_EXPANSION = 6.0
#: What an objection weighs, the heaviest first: the device does not run the op, runs it badly, or leaves lanes or its cache unused.
LEVELS = ("unsupported", "unfriendly", "rule")


class Removed(NamedTuple):
    """One option that was left out, and why."""

    choice: str
    option: Label
    reason: str


class Against(NamedTuple):
    """One objection to an op: its level, a cause that it shares with other ops, and what is said of this one."""

    level: str
    cause: str
    sentence: str


@dataclass(frozen=True)
class Rules:
    """What an op must keep to on a device. `lanes`: output channels of a convolution are a multiple of it; `map_bytes`: the largest feature
    map; `max_expansion`: the largest ratio of a block's `expand` choice. None: no such rule."""

    spec: DeviceSpec
    lanes: int | None
    map_bytes: int | None
    max_expansion: float | None
    bytes_per_value: int = 1
    memory: str = "cache"

    @classmethod
    def of(
        cls,
        spec: DeviceSpec,
        precision: str = "int8",
        *,
        cache_level: int | None = None,
        max_expansion: float | None = MAX_EXPANSION,
        waive: Collection[str] = (),
    ) -> Rules:
        """The rules that a device's file implies, but for those in `waive` ("lanes", "maps"). The cache is its last level, or
        `cache_level`; a microcontroller's is its SRAM."""
        if precision not in BYTES:
            raise UserError(f"restrict: expected precision to be one of {', '.join(BYTES)}, got {precision!r}")
        memory, size = "cache", None
        if spec.kind == "mcu" and cache_level is None:
            memory, size = "SRAM", spec.sram_bytes
        elif spec.caches:
            levels = {cache.level: cache.bytes for cache in spec.caches}
            if cache_level is not None and cache_level not in levels:
                raise UserError(f"restrict: device {spec.name} has caches of level {', '.join(map(str, levels))}, got level {cache_level}")
            level = cache_level if cache_level is not None else max(levels)
            memory, size = f"level {level} cache", levels[level]
        limit = max_expansion if precision == "int8" else None
        lanes = None if "lanes" in waive else spec.lanes.get(precision)
        return cls(spec, lanes, None if "maps" in waive else size, limit, BYTES[precision], memory)

    def against(self, op: Op) -> list[Against]:
        """Everything that an op does not conform to, the heaviest first."""
        said = [
            Against(level, pattern, f"{_said(op)} is {level} on {self.spec.name}: {reason}")
            for level, pattern, reason in self.spec.objections(op)
        ]
        if self.lanes and op.kind == "conv" and op.out_shape[0] % self.lanes:
            sentence = f"{op.out_shape[0]} channels are no multiple of the {self.lanes} lanes of {self.spec.name}"
            said.append(Against("rule", "lanes", sentence))
        largest = max(prod(op.in_shape), prod(op.out_shape)) * self.bytes_per_value
        if self.map_bytes is not None and op.kind != "resize" and largest > self.map_bytes:
            room = f"the {self.map_bytes:,} bytes of {self.memory} of {self.spec.name}"
            said.append(Against("rule", "maps", f"a feature map of {largest:,} bytes exceeds {room}"))
        return said

    def objection(self, op: Op) -> str | None:
        """Why an op does not conform; None where it does."""
        return next((one.sentence for one in self.against(op)), None)

    def label_objection(self, choice: str, label: Label) -> str | None:
        """Why an option does not conform as far as its name tells: the last part of `choice` names what it decides."""
        what = choice.rpartition(".")[2]
        if what == "expand" and self.max_expansion is not None and _is_number(label) and float(label) > self.max_expansion:  # type: ignore[arg-type]
            return f"an expansion of {label} is over {self.max_expansion:g}, beyond which int8 ranges of channels differ too much"
        if what == "width" and self.lanes and isinstance(label, int) and label % self.lanes:
            return f"{label} channels are no multiple of the {self.lanes} lanes of {self.spec.name}"
        op = _example(what, label)
        found = self.spec.objection(op) if op is not None else None
        return f"{_said(op)} is {found[0]} on {self.spec.name}: {found[1]}" if found is not None and op is not None else None


def _example(what: str, label: Label) -> Op | None:
    """An op that stands for a label, as far as its choice's name tells what it means."""
    shape = (8, 8, 8)
    if what == "act" and isinstance(label, str) and label in ("relu", "relu6", "hardswish", "hardsigmoid", "swish", "sigmoid"):
        return Op("act", shape, shape, act=label)
    if what == "se" and label is True:
        return Op("se", shape, shape, hidden=2)
    if what == "kernel" and isinstance(label, int) and not isinstance(label, bool):
        return Op("conv", shape, shape, kernel=label, groups=8)
    return None


def _said(op: Op | None) -> str:
    if op is None:
        return ""
    if op.kind == "act":
        return f"the activation {op.act}"
    if op.kind == "conv":
        grouped = "" if op.groups == 1 else "depthwise " if op.groups == op.in_shape[0] else "grouped "
        return f"a {grouped}{op.kernel}x{op.kernel} convolution" + (f" with {op.act}" if op.act else "")
    return {"se": "squeeze-excite", "resize": "resizing"}.get(op.kind, op.kind) + (f" with {op.act}" if op.act else "")


def _is_number(label: Label) -> bool:
    return isinstance(label, int | float) and not isinstance(label, bool)
