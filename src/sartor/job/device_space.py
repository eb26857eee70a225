"""Before anything is trained: which space suits the device, and what of it the device does badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.hardware.cost import CostModel
from sartor.hardware.energy import energy_model
from sartor.hardware.modelled import ModelTable, note
from sartor.job.context import Job
from sartor.job.further import Further, Prices, timings
from sartor.spaces.mcu import Feasible, choose_space
from sartor.spaces.mobile import MobileNet
from sartor.spaces.restrict import conform, summary
from sartor.spaces.rules import Removed

if TYPE_CHECKING:
    from sartor.deploy.verify import Test

_ENERGY = ("energy_mj", "edp", "merit")


def check_metrics(job: Job) -> None:
    """Refuse objectives and limits that nothing here can tell of the device or the precision.

    Raises:
        UserError: for energy on a device whose energy is not known, for the rounding error of a model that is not rounded, and for a
            precision that a further device has not.
    """
    for device in job.further:
        _ = device.identity
    named = {*job.goals.objectives, *(limit.metric for limit in job.goals.limits), *(("merit",) if job.request.merit else ())}
    if named & set(_ENERGY):
        if job.spec is None:
            raise UserError(
                f"{min(named & set(_ENERGY))}: no energy is known of this machine: name a device whose file has energy coefficients "
                "(see `sartor devices`)."
            )
        energy_model(job.spec, job.request.precision)
    if "quantisation_error" in named and job.request.precision != "int8":
        raise UserError(f"quantisation_error: expected precision int8, got {job.request.precision}, whose weights are not rounded.")


def fit_device(job: Job) -> None:
    """Choose the space where there are several (TinyNAS), then leave out what the device does badly; both are remembered and told."""
    check_metrics(job)
    if job.request.space == "mcu" and "space" not in job.state:
        with job.state.timing("choose space"):
            channels, height, width = job.data.input_shape
            chosen = choose_space(
                channels, min(height, width), len(job.data.classes), feasible(job), seed=job.request.seed, progress=job.progress
            )
        job.forget_data()
        job.state.put("space", {**chosen.to_json(), "note": chosen.sentence()})
    if job.specs and "restriction" not in job.state:
        with job.state.timing("restrict"):
            job.state.put("restriction", _restrict(job))
        job.__dict__.pop("net", None)
    _ = job.composite  # what composite_cost is relative to, before anything else of the space is measured


def feasible(job: Job) -> Feasible:
    """Whether an architecture keeps the limits that costs alone decide; on a modelled device the latency is one of them."""
    limits = [limit for limit in job.goals.limits if limit.metric in ("peak_bytes", "flash_bytes", "params", "macs")]
    timed = [limit for limit in job.goals.limits if limit.metric in ("latency_ms", "throughput")] if not job.target.measured else []
    modelled = tuple(device for device in job.further if not device.target.measured)
    timed += [limit for limit in job.goals.limits if limit.metric in {device.asked.metric for device in modelled}]
    latest: list[tuple[MobileNet, CostModel, CostModel, Prices]] = []

    def keeps(net: MobileNet, arch: Arch) -> bool:
        if not latest or latest[0][0] is not net:
            factors = net.factors()
            latest[:] = [(net, CostModel(factors, job.weight_bytes), CostModel(factors, job.table.price), Prices(factors, modelled))]
        _, weights, latency, elsewhere = latest[0]
        costs: dict[str, float] = {**net.costs(arch), "flash_bytes": float(weights(arch))}
        costs["peak_bytes"] *= job.bytes_per_value
        if timed:
            costs |= elsewhere.of(arch, net.input_shape)
            if not job.target.measured:
                costs |= timings(float(latency(arch)) + job.table.session_ms(net.input_shape))
        return all(limit.excess(costs) <= 0 for limit in (*limits, *timed))

    return keeps


def _restrict(job: Job) -> dict[str, Any]:
    """The labels that are left of each choice on every device that is described, what was removed, and sentences that say so."""
    space, removed, said = job.net.space, list[Removed](), list[str]()
    for spec in job.specs:
        found, given_up = conform(job.net, spec, job.request.precision)
        job.net.space = found.restricted
        removed += found.removed
        said += summary(found.removed, given_up, spec, found.kept)
    left = job.net.space
    keep = {
        name: [space.choices[name][i] for i in indices] for name, indices in left.allowed.items() if tuple(indices) != space.allowed[name]
    }
    return {"keep": keep, "removed": [list(one) for one in removed], "notes": said}


def wants_tflite(job: Job) -> bool:
    """Whether the device's runtime reads `.tflite` files."""
    return job.spec is not None and job.spec.runtime.startswith(("tflite", "litert"))


def _converter() -> bool:
    return find_spec("litert_torch") is not None


def deliver_tflite(job: Job, module: nn.Module, folder: Path, test: Test) -> dict[str, Any]:
    """Write `model.tflite` into a model's folder where the device wants one and the converter is installed; what a record says of it.

    It is quantised by LiteRT's own tools on the same images as the ONNX file, so its accuracy is close to that file's but not the same:
    it is run on the test images as well (`tflite_test`).
    """
    if not wants_tflite(job) or not _converter():
        return {}
    from sartor.deploy.verify import accuracy_in
    from sartor.export.litert import to_tflite

    images = job.calibration[:64] if job.request.precision == "int8" else None
    try:
        file = to_tflite(module, job.data.input_shape, folder / "model.tflite", images)
        found: dict[str, Any] = {"tflite": f"models/{folder.name}/{file.name}"}
        return {**found, "tflite_test": accuracy_in("litert", file, test)}
    except UserError as error:
        return {"tflite_refused": str(error)}


def notes(job: Job) -> list[str]:
    """What a report says of the space and the device: what was chosen, left out, and which figures are no measurements."""
    found = [str(job.state.facts["space"]["note"])] if "space" in job.state else []
    found += job.state.facts.get("restriction", {}).get("notes", [])
    devices: list[Job | Further] = [job, *job.further]
    for device in devices:
        if device.spec is not None and device.spec.agent is None and isinstance(device.table, ModelTable):
            found.append(note(device.spec, device.table.model))
    if job.energy is not None:
        found.append("Energy is that of a model made from the device's file; no power meter has confirmed it.")
    if wants_tflite(job) and not _converter():
        found.append("No .tflite file was written beside the ONNX one: its converter is not installed (pip install 'sartor[litert]').")
    found += _of_tflite(job.state.facts.get("finished", {}).get("models", []))
    if job.state.facts.get("rungs") == []:
        found.append("No hand-designed rival was trained: even the narrowest MobileNetV2 breaks the limits.")
    if job.chips:
        found.append(
            "peak_bytes is the size of the activation arena with every tensor placed, flash_bytes the weights and biases; the runtime's "
            "code and its own data come on top of both."
        )
    return found


def _of_tflite(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How good the delivered `.tflite` files are, and which models have none."""
    tested = [f"{one['name']} {one['tflite_test']['accuracy']:.1%}" for one in records if "tflite_test" in one]
    said = [f"Test accuracy of the .tflite files, which LiteRT's own tools quantised: {', '.join(tested)}."] if tested else []
    return said + [f"No .tflite file of {one['name']}: {one['tflite_refused']}" for one in records if "tflite_refused" in one]
