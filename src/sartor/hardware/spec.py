"""A device as numbers: one TOML file with the source of each number, read into a `DeviceSpec`.

A spec is what a data sheet can say. Models of latency, memory and energy start from it; a figure computed from it alone is no
measurement, and `measured` says which of the two a device's figures are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sartor.errors import UserError

if TYPE_CHECKING:
    from sartor.hardware.graph import Op

Level = Literal["unsupported", "unfriendly"]
Precision = Literal["fp32", "fp16", "bf16", "int16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
NAME = r"[a-z0-9][a-z0-9_.-]{0,62}"  # of a device, which is that of its file too
ESTIMATE = "estimate"  # a source that begins so names no document: it gives the reasoning instead
_PLAIN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
MEMORIES = ("dram", "sram")
Positive = Field(gt=0)


class Frequency(BaseModel):
    """One state of the clock, with the core's voltage in it where that is known."""

    model_config = _PLAIN

    mhz: float = Positive
    volts: float | None = Field(default=None, gt=0, lt=6)


class Cache(BaseModel):
    """One level of cache: `bytes` of one instance, `shared` by all cores or one for each."""

    model_config = _PLAIN

    level: int = Field(ge=1, le=4)
    bytes: int = Positive
    shared: bool = False


class Energy(BaseModel):
    """Coefficients of `sum C·V²·f·activity·T_op + P_static·T`.

    `switched_nf` is the capacitance that all cores together switch per cycle at full activity, in nF; `static_w` what is drawn whether
    or not anything runs. `pj_per_op` (by precision; a MAC is two operations) is the alternative where no voltage is known. `pj_per_byte`
    (by memory: dram, sram) is what moving data costs besides; memory on the chip switches with it, so `sram` cannot stand beside
    `switched_nf`.
    """

    model_config = _PLAIN

    switched_nf: float | None = Field(default=None, gt=0)
    static_w: float | None = Field(default=None, ge=0)
    pj_per_op: dict[str, float] = {}
    pj_per_byte: dict[str, float] = {}

    @model_validator(mode="after")
    def _check(self) -> Energy:
        for name, known in (("pj_per_op", PRECISIONS), ("pj_per_byte", MEMORIES)):
            for key, value in getattr(self, name).items():
                if key not in known or not value > 0:
                    raise ValueError(f"{name}: expected positive numbers by {', '.join(known)}, got {key} = {value}")
        if self.switched_nf is not None and "sram" in self.pj_per_byte:
            raise ValueError("pj_per_byte: expected dram alone beside switched_nf, which counts the chip's own memory, got sram as well")
        return self


class AgentAddress(BaseModel):
    """Where a device's `sartor agent` answers. The token itself stays in its own file."""

    model_config = _PLAIN

    url: str = Field(pattern=r"^https?://[^\s/]+/?$")
    token_file: str | None = None
    certificate: str | None = None  # PEM file of the authority to trust, for an https agent with a certificate of its own
    patience_s: float = Field(default=600.0, gt=0)  # how long an agent that does not answer, or is busy, is waited for

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str) -> str:
        """Refuses what no connection can be made to: it would fail at the first request otherwise, and not in a sentence."""
        parts = urlsplit(url)
        name = (parts.hostname or "").encode("idna")
        if not name or parts.port == 0 or parts.query or parts.fragment or parts.username is not None:
            raise ValueError("expected a host, and a port where it is not the usual one, and nothing else")
        return url


