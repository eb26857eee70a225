"""What a machine's system tells of it: cores, clock, caches and memory, from /proc and /sys. No quantity is guessed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sartor.hardware.device import cores, host

_SYSFS = Path("/sys/devices/system/cpu")

# Where each of the facts is read.
SOURCES = {
    "cores": "the operating system: cores this process may use",
    "frequencies": "/sys/devices/system/cpu/cpu0/cpufreq, or the clock that /proc/cpuinfo shows",
    "caches": "/sys/devices/system/cpu/cpu*/cache",
    "ram_bytes": "/proc/meminfo",
    "lanes": "the vector instruction sets that /proc/cpuinfo lists",
}


def system_facts() -> dict[str, Any]:
    """cores, lanes, frequencies, caches and ram_bytes in the form of `DeviceSpec`, each only where the system tells it."""
    found: dict[str, Any] = {"cores": cores()}
    bits = _vector_bits()
    if bits:
        found["lanes"] = {"fp32": bits // 32, "int8": bits // 8}
    clocks = _clocks_mhz()
    if clocks:
        found["frequencies"] = [{"mhz": mhz} for mhz in clocks]
    caches = _caches()
    if caches:
        found["caches"] = caches
    memory = Path("/proc/meminfo")
    if memory.exists():
        found["ram_bytes"] = int(memory.read_text().split("MemTotal:")[1].split()[0]) * 1024
    return found


def _vector_bits() -> int:
    isa = set(host().isa)
    return next((bits for flag, bits in (("avx512f", 512), ("avx2", 256), ("avx", 256), ("asimd", 128)) if flag in isa), 0)


def _clocks_mhz() -> list[float]:
    folder = _SYSFS / "cpu0/cpufreq"
    for name in ("scaling_available_frequencies", "cpuinfo_max_freq"):
        if (folder / name).exists():
            return sorted({int(text) / 1e3 for text in (folder / name).read_text().split()})
    info = Path("/proc/cpuinfo")
    lines = [line for line in info.read_text(errors="replace").splitlines() if line.startswith("cpu MHz")] if info.exists() else []
    return [max(float(line.split(":")[1]) for line in lines)] if lines else []


def _usable() -> set[int]:
    """Numbers of the cores this process may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(cores()))


def _numbers(ranges: str) -> set[int]:
    """{0, 1, 2, 8} of `0-2,8`, as the kernel writes sets of cores."""
    parts = [part.partition("-") for part in ranges.split(",") if part]
    return {number for first, _, last in parts for number in range(int(first), int(last or first) + 1)}


def _caches() -> list[dict[str, Any]]:
    found, mine = [], _usable()
    for folder in sorted((_SYSFS / f"cpu{min(mine)}/cache").glob("index*")):
        facts = {
            name: (folder / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list") if (folder / name).exists()
        }
        if facts.get("type") in ("Data", "Unified") and facts.get("size", "").endswith("K"):
            # By all cores, not by the two threads of one.
            shared = len(mine) > 1 and mine <= _numbers(facts.get("shared_cpu_list", ""))
            found.append({"level": int(facts["level"]), "bytes": int(facts["size"][:-1]) * 1024, "shared": shared})
    return found
