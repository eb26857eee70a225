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
from sartor.hardware.graph import BYTES, Op, OpGraph

if TYPE_CHECKING:
    from sartor.hardware.roofline import OpTime, Roofline
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


def works(times: Iterable[OpTime], model: Roofline, spec: DeviceSpec) -> list[Work]:
    """Cycles and memory time of an inference by the times of its ops at the device's top clock.

    The call, and of each op the runtime's part, are cycles without traffic; the op itself is both.

    Raises:
        UserError: if the device's file gives no frequency.
    """
    if spec.frequency_hz is None:
        raise UserError(f"device {spec.name}: scaling its clock needs frequencies in its file")
    cycles = spec.frequency_hz / 1e6  # of a microsecond
    size, mj_per_byte = BYTES[model.precision], 1e-9 * pj_per_byte(spec)
    own = Work(model.parameters.op_us * cycles)
    found = [Work(model.parameters.call_us * cycles)]
    for one in times:
        found += [own, Work(one.compute_us * cycles, one.memory_us / 1e6, one.op.traffic(size, size) * mj_per_byte)]
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


def operating_points(
    times: Iterable[OpTime], model: Roofline, spec: DeviceSpec, threads: int = 1, *, stalled: float = 1.0
) -> list[OperatingPoint]:
    """An inference whose ops take these times at the top clock, in every state of the clock whose voltage is known.

    None where the device's file lacks voltages or energy.switched_nf.
    """
    states = [(state.mhz * 1e6, state.volts) for state in spec.frequencies if state.volts is not None]
    if not states or spec.energy.switched_nf is None:
        return []
    switched = spec.energy.switched_nf * spec.share(threads)
    return sweep(works(times, model, spec), states, switched_nf=switched, static_w=spec.energy.static_w or 0.0, stalled=stalled)


def scale(
    ops: OpGraph | Sequence[Op], spec: DeviceSpec, precision: str = "int8", *, threads: int = 1, stalled: float = 1.0
) -> list[OperatingPoint]:
    """Every state of a device's clock whose voltage is known, with energy and latency of a network in it, as `sartor profile` tells them.

    Raises:
        UserError: if its file lacks voltages, energy.switched_nf, or what a roofline needs.
    """
    from sartor.hardware.kept import device_roofline

    graph = ops if isinstance(ops, OpGraph) else OpGraph(tuple(ops), ops[0].in_shape)
    model = device_roofline(spec, precision, threads)
    points = operating_points(model.times(graph), model, spec, threads, stalled=stalled)
    if not points:
        raise UserError(f"device {spec.name}: scaling its clock needs frequencies with volts and energy.switched_nf in its file")
    return points
