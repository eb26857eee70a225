"""Energy of an inference: what switching and moving data costs, and what is drawn all the while. A model, validated by no measurement here.

    E = sum over ops of (C · V² · f · activity · T_op + traffic)  +  P_static · T

C is the capacitance switched per cycle, V and f voltage and clock frequency, T_op the time of one op and T that of the whole inference;
traffic is bytes to and from main memory times the energy of one, where the device's file tells it.
(The formula is often printed without T_op, which would add watts to joules.) An op that is bound by arithmetic takes a fixed number of
cycles, so C · V² · f · T_op does not depend on f as long as V is the same: clocking down saves energy through the voltage only, and costs
static energy. Where a device's voltages are not known, its energy per operation and per byte stand for the dynamic term.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sartor.errors import UserError
from sartor.hardware.graph import BYTES, Op

if TYPE_CHECKING:
    from sartor.hardware.spec import DeviceSpec


@dataclass(frozen=True)
class Energy:
    """Energy of one inference in mJ, its latency in ms, and whether the model was ever compared with a power meter."""

    dynamic_mj: float
    static_mj: float
    latency_ms: float
    validated: bool = False

    @property
    def total_mj(self) -> float:
        return self.dynamic_mj + self.static_mj

    @property
    def edp_mj_ms(self) -> float:
        """Energy-delay product in mJ · ms."""
        return self.total_mj * self.latency_ms


@dataclass(frozen=True)
class EnergyModel:
    """Coefficients of a device at one operating point.

    Either `switched_nf` (nF that all cores together switch per cycle at full activity), `volts` and `hz`, or `pj_per_op` (a
    multiply-accumulate is two operations); with either of them `pj_per_byte` (of main memory).
    """

    static_w: float
    switched_nf: float | None = None
    volts: float | None = None
    hz: float | None = None
    pj_per_op: float | None = None
    pj_per_byte: float = 0.0
    bytes_per_value: int = 1

    def __post_init__(self) -> None:
        physical = None not in (self.switched_nf, self.volts, self.hz)
        if not physical and self.pj_per_op is None:
            raise UserError("an energy model needs switched_nf with volts and hz, or pj_per_op")

    @property
    def power_w(self) -> float | None:
        """Dynamic power C · V² · f at full activity in W; None where the model is one of energy per operation."""
        if self.switched_nf is None or self.volts is None or self.hz is None:
            return None
        return self.switched_nf * 1e-9 * self.volts**2 * self.hz

    def op_mj(self, op: Op, latency_ms: float, activity: float = 1.0) -> float:
        """Dynamic energy of one op in mJ. `activity` is the share of all cores' switching that goes on for `latency_ms`.

        An op whose cores wait for memory switches less; whoever knows the share says so.
        """
        power = self.power_w
        if power is not None:
            return power * activity * latency_ms + self.traffic_mj(op)
        assert self.pj_per_op is not None
        return 1e-9 * 2 * op.macs * self.pj_per_op + self.traffic_mj(op)

    def traffic_mj(self, op: Op) -> float:
        """Energy in mJ of moving an op's operands, weights and result, which the clock does not change."""
        return 1e-9 * op.traffic(self.bytes_per_value, self.bytes_per_value) * self.pj_per_byte

    def energy(self, timed: Iterable[tuple[Op, float]], latency_ms: float, activity: float = 1.0) -> Energy:
        """Energy of an inference of `latency_ms` whose ops take the given times in ms."""
        return Energy(sum(self.op_mj(op, ms, activity) for op, ms in timed), self.static_w * latency_ms, latency_ms)


def energy_model(spec: DeviceSpec, precision: str = "int8", state: int = -1) -> EnergyModel:
    """The model of a device in one of its frequency states (default: the highest).

    Raises:
        UserError: if its file tells neither voltages with a switched capacitance nor an energy per operation at that precision.
    """
    known = spec.energy
    clock = spec.frequencies[state] if spec.frequencies else None
    static = known.static_w or 0.0
    size = BYTES.get(precision, 4)
    moved = pj_per_byte(spec)
    if known.switched_nf is not None and clock is not None and clock.volts is not None:
        # DRAM is another chip with a supply of its own: the capacitance that this one switches does not count it. Buffers on the chip are
        # part of that capacitance; a file that tells their energy as well is refused, see `sartor.hardware.spec.Energy`.
        return EnergyModel(static, known.switched_nf, clock.volts, clock.mhz * 1e6, pj_per_byte=moved, bytes_per_value=size)
    if precision in known.pj_per_op:
        return EnergyModel(static, pj_per_op=known.pj_per_op[precision], pj_per_byte=moved, bytes_per_value=size)
    raise UserError(
        f"device {spec.name}: its energy is not known: its file gives neither voltages with energy.switched_nf "
        f"nor energy.pj_per_op of {precision}"
    )


def pj_per_byte(spec: DeviceSpec) -> float:
    """Energy of a byte to or from main memory in pJ, which is SRAM where there is no DRAM; 0 where the device's file does not tell."""
    known = spec.energy.pj_per_byte
    return known.get("dram", known.get("sram", 0.0))


def has_energy(spec: DeviceSpec, precision: str = "int8") -> bool:
    """Whether :func:`energy_model` exists for a device."""
    try:
        energy_model(spec, precision)
    except UserError:
        return False
    return True


def merit(accuracy: float, energy_mj: float, latency_ms: float, *, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> float:
    """Figure of merit `Acc^alpha / (E^beta · T^gamma)`, the more the better; in fraction, mJ and ms.

    Raises:
        UserError: if energy or latency is not above zero, or the accuracy is negative.
    """
    if not (accuracy >= 0 and energy_mj > 0 and latency_ms > 0) or not math.isfinite(energy_mj * latency_ms):
        raise UserError(f"merit: expected accuracy >= 0 and energy and latency above 0, got {accuracy}, {energy_mj} mJ, {latency_ms} ms")
    return float(accuracy**alpha / (energy_mj**beta * latency_ms**gamma))
