"""Which machine and which runtime a figure belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sartor.errors import UserError

PRECISIONS = ("int8", "fp32")
# What decides which kernels a runtime picks, by the names of /proc/cpuinfo (x86, arm64).
ISA_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)


@dataclass(frozen=True)
class Identity:
    """What a latency belongs to: figures of different identities are never mixed."""

    cpu: str
    isa: tuple[str, ...]
    runtime: str
    version: str
    precision: str
    threads: int

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, stable across processes and machines."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def has_vnni(self) -> bool:
        """Whether 8-bit products add up in 32 bits; without it 8-bit weights saturate and 7-bit weights are needed."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(self.isa))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Identity:
        """Raises UserError when a field is missing."""
        try:
            return cls(str(record["cpu"]), tuple(record["isa"]), str(record["runtime"]), str(record["version"]),
                       str(record["precision"]), int(record["threads"]))  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"expected a device identity with cpu, isa, runtime, version, precision and threads, got an error at {error}"
            ) from None

    def __str__(self) -> str:
        return f"{self.cpu}, {self.runtime} {self.version}, {self.precision}, {self.threads} thread{'s' if self.threads != 1 else ''}"


def host(precision: str = "int8", threads: int = 1) -> Identity:
    """The identity of this machine with ONNX Runtime. Raises UserError for an unknown precision or thread count."""
    from importlib.metadata import version

    if precision not in PRECISIONS:
        raise UserError(f"expected precision to be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not 1 <= threads <= cores():
        raise UserError(f"expected threads between 1 and the {cores()} cores of this machine, got {threads}")
    name, isa = _cpu()
    return Identity(name, isa, "onnxruntime", version("onnxruntime"), precision, threads)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(precision: str = "int8", threads: int = 1) -> dict[str, Any]:
    """This machine for `sartor devices` and reports: the identity's fields, its fingerprint, cores and system."""
    return {"name": "host", **host(precision, threads).to_json(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and instruction sets. Family, model and stepping join the name: hypervisors shorten names to a brand."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if not line.strip() and fields:
                break
            fields[key.strip()] = value.strip()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    numbers = "-".join(fields[key] for key in ("cpu family", "model", "stepping") if key in fields)
    return (f"{name} ({numbers})" if numbers else name), tuple(flag for flag in ISA_FLAGS if flag in flags)
