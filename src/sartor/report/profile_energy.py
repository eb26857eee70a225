"""What `sartor profile` says of energy: the device file's model of it, and what each state of the clock would make of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.hardware.roofline import OpTime, Roofline
    from sartor.hardware.spec import DeviceSpec


def energy_record(model: Roofline, times: Sequence[OpTime], spec: DeviceSpec, precision: str, threads: int) -> dict[str, Any]:
    """Energy of an inference by the roofline's times: dynamic_mj, static_mj, total_mj, edp_mj_ms, validated, states and best_mhz.

    `states` are those of the clock whose voltage is known, each with mhz, volts, latency_ms, total_mj and edp_mj_ms; `best_mhz` is the
    one with the smallest energy-delay product. Raises UserError where the device's file does not tell enough.
    """
    from sartor.hardware.dvfs import best_point, operating_points
    from sartor.hardware.energy import energy_model

    coefficients = energy_model(spec, precision)
    latency_ms = (sum(one.us for one in times) + model.parameters.call_us) / 1e3
    found = coefficients.energy([(one.op, one.us / 1e3) for one in times], latency_ms, spec.share(threads))
    points = operating_points(times, model, spec, threads)
    if points and coefficients.power_w is not None:
        found = points[-1].energy  # the same, with the call's own switching
    return {
        "dynamic_mj": found.dynamic_mj, "static_mj": found.static_mj, "total_mj": found.total_mj, "edp_mj_ms": found.edp_mj_ms,
        "validated": found.validated,
        "states": [
            {"mhz": point.hz / 1e6, "volts": point.volts, "latency_ms": point.latency_ms, "total_mj": point.energy.total_mj,
             "edp_mj_ms": point.energy.edp_mj_ms}
            for point in points
        ],
        "best_mhz": best_point(points).hz / 1e6 if points else None,
    }  # fmt: skip


def energy_sentence(found: dict[str, Any]) -> str:
    """The record in a sentence."""
    said = (
        f"Modelled energy {found['total_mj']:.4g} mJ ({found['dynamic_mj']:.4g} dynamic, {found['static_mj']:.4g} static), "
        f"energy-delay product {found['edp_mj_ms']:.4g} mJ·ms; no power meter has confirmed it"
    )
    if found["best_mhz"] is None:
        return said + "."
    states = ", ".join(f"{state['mhz']:g} MHz {state['edp_mj_ms']:.4g}" for state in found["states"])
    return f"{said}. By state of the clock it is {states} mJ·ms: the least at {found['best_mhz']:g} MHz."
