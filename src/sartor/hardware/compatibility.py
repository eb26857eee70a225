"""Whether a target runs the ops of a network or of a whole search space: asked before anything is trained.

Two sources. A device file says which ops the device does not run or runs badly, and why (`check`, `check_space`): that works for devices
that are not here. A runtime that is here is asked itself (`ask_runtime`): every op is put to it in a small file, and what it refuses, or
takes back to floats in an int8 file, is told in its own words.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from sartor.errors import UserError
from sartor.hardware.cost import Factor, combinations
from sartor.hardware.graph import Op

if TYPE_CHECKING:
    from sartor.hardware._lower import Quantize

Level = Literal["unsupported", "unfriendly"]
PROBE_OPS = 16  # ops that share one file when a runtime is asked
_INTEGER = ("QLinear", "QGemm", "NhwcMaxPool", "MaxPool", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reorder", "Flatten",
            "Reshape", "Squeeze", "Identity", "Concat")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """An op that the target does not run ("unsupported") or runs badly ("unfriendly"), and why."""

    op: Op
    level: Level
    reason: str

    def __str__(self) -> str:
        return f"{self.op.name or self.op.signature} ({self.op.signature}) is {self.level}: {self.reason}"


@dataclass(frozen=True)
class Option:
    """Options of choices that bring an op with a finding into the network: {choice: label}. Empty: the op is in every network."""

    choices: Mapping[str, object]
    finding: Finding

    def __str__(self) -> str:
        where = ", ".join(f"{choice} = {label}" for choice, label in self.choices.items()) or "every network"
        return f"{where}: {self.finding.op.signature} is {self.finding.level}: {self.finding.reason}"


class Critic(Protocol):
    """Whoever says what is against an op: a :class:`sartor.hardware.spec.DeviceSpec`, or the :class:`Answers` of a runtime."""

    def objection(self, op: Op) -> tuple[Level, str] | None: ...


class Answers:
    """What a runtime here says of the ops of a space, one of each kind asked: ops that differ only in their sizes run alike or not at all.

    Args:
        ops: all that may be asked about.
        runtime, precision, quantize: as :func:`ask_runtime`, which says what is refused.
    """

    def __init__(
        self, ops: Iterable[Op], runtime: str = "onnxruntime", precision: str = "fp32", quantize: Quantize | None = None
    ) -> None:  # fmt: skip
        examples: dict[tuple[object, ...], Op] = {}
        for op in ops:
            known = examples.get(_kind(op))
            if known is None or _values(op) < _values(known):
                examples[_kind(op)] = op
        self.asked = len(examples)
        found = ask_runtime(examples.values(), runtime, precision, quantize)
        self._said: dict[tuple[object, ...], tuple[Level, str]] = {_kind(one.op): (one.level, one.reason) for one in found}

    def objection(self, op: Op) -> tuple[Level, str] | None:
        """Raises nothing for an op that was not asked about: nothing is known against it."""
        return self._said.get(_kind(op))


def _kind(op: Op) -> tuple[object, ...]:
    """What decides whether a runtime has a kernel; channels and maps do not, but that depthwise and grouped convolutions differ."""
    groups = "depthwise" if op.groups > 1 and op.groups == op.in_shape[0] else "one" if op.groups == 1 else op.groups
    return op.kind, op.kernel, op.stride, op.dilation, groups, op.act, op.label


def _values(op: Op) -> int:
    return math.prod(op.in_shape) + math.prod(op.out_shape)


def check(ops: Iterable[Op], device: Critic) -> list[Finding]:
    """What a device file says against the ops, one finding for each signature, the unsupported first."""
    found: dict[str, Finding] = {}
    for op in ops:
        said = device.objection(op)
        if said is not None and op.signature not in found:
            found[op.signature] = Finding(op, *said)
    return sorted(found.values(), key=lambda finding: finding.level != "unsupported")


def check_space(factors: Iterable[Factor], choices: Mapping[str, Sequence[object]], device: Critic) -> list[Option]:
    """What a device file, or a runtime that was asked, says against the options of a space: `net.factors()` and `net.space.choices`.

    A finding names no choice that can be spared: an activation is not blamed on the width that it comes with. Options of every
    factor are listed once, the unsupported first. An empty list means that any architecture runs there.
    """
    found: dict[tuple[object, ...], Option] = {}
    known: dict[str, tuple[Level, str] | None] = {}

    def against(ops: Iterable[Op]) -> dict[tuple[Level, str], Finding]:
        each = {op.signature: op for op in ops}
        known.update((name, device.objection(op)) for name, op in each.items() if name not in known)
        return {verdict: Finding(op, *verdict) for name, op in each.items() if (verdict := known[name]) is not None}

    for factor in factors:
        grid = list(combinations(factor, {name: range(len(options)) for name, options in choices.items()}))
        said = {indices: against(factor.at(indices)) for indices in grid}
        for key in dict.fromkeys(key for findings in said.values() for key in findings):
            hit = {indices for indices in grid if key in said[indices]}
            places = _deciding(len(factor.scope), grid, hit)
            examples = {tuple(indices[place] for place in places): indices for indices in sorted(hit, reverse=True)}
            for values, example in sorted(examples.items()):
                labels = {factor.scope[place]: choices[factor.scope[place]][value] for place, value in zip(places, values, strict=True)}
                found.setdefault((*labels.items(), *key), Option(labels, said[example][key]))
    return sorted(found.values(), key=lambda option: option.finding.level != "unsupported")


def _deciding(places: int, grid: Sequence[tuple[int, ...]], hit: set[tuple[int, ...]]) -> tuple[int, ...]:
    """Places whose values alone decide whether a combination is hit: all of them, less each one in turn that can be spared."""
    kept = tuple(range(places))
    for place in range(places):
        tried = tuple(other for other in kept if other != place)
        verdicts: dict[tuple[int, ...], bool] = {}
        if all(verdicts.setdefault(tuple(indices[one] for one in tried), indices in hit) == (indices in hit) for indices in grid):
            kept = tried
    return kept


def ask_runtime(
    ops: Iterable[Op], runtime: str = "onnxruntime", precision: str = "fp32", quantize: Quantize | None = None
) -> list[Finding]:  # fmt: skip
    """What a runtime on this machine says of each op, one of each signature, by loading and running it.

    In int8, an op that the runtime computes in floats is unfriendly. `quantize` is `sartor.export.quantize` or alike. Raises UserError
    for runtimes that read no ONNX files, and for one that is not installed.
    """
    from sartor.hardware.runtimes import RUNTIMES, installed

    if runtime not in RUNTIMES or RUNTIMES[runtime].suffix != ".onnx":
        raise UserError(f"expected a runtime that reads ONNX files (onnxruntime, openvino), got {runtime}")
    if installed(runtime) is None:
        raise UserError(f"The runtime {runtime} is not installed: install it with  pip install 'sartor[{RUNTIMES[runtime].extra}]'.")
    groups: dict[tuple[int, int], list[Op]] = defaultdict(list)
    findings: list[Finding] = []
    for op in {op.signature: op for op in ops}.values():
        if op.kind == "other":
            findings.append(Finding(op, "unsupported", f"{op.label} is of no kind that sartor writes files for"))
        else:
            groups[op.in_shape[1:]].append(op)
    for group in groups.values():
        for start in range(0, len(group), PROBE_OPS):
            findings += _ask(group[start : start + PROBE_OPS], runtime, precision, quantize)
    return sorted(findings, key=lambda finding: finding.level != "unsupported")


def _ask(ops: Sequence[Op], runtime: str, precision: str, quantize: Quantize | None) -> list[Finding]:
    """Halves a group that is refused until the one op to blame stands alone."""
    try:
        return _ask_together(ops, runtime, precision, quantize)
    except UserError as error:
        if len(ops) == 1:
            return [Finding(ops[0], "unsupported", str(error))]
    half = len(ops) // 2
    return [*_ask(ops[:half], runtime, precision, quantize), *_ask(ops[half:], runtime, precision, quantize)]


def _ask_together(ops: Sequence[Op], runtime: str, precision: str, quantize: Quantize | None) -> list[Finding]:
    import onnx

    from sartor.hardware._lower import lower, quantize_default
    from sartor.hardware._probe import probe
    from sartor.hardware.runtimes import Setup, load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(probe(ops), path)
        if precision == "int8":
            images = np.random.default_rng(0).standard_normal((1, 1, *ops[0].in_shape[1:])).astype(np.float32)
            (quantize or quantize_default)(path, images, Path(folder) / "int8.onnx")
            path = Path(folder) / "int8.onnx"
        load(path, Setup(runtime, precision))
    if precision != "int8" or runtime != "onnxruntime":
        return []
    found = []
    for op, kernel in zip(ops, lower(ops, "int8", quantize), strict=True):
        floats = sorted({kind for kind in kernel.node_types if not kind.startswith(_INTEGER)})
        if floats:
            found.append(Finding(op, "unfriendly", f"onnxruntime computes it in floats in an int8 file ({', '.join(floats)})"))
    return found
