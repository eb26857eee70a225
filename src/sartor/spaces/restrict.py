"""A space without what a device does badly: `restrict(net, spec)` keeps the options of which every architecture conforms.

What conforming means (:class:`Rules`): every operation runs on the device and none is marked unfriendly there; channels are a multiple of
its SIMD lanes, so that no lane idles (4 for fp32 and 16 for int8 in 128-bit NEON, 128 for int8 in HVX, a warp on a GPU); feature maps fit
the cache, or a microcontroller's SRAM; blocks expand no further than int8 ranges bear.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from sartor.arch import Label, Space
from sartor.errors import UserError
from sartor.hardware.cost import Factor, combinations
from sartor.hardware.graph import Op, OpGraph
from sartor.hardware.spec import DeviceSpec

#: MobileNetV2's and MobileNetV3's largest expansions in int8; wider blocks spread the ranges of their channels further apart.
MAX_EXPANSION = 6.0
_BYTES = {"int8": 1, "int16": 2, "fp16": 2, "bf16": 2, "fp32": 4}


class Removed(NamedTuple):
    """One option that was left out, and why."""

    choice: str
    option: Label
    reason: str


class Restriction(NamedTuple):
    """The space that is left (option indices stay as they were), and everything that is not in it any more."""

    restricted: Space
    removed: list[Removed]


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
        if precision not in _BYTES:
            raise UserError(f"restrict: expected precision to be one of {', '.join(_BYTES)}, got {precision!r}")
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
        return cls(spec, lanes, None if "maps" in waive else size, limit, _BYTES[precision], memory)

    def objection(self, op: Op) -> str | None:
        """Why an op does not conform; None where it does."""
        found = self.spec.objection(op)
        if found is not None:
            return f"{_said(op)} is {found[0]} on {self.spec.name}: {found[1]}"
        if self.lanes and op.kind == "conv" and op.out_shape[0] % self.lanes:
            return f"{op.out_shape[0]} channels are no multiple of the {self.lanes} lanes of {self.spec.name}"
        largest = max(prod(op.in_shape), prod(op.out_shape)) * self.bytes_per_value
        if self.map_bytes is not None and op.kind != "resize" and largest > self.map_bytes:
            return f"a feature map of {largest:,} bytes exceeds the {self.map_bytes:,} bytes of {self.memory} of {self.spec.name}"
        return None

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


def restrict(
    space_or_net: Any,
    spec: DeviceSpec,
    *,
    precision: str = "int8",
    cache_level: int | None = None,
    max_expansion: float | None = MAX_EXPANSION,
    waive: Collection[str] = (),
) -> Restriction:
    """The space without options that a device does badly, and what was removed: (choice, option, reason).

    Of a network (anything with `space` and `factors()`), every architecture that is left conforms in all of its operations: options are
    judged by their name first, then by the operations that their combinations lead to; of a combination that does not conform, the option
    that is most often part of such ones goes. A bare :class:`Space` has no operations, so only names are judged there (`s1.width`,
    `s2.act`, `s2.se`, `s3.b0.kernel`, `s3.b0.expand`). The network itself is not changed: give it the new space. `waive` names rules of
    convenience that are not kept: "lanes", "maps".

    Raises:
        UserError: if what has no alternative left does not conform, naming it.
    """
    rules = Rules.of(spec, precision, cache_level=cache_level, max_expansion=max_expansion, waive=waive)
    space: Space = space_or_net if isinstance(space_or_net, Space) else space_or_net.space
    allowed = {name: list(indices) for name, indices in space.allowed.items()}
    removed = _by_name(space, rules, allowed)
    if not isinstance(space_or_net, Space):
        removed += _by_operations(space, list(space_or_net.factors()), rules, allowed)
    keep = {name: [space.choices[name][i] for i in indices] for name, indices in allowed.items()}
    return Restriction(space.restrict(keep), removed)


def conform(net: Any, spec: DeviceSpec, precision: str = "int8") -> tuple[Restriction, list[str]]:
    """:func:`restrict` as a search does it: where nothing would be left, rules of convenience give way; what it cannot run does not.

    Returns:
        the restriction, and why each rule gave way.

    Raises:
        UserError: as :func:`restrict`, when no rule is left to give way.
    """
    given_up: list[str] = []
    for waive in ((), ("lanes",), ("lanes", "maps")):
        try:
            return restrict(net, spec, precision=precision, waive=waive), given_up
        except UserError as error:
            given_up.append(str(error))
    raise UserError(given_up[-1])


def objections(ops: OpGraph | Iterable[Op], rules: Rules) -> list[tuple[str, str]]:
    """(op name, reason) of every op that does not conform."""
    return [(op.name or op.kind, reason) for op in ops if (reason := rules.objection(op)) is not None]


def summary(removed: Iterable[Removed], given_up: Iterable[str] = (), spec: DeviceSpec | None = None) -> list[str]:
    """One sentence for each reason: what was left out for it; why rules gave way; and, of a device, that nothing was left out."""
    by_reason: dict[str, list[Removed]] = {}
    for one in removed:
        by_reason.setdefault(one.reason, []).append(one)
    sentences = []
    for reason, group in by_reason.items():
        options: dict[str, list[str]] = {}
        for one in group:
            options.setdefault(str(one.option), []).append(one.choice)
        said = "; ".join(f"{_few(choices)} = {option}" for option, choices in options.items())
        sentences.append(f"Left out of the space: {said} ({reason}).")
    if spec is not None and not sentences:
        sentences.append(f"Nothing of the space was left out: {spec.title} runs all of it well, as far as its file tells.")
    return [*sentences, *(f"A rule of convenience was waived: {error}." for error in given_up)]


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


# -- by name --------------------------------------------------------------------------------------------------------------


def _by_name(space: Space, rules: Rules, allowed: dict[str, list[int]]) -> list[Removed]:
    """Options whose label alone tells that they do not conform; a choice of which none would be left is not judged so."""
    removed: list[Removed] = []
    for name, indices in allowed.items():
        reasons = {i: rules.label_objection(name, space.choices[name][i]) for i in indices}
        if all(reasons.values()):
            continue
        removed += [Removed(name, space.choices[name][i], reason) for i, reason in reasons.items() if reason is not None]
        allowed[name] = [i for i in indices if reasons[i] is None]
    return removed


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


# -- by operations --------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """Every combination of a factor's choices that leads to operations: option indices `(n, choices)`, and why it does not conform."""

    scope: tuple[str, ...]
    indices: np.ndarray
    reasons: list[str | None]
    active: np.ndarray  # (n, choices): whether the choice is switched on there

    def alive(self, allowed: Mapping[str, list[int]]) -> np.ndarray:
        mask = np.ones(len(self.indices), dtype=bool)
        for column, name in enumerate(self.scope):
            mask &= np.isin(self.indices[:, column], allowed[name])
        return mask

    @property
    def bad(self) -> np.ndarray:
        return np.array([reason is not None for reason in self.reasons], dtype=bool)


