"""Everything `sartor profile` tells of an ONNX file on a device, as one JSON-ready mapping.

Measured where the device can be measured; otherwise modelled, and marked so. How far a model of the device can be trusted is said with
every figure that comes from one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError

if TYPE_CHECKING:
    from sartor.hardware.graph import OpGraph
    from sartor.hardware.memory import Moment
    from sartor.hardware.roofline import OpTime, Roofline
    from sartor.hardware.runtimes import Setup
    from sartor.hardware.target import Device

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Profile:
    """`record` is what is printed and stored; the rest is what the pictures are drawn from, None where there is nothing to draw."""

    record: dict[str, Any]
    model: Roofline | None
    times: Sequence[OpTime]
    moments: Sequence[Moment]


def profile(
    file: Path, *, setup: Setup, device: str = "host", seconds: float = 1.0, seed: int = 0, sweep: bool = False,
    limit_bytes: float | None = None, progress: Progress | None = None,
) -> Profile:  # fmt: skip
    """Profile one ONNX file.

    The record has `file`, `runtime`, `threads`, `batch`, `device` {name, measured}, `latency` (docs/architecture.md), `layers`
    [{name, latency_us}], `graph` {ops, macs, params, precision, input_shape, foreign}, `memory` {peak_bytes, best_order_bytes, exact,
    timeline}, `roofline` {model, latency_ms, quality, ops}, `table` {latency_ms, quality, verdict}, `energy`
    (`sartor.report.profile_energy`), `compatibility`, `sweep`, `notes`.
    Parts that could not be had are None, with the reason in `notes`; only of energy on this machine, which most know nothing of, no word.

    On a device behind an agent the latency is that of its agent, waited for as a search does; of a device that is only described it is
    None, with what the roofline says under `roofline` and the sentence that nothing was measured under `notes`.

    Raises UserError for a file that cannot be measured, or read for a device that is only described, an unknown device, a runtime that is
    not installed, and a setting that the device cannot be told.
    """
    from sartor.hardware.devices import HOST, check_threads, find
    from sartor.hardware.target import open_device
    from sartor.report.profile_measuring import check_possible_there, measure_here, measure_there

    spec = find(device)
    check_threads(device, setup.threads)
    bench = open_device(device, progress=progress)
    here = device == HOST
    if not here:
        check_possible_there(bench, spec, setup, sweep)
    runtime = setup.runtime if bench.measured else spec.runtime
    record: dict[str, Any] = {"file": str(file), "runtime": runtime, "threads": setup.threads, "batch": setup.batch}
    notes: list[str] = []
    record["device"] = {"name": device, "measured": bench.measured}
    record["latency"], record["layers"] = None, []
    if here:
        measure_here(file, setup, seconds, seed, sweep, record, notes, progress)
    else:
        measure_there(file, bench, setup, seconds, seed, record, notes, progress)
    graph = _graph(file, bench, notes)
    if graph is None:
        parts = dict.fromkeys(("graph", "memory", "roofline", "table", "energy"))
        return Profile({**record, **parts, "compatibility": [], "notes": notes}, None, (), ())
    from sartor.hardware.compatibility import check
    from sartor.hardware.modelled import note
    from sartor.hardware.onnx_graph import precision_of

    precision = precision_of(graph)
    record["graph"] = {
        "ops": len(graph), "macs": graph.macs, "params": graph.params, "precision": precision, "input_shape": list(graph.input_shape),
        "foreign": sorted({op.label for op in graph if op.kind == "other"}),
    }  # fmt: skip
    record["compatibility"] = [str(finding) for finding in check(graph, spec)]
    moments = _memory(graph, precision, limit_bytes, record)
    model, times = _roofline(graph, device, spec, precision, setup, record, notes)
    if not bench.measured:
        notes.insert(0, note(spec, model))
    record["table"] = _table(graph, bench, precision, setup, notes)
    record["energy"] = None if model is None else _energy(model, times, spec, precision, setup.threads, notes)
    record["notes"] = notes
    return Profile(record, model, times, moments)


def _graph(file: Path, bench: Device, notes: list[str]) -> OpGraph | None:
    """The ops of the file; None, with a note, where they cannot be read but the file was measured."""
    if file.suffix != ".onnx":
        if not bench.measured:
            raise UserError(f"FILE.onnx: expected an ONNX file for {bench.name}, which is modelled from the file's ops, got {str(file)!r}.")
        notes.append("Only ONNX files show their ops: there is no roofline and no memory plan.")
        return None
    from sartor.hardware.onnx_graph import onnx_graph

    try:
        return onnx_graph(file)
    except UserError as error:
        if not bench.measured:
            raise
        notes.append(f"The ops could not be read, so there is no roofline and no memory plan: {error}")
        return None


def _memory(graph: OpGraph, precision: str, limit_bytes: float | None, record: dict[str, Any]) -> list[Moment]:
    from sartor.hardware.memory import best_order, peak_bytes, timeline

    size = {"int8": 1, "fp16": 2, "bf16": 2}.get(precision, 4)
    best, moments = best_order(graph, size), timeline(graph, size)
    record["memory"] = {
        "peak_bytes": peak_bytes(graph, size), "best_order_bytes": best.peak_bytes, "exact": best.exact, "limit_bytes": limit_bytes,
        "timeline": [{"name": moment.name, "bytes": moment.bytes} for moment in moments],
    }  # fmt: skip
    return moments


def _roofline(
    graph: OpGraph, device: str, spec: Any, precision: str, setup: Setup, record: dict[str, Any], notes: list[str]
) -> tuple[Roofline | None, list[OpTime]]:
    from sartor.hardware.devices import HOST
    from sartor.hardware.kept import device_roofline, host_roofline
    from sartor.hardware.profile import Layer, match

    try:
        model = host_roofline(precision, setup.threads, spec) if device == HOST else device_roofline(spec, precision, setup.threads)
    except UserError as error:
        notes.append(f"There is no roofline: {error}")
        record["roofline"] = None
        return None, []
    if device == HOST and setup.runtime != model.runtime:
        model = replace(model, runtime=setup.runtime, quality=None, networks=0)
    times = model.times(graph)
    found = [Layer(layer["name"], layer["type"], layer["latency_us"]) for layer in record["layers"]]
    measured = match([one.op for one in times], found, setup.runtime)
    record["roofline"] = {
        "model": model.to_json(),
        "latency_ms": model.predict(graph),
        "quality": None if model.quality is None else asdict(model.quality),
        "ops": [
            {"name": one.op.name, "kind": one.op.kind, "us": one.us, "bound": one.bound, "flops": one.flops, "bytes": one.bytes,
             "measured_us": us}
            for one, us in zip(times, measured, strict=True)
        ],
    }  # fmt: skip
    if model.calibrated:
        verdict = "unknown" if model.quality is None else _verdict(model.quality)
        notes.append(f"The roofline is calibrated on {model.networks} measured networks. Its quality: {verdict}.")
    else:
        notes.append("The roofline is not calibrated on measured networks: it says what bounds an op, not how long it takes.")
    return model, times


def _energy(model: Roofline, times: Sequence[OpTime], spec: Any, precision: str, threads: int, notes: list[str]) -> dict[str, Any] | None:
    """Energy by the device's file; of this machine, whose system tells no coefficients, nothing is said unless its file has some."""
    from sartor.hardware.devices import HOST
    from sartor.report.profile_energy import energy_record

    try:
        return energy_record(model, times, spec, precision, threads)
    except UserError as error:
        if spec.name != HOST:
            notes.append(f"There is no energy: {error}.")
        return None


