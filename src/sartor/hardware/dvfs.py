"""Dynamic voltage and frequency scaling: which state of the clock an inference should run in, by the energy model.

    f* = argmin E(f) · T(f)   subject to   T(f) <= deadline

An op's arithmetic takes a number of cycles, its memory traffic a time that the core's clock does not change; T_op is the longer of the two
(the roofline), and an op that waits for memory switches only for the share of the time in which it computes, plus what its waiting cores
still switch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sartor.errors import UserError
from sartor.hardware.energy import Energy, pj_per_byte
from sartor.hardware.graph import Op

if TYPE_CHECKING:
    from sartor.hardware.spec import DeviceSpec


@dataclass(frozen=True)
class Work:
    """What one op costs at any clock: `cycles` of arithmetic (and of the runtime), and seconds and mJ of memory traffic beside them."""

    cycles: float
    memory_s: float = 0.0
    traffic_mj: float = 0.0

    def seconds(self, hz: float) -> float:
        return max(self.cycles / hz, self.memory_s)

    def activity(self, hz: float, stalled: float) -> float:
        """Share of full switching: 1 while it computes, `stalled` while it waits."""
        busy = self.cycles / hz / self.seconds(hz) if self.seconds(hz) > 0 else 1.0
        return busy + stalled * (1.0 - busy)


@dataclass(frozen=True)
class OperatingPoint:
    """One state of the clock and what an inference costs in it."""

    hz: float
    volts: float
    energy: Energy

    @property
    def latency_ms(self) -> float:
        return self.energy.latency_ms


def works(ops: Iterable[Op], spec: DeviceSpec, precision: str = "int8") -> list[Work]:
    """Cycles and memory time of ops on a device, from its peak (at its top clock), bandwidth and overhead.

    Raises:
        UserError: if the device's file gives no peak at that precision, or no frequency.
    """
    top, peak = spec.frequency_hz, spec.peak_ops_per_s.get(precision)
    if top is None or peak is None:
        raise UserError(f"device {spec.name}: scaling its clock needs frequencies and peak_ops_per_s.{precision} in its file")
    size = {"int8": 1, "int16": 2, "fp16": 2, "bf16": 2}.get(precision, 4)
    overhead = (spec.overhead_us or 0.0) * 1e-6 * top
    bandwidth = spec.bandwidth_bytes_per_s
    mj_per_byte = 1e-9 * pj_per_byte(spec)
    found = []
    for op in ops:
        moved = op.traffic(size, size)
        found.append(Work(2 * op.macs * top / peak + overhead, moved / bandwidth if bandwidth else 0.0, moved * mj_per_byte))
    return found


def sweep(
    work: Sequence[Work], states: Iterable[tuple[float, float]], *, switched_nf: float, static_w: float, stalled: float = 1.0
) -> list[OperatingPoint]:
    """Energy and latency of an inference in each state (hz, volts).

    `stalled` is the share of full switching of cores that wait for memory: 1 says that their clock is never gated.
    """
    points = []
    for hz, volts in states:
        power_w = switched_nf * 1e-9 * volts**2 * hz
        seconds = [one.seconds(hz) for one in work]
        total_ms = 1e3 * sum(seconds)
        dynamic = sum(1e3 * power_w * one.activity(hz, stalled) * s + one.traffic_mj for one, s in zip(work, seconds, strict=True))
        points.append(OperatingPoint(hz, volts, Energy(dynamic, static_w * total_ms, total_ms)))
    return points


def best_point(points: Sequence[OperatingPoint], deadline_ms: float | None = None) -> OperatingPoint:
    """The point with the smallest energy-delay product among those that keep the deadline.

    Raises:
        UserError: if none keeps it, naming the fastest.
    """
    if not points:
        raise UserError("dvfs: expected at least one operating point, got none: the device's file lists no frequencies with volts")
    kept = [p for p in points if deadline_ms is None or p.latency_ms <= deadline_ms]
    if not kept:
        fastest = min(points, key=lambda p: p.latency_ms)
        raise UserError(
            f"dvfs: no state keeps {deadline_ms:g} ms; the fastest, {fastest.hz / 1e6:g} MHz, takes {fastest.latency_ms:.4g} ms"
        )
    return min(kept, key=lambda p: (p.energy.edp_mj_ms, p.latency_ms))


def scale(ops: Iterable[Op], spec: DeviceSpec, precision: str = "int8", *, stalled: float = 1.0) -> list[OperatingPoint]:
    """Every state of a device's clock whose voltage is known, with energy and latency of a network in it.

    Raises:
        UserError: if its file lacks voltages, energy.switched_nf, or what :func:`works` needs.
    """
    states = [(state.mhz * 1e6, state.volts) for state in spec.frequencies if state.volts is not None]
    if not states or spec.energy.switched_nf is None:
        raise UserError(f"device {spec.name}: scaling its clock needs frequencies with volts and energy.switched_nf in its file")
    return sweep(
        works(ops, spec, precision), states, switched_nf=spec.energy.switched_nf, static_w=spec.energy.static_w or 0.0, stalled=stalled
    )  # fmt: skip