def _rows(space: Space, factor: Factor, rules: Rules, allowed: Mapping[str, list[int]], known: dict[str, str | None]) -> _Rows:
    kept: list[tuple[int, ...]] = []
    reasons: list[str | None] = []
    for indices in combinations(factor, allowed):
        ops = factor.at(indices)
        if not ops:
            continue
        for op in ops:
            if op.signature not in known:
                known[op.signature] = rules.objection(op)
        kept.append(indices)
        reasons.append(next((known[op.signature] for op in ops if known[op.signature] is not None), None))
    table = np.array(kept, dtype=np.int64).reshape(len(kept), len(factor.scope))
    active = np.ones(table.shape, dtype=bool)
    for column, name in enumerate(factor.scope):
        for parent, labels in space.conditions.get(name, {}).items():
            if parent in factor.scope:
                active[:, column] &= np.isin(table[:, factor.scope.index(parent)], list(labels))
    return _Rows(factor.scope, table, reasons, active)


def _by_operations(space: Space, factors: list[Factor], rules: Rules, allowed: dict[str, list[int]]) -> list[Removed]:
    """Remove options until no combination of a factor's choices that is left leads to an operation that does not conform."""
    known: dict[str, str | None] = {}
    rows = [_rows(space, factor, rules, allowed, known) for factor in factors]
    removed: list[Removed] = []
    while True:
        wrong: dict[tuple[str, int], int] = {}
        total: dict[tuple[str, int], int] = {}
        reason_of: dict[tuple[str, int], str] = {}
        stuck = ""
        for table in rows:
            alive = table.alive(allowed)
            failing = alive & table.bad
            for row in np.flatnonzero(failing):
                reason = table.reasons[row] or ""
                stuck = stuck or reason
                for column, name in enumerate(table.scope):
                    if table.active[row, column]:
                        reason_of.setdefault((name, int(table.indices[row, column])), reason)
            for column, name in enumerate(table.scope):
                counted = table.active[:, column]
                for mask, counts in ((alive & counted, total), (failing & counted, wrong)):
                    for option, count in zip(*np.unique(table.indices[mask, column], return_counts=True), strict=True):
                        counts[name, int(option)] = counts.get((name, int(option)), 0) + int(count)
        if not stuck:
            return removed
        candidates = [key for key in wrong if len(allowed[key[0]]) > 1]
        if not candidates:
            raise UserError(f"the space cannot be restricted to {rules.spec.name}: {stuck}, and no option is left that avoids it")
        name, option = min(candidates, key=lambda key: (-wrong[key] / total[key], total[key], key))
        allowed[name].remove(option)
        removed.append(Removed(name, space.choices[name][option], reason_of[name, option]))