def _table(graph: OpGraph, bench: Device, precision: str, setup: Setup, notes: list[str]) -> dict[str, Any] | None:
    """What the device's latency table says, and how good it was on networks left out of its calibration. None, with a note, without one."""
    from sartor.hardware.cache import table_path
    from sartor.hardware.table import LatencyTable

    missing = _no_table(bench, precision, setup)
    if not missing and not (path := table_path(identity := bench.identity(precision, setup.threads))).is_file():
        missing = f"none was measured yet for {precision} and {setup.threads} thread(s), as a search does."
    if missing:
        notes.append(f"No latency table tells anything: {missing}")
        return None
    table = LatencyTable(path, identity)
    try:
        latency_ms = table.predict(graph)
    except UserError as error:  # it lacks ops of this network, and nothing is guessed
        notes.append(f"No latency table tells anything: {error}")
        return None
    finally:
        table.close()
    found = table.calibration.quality
    verdict = "unknown: it was not calibrated on measured networks" if found is None else _verdict(found)
    return {"latency_ms": latency_ms, "quality": None if found is None else asdict(found), "verdict": verdict}


def _no_table(bench: Device, precision: str, setup: Setup) -> str:
    """Why there can be no table; empty where there can."""
    if not bench.measured:
        return f"nothing is measured on {bench.name}, which is modelled."
    if setup.runtime != "onnxruntime" or setup.batch != 1:
        return f"it is one of onnxruntime and single images, not of {setup.runtime} and {setup.batch} image(s)."
    return "" if precision in ("fp32", "int8") else f"it is one of fp32 and int8, not of {precision}."


def _verdict(found: Any) -> str:
    from sartor.predictors.latency.judgement import judge_quality

    return judge_quality(found).sentence()