class DeviceSpec(BaseModel):
    """What is known of a device. Quantities that are not known are None or missing from their mapping, never made up.

    `lanes`, `peak_ops_per_s` are by precision; peaks are those of the whole device with all `cores` at its top
    frequency, and a multiply-accumulate counts as two operations. `bandwidth_bytes_per_s` is what all cores together get out of main
    memory (of the SRAM that holds the activations, on a microcontroller). `overhead_us` is the runtime's fixed cost for each op.
    `unsupported` and `unfriendly` map a pattern to the reason (see `objections`): the first do not run there, the second run badly.
    """

    model_config = _PLAIN

    name: str = Field(pattern=f"^{NAME}$")
    title: str = Field(min_length=1)
    kind: Literal["cpu", "gpu", "dsp", "mcu", "accelerator"]
    processor: str = ""
    measured: bool = False
    runtime: str = Field(min_length=1)
    precisions: tuple[Precision, ...] = Field(min_length=1)
    cores: int = Positive
    bandwidth_bytes_per_s: float | None = Field(default=None, gt=0)
    overhead_us: float | None = Field(default=None, ge=0)
    ram_bytes: int | None = Field(default=None, gt=0)
    sram_bytes: int | None = Field(default=None, gt=0)
    flash_bytes: int | None = Field(default=None, gt=0)
    notes: tuple[str, ...] = ()
    lanes: dict[str, int] = {}
    peak_ops_per_s: dict[str, float] = {}
    frequencies: tuple[Frequency, ...] = ()
    caches: tuple[Cache, ...] = ()
    unsupported: dict[str, str] = {}
    unfriendly: dict[str, str] = {}
    energy: Energy = Energy()
    agent: AgentAddress | None = None
    sources: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> DeviceSpec:
        if self.measured and self.agent is None and self.name != "host":
            raise ValueError("measured: expected an agent, which alone can measure the device, got none: leave it out, or false")
        for name in ("lanes", "peak_ops_per_s"):
            values: Mapping[str, float] = getattr(self, name)
            for precision, value in values.items():
                if precision not in PRECISIONS or not value > 0:
                    raise ValueError(f"{name}: expected positive numbers by precision ({', '.join(PRECISIONS)}), got {precision} = {value}")
        if [one.mhz for one in self.frequencies] != sorted({one.mhz for one in self.frequencies}):
            raise ValueError("frequencies: expected states in rising order of mhz, each once")
        for pattern in (*self.unsupported, *self.unfriendly):
            _parse_pattern(pattern)
        given = self.model_dump(exclude={"sources", "agent"}, exclude_unset=True)
        missing = [path for path in _numbers(given) if self.source(path) is None]
        if missing:
            raise ValueError(f"sources: expected the source of every number (a document, or 'estimate: …'), got none for {missing[0]}")
        return self

    @property
    def frequency_hz(self) -> float | None:
        """Top frequency of the clock."""
        return self.frequencies[-1].mhz * 1e6 if self.frequencies else None

    @property
    def threaded(self) -> bool:
        """Whether a thread takes a core, as on a CPU and a microcontroller; other kinds spread every op over all their cores."""
        return self.kind in ("cpu", "mcu")

    def share(self, threads: int) -> float:
        """Share of the cores that so many threads keep busy."""
        return min(1.0, threads / self.cores) if self.threaded else 1.0

    def source(self, path: str) -> str | None:
        """Source of the number at a dotted path such as `peak_ops_per_s.int8`: its own, or that of what contains it."""
        parts = path.split(".")
        keys = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((self.sources[key] for key in keys if self.sources.get(key, "").strip()), None)

    def estimated(self, path: str) -> bool:
        """Whether the number at a dotted path is reasoned, not documented."""
        return (self.source(path) or "").lower().startswith(ESTIMATE)

    def objections(self, op: Op) -> list[tuple[Level, str, str]]:
        """(level, pattern, reason) of everything that is known against an op on the device, what does not run first.

        Patterns: an op kind (`se`, `resize`), `act:hardswish`, `conv:depthwise`, `conv:grouped` (groups > 1, not depthwise),
        `conv:dilated`, `conv:kernel>5`.
        """
        tables: tuple[tuple[Level, dict[str, str]], ...] = (("unsupported", self.unsupported), ("unfriendly", self.unfriendly))
        return [(level, pattern, reason) for level, table in tables for pattern, reason in table.items() if matches(pattern, op)]

    def objection(self, op: Op) -> tuple[Level, str] | None:
        """The first of `objections`, as (level, reason); None when nothing is known against the op."""
        return next(((level, reason) for level, _, reason in self.objections(op)), None)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def parse(text: str, where: str = "the device file") -> DeviceSpec:
    """A spec from TOML. Raises UserError, one sentence, for text that is no TOML, unknown or missing fields, and numbers without source."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return DeviceSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: expected TOML, got an error: {error}") from None
    except ValidationError as error:
        raise UserError(in_words(error, where)) from None


def in_words(error: ValidationError, where: str) -> str:
    """The first of the faults of a device, in a sentence."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the device"
    got = f" (got {first['input']!r})" if first["loc"] and first["type"] != "missing" else ""
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f"; and {len(error.errors()) - 1} more" if len(error.errors()) > 1 else ""
    return f"{where}: {field}: {message[0].lower()}{message[1:]}{got}{more}. See docs/devices.md for the fields."


def read(path: Path | str) -> DeviceSpec:
    """A spec from a TOML file. Raises UserError as `parse`, and when the file cannot be read."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected a device file that can be read at {path}, got: {error}") from None


def matches(pattern: str, op: Op) -> bool:
    """Whether an op is one of those a pattern of `DeviceSpec.objections` names."""
    kind, detail = _parse_pattern(pattern)
    if kind == "act":
        gate = "hardsigmoid" if op.kind == "se" and not op.act else op.act
        return gate == detail if detail else op.kind == "act"
    if op.kind != kind:
        return False
    if detail.startswith("kernel>"):
        return op.kernel > int(detail.removeprefix("kernel>"))
    depthwise = op.groups > 1 and op.groups == op.in_shape[0]
    return {"": True, "depthwise": depthwise, "grouped": op.groups > 1 and not depthwise, "dilated": op.dilation > 1}[detail]


def _parse_pattern(pattern: str) -> tuple[str, str]:
    from sartor.hardware.graph import ACTS, KINDS

    kind, _, detail = pattern.partition(":")
    known = kind in KINDS and (
        not detail
        or (kind == "act" and detail in ACTS)
        or (kind == "conv" and detail in ("depthwise", "grouped", "dilated"))
        or (kind in ("conv", "maxpool", "avgpool") and detail.startswith("kernel>") and detail.removeprefix("kernel>").isdecimal())
    )
    if not known:
        raise ValueError(f"expected an op kind, act:NAME, conv:depthwise, conv:grouped, conv:dilated or conv:kernel>N, got {pattern!r}")
    return kind, detail


def _numbers(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the numbers inside nested mappings; those of a list are named by the list."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        if any(list(_numbers(inner, path)) for inner in value):
            yield path
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path
