"""What the machine tells of its own state while something is measured: temperature, clock and power, from /sys and /proc.

Nothing is estimated: a figure that the machine does not tell is None. Virtual machines and containers often tell none of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOT_C = 85.0  # most boards and laptops lower their clock between 80 and 95 degrees
SLOWED = 0.9  # a clock under this share of that at the start was lowered


@dataclass(frozen=True)
class Moment:
    """One reading. `energy_j` counts up from an unknown start; `power_w` is what a sensor shows at this moment."""

    at: float  # seconds of the monotonic clock
    temperature_c: float | None = None
    frequency_mhz: float | None = None
    energy_j: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Conditions:
    """A stretch of time: highest temperature, lowest clock and average power in it. `warnings` are sentences about what was amiss."""

    temperature_c: float | None = None
    frequency_mhz: float | None = None
    power_w: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "warnings": list(self.warnings)}


def read(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Moment:
    """The state now: hottest thermal zone, mean clock of the cores, energy counter of the package (RAPL), or a board's power sensor."""
    temperatures = [value / 1e3 for value in _numbers(sorted((sys / "class/thermal").glob("thermal_zone*/temp"))) if 0 < value < 150_000]
    clocks = [value / 1e3 for value in _numbers(sorted((sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")))]
    if not clocks:
        clocks = _cpuinfo_mhz(proc / "cpuinfo")
    # Only whole packages: their parts (cores, uncore) are counted in them.
    energies = [value / 1e6 for value in _numbers(sorted((sys / "class/powercap").glob("intel-rapl:[0-9]/energy_uj")))]
    powers = [value / 1e6 for value in _numbers(sorted((sys / "class/hwmon").glob("hwmon*/power1_input")))]
    return Moment(
        time.monotonic(),
        max(temperatures, default=None),
        sum(clocks) / len(clocks) if clocks else None,
        sum(energies) if energies else None,
        sum(powers) if powers else None,
    )


def between(moments: Iterable[Moment]) -> Conditions | None:
    """What a series of readings says of the time between them; None when the machine told nothing."""
    seen = list(moments)
    temperatures = [m.temperature_c for m in seen if m.temperature_c is not None]
    clocks = [m.frequency_mhz for m in seen if m.frequency_mhz is not None]
    sensors = [m.power_w for m in seen if m.power_w is not None]
    power = sum(sensors) / len(sensors) if sensors else None
    if len(seen) > 1 and seen[0].energy_j is not None and seen[-1].energy_j is not None and seen[-1].at > seen[0].at:
        used = seen[-1].energy_j - seen[0].energy_j
        power = used / (seen[-1].at - seen[0].at) if used >= 0 else power  # the counter wraps around now and then
    if not temperatures and not clocks and power is None:
        return None
    warnings = []
    if temperatures and max(temperatures) >= HOT_C:
        warnings.append(f"the machine was hot: {max(temperatures):.0f} °C")
    if clocks and min(clocks) < SLOWED * clocks[0]:
        warnings.append(f"the clock fell from {clocks[0]:.0f} to {min(clocks):.0f} MHz")
    return Conditions(max(temperatures, default=None), min(clocks, default=None), power, tuple(warnings))


def _numbers(files: Iterable[Path]) -> list[float]:
    found = []
    for file in files:
        try:
            found.append(float(file.read_text().split()[0]))
        except (OSError, ValueError, IndexError):
            continue  # a sensor that is switched off, or for root only
    return found


def _cpuinfo_mhz(file: Path) -> list[float]:
    try:
        lines = [line for line in file.read_text(errors="replace").splitlines() if line.startswith("cpu MHz")]
    except OSError:
        return []
    return [float(line.partition(":")[2]) for line in lines]
