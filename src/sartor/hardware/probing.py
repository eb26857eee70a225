"""Devices as they show themselves: what the system tells, and peaks, bandwidth and overhead by measuring (`sartor devices probe`)."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.device import host
from sartor.hardware.facts import SOURCES, system_facts
from sartor.hardware.spec import AgentAddress, DeviceSpec

if TYPE_CHECKING:
    import onnx

    from sartor.hardware.target import Device, Progress

PROBED = "measured by `sartor devices probe`"  # so begin the sources of what was
_OPSET, _IR = 17, 8


def probe_host() -> DeviceSpec:
    """This machine as far as its system tells, without measuring: peaks and bandwidth are left out."""
    identity = host()
    title = f"this machine ({platform.system()} {platform.machine()})"
    return _spec("host", title, identity.cpu, identity.runtime, system_facts(), "")


def probe_agent(name: str, address: AgentAddress, like: DeviceSpec | None = None) -> DeviceSpec:
    """The device at an agent as far as its system tells; what `like`, a spec of the same kind of board, knows beyond that is taken over.

    Raises UserError when the agent does not answer or refuses.
    """
    from sartor.hardware.remote import AgentClient, Unreachable

    try:
        told = AgentClient(name, address).identity("fp32")
    except Unreachable as error:
        raise UserError(f"device {name}: {error}: start `sartor agent` there first") from None
    identity = told["identity"]
    title = f"{like.title if like else told['describe']['system']}, by its agent"
    spec = _spec(name, title, str(identity["cpu"]), str(identity["runtime"]), told["facts"], "the device's agent, which asked ", address)
    return spec if like is None else _completed(spec, like)


def _completed(spec: DeviceSpec, like: DeviceSpec) -> DeviceSpec:
    """What a device told of itself, and beyond that what is known of one like it, as much of it as its own cores and lanes make."""
    mine = spec.model_dump(exclude_unset=True)
    if like.frequencies and not any(one.volts for one in spec.frequencies):
        mine.pop("frequencies", None)  # a system tells the states of its clock without their voltages, which energy needs
        spec = spec.model_copy(update={"frequencies": (), "sources": {k: v for k, v in spec.sources.items() if k != "frequencies"}})
    base = like.model_dump(exclude_unset=True, exclude={"agent", "notes"})
    scaled, how = _scaled(spec, like)
    sources = _without_parts({**{key: f"as {like.name}: {text}" for key, text in like.sources.items()}, **spec.sources}, spec)
    return DeviceSpec.model_validate({**base, **mine, **scaled, "kind": like.kind, "sources": {**sources, **how}})


def _scaled(spec: DeviceSpec, like: DeviceSpec) -> tuple[dict[str, Any], dict[str, str]]:
    """Peaks and switched capacitance of `like` for the cores, and peaks for the SIMD lanes, that the device told; and their sources.

    Not where the cores of `like` are no CPU's: the agent tells of those that its system runs on.
    """
    if not like.threaded:
        return {}, {}
    cores = spec.cores / like.cores
    lanes = {key: spec.lanes[key] / like.lanes[key] for key in spec.lanes if key in like.lanes}
    factors = {f"peak_ops_per_s.{key}": cores * lanes.get(key, 1.0) for key in like.peak_ops_per_s}
    peaks = {key: peak * factors[f"peak_ops_per_s.{key}"] for key, peak in like.peak_ops_per_s.items()}
    energy = like.energy.model_dump(exclude_unset=True)
    if like.energy.switched_nf is not None:
        factors["energy.switched_nf"] = cores
        energy["switched_nf"] = like.energy.switched_nf * cores
    how = {
        path: f"as {like.name}, times {factor:.4g} for the cores and lanes of this one: {like.source(path)}"
        for path, factor in factors.items()
        if factor != 1
    }
    return {"peak_ops_per_s": peaks, "energy": energy}, how


def _spec(
    name: str, title: str, processor: str, runtime: str, facts: Mapping[str, Any], teller: str, agent: AgentAddress | None = None
) -> DeviceSpec:  # fmt: skip
    known = {key: value for key, value in facts.items() if key in SOURCES}
    fixed = {"name": name, "title": title, "kind": "cpu", "processor": processor, "measured": True, "runtime": runtime, "agent": agent}
    sources = {key: f"{teller}{SOURCES[key]}" for key in known}
    return DeviceSpec.model_validate({**fixed, "precisions": ("fp32", "int8"), **known, "sources": sources})


def _without_parts(sources: dict[str, str], told: DeviceSpec) -> dict[str, str]:
    """Sources without those of numbers inside a quantity that the device itself told: they are not the numbers any more."""
    return {key: text for key, text in sources.items() if key.split(".")[0] not in told.sources or key in told.sources}


# -- by measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """Sizes of what is measured: convolution width and image, megabytes streamed, nodes in a chain, seconds for each file."""

    channels: int = 192
    size: int = 28
    stream_mb: float = 48.0
    nodes: int = 64
    seconds: float = 1.0


def probe_by_measuring(device: Device, spec: DeviceSpec, effort: Effort | None = None, progress: Progress | None = None) -> DeviceSpec:
    """The spec with fp32 and int8 peaks, memory bandwidth and overhead of one op as measured on the device, all its cores at work.

    A peak is what dense 3x3 convolutions reach, not what the data sheet promises; bandwidth is that of an op which only copies; the
    overhead is the slope of a chain of ops on eight values. Differences of two files, so that what a session costs cancels.
    """
    effort = effort or Effort()
    from sartor.hardware._lower import quantize_default

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "conv2": _save(_convolutions(effort, 2), folder / "conv2.onnx"),
            "conv6": _save(_convolutions(effort, 6), folder / "conv6.onnx"),
            "copy2": _save(_chain(2, int(effort.stream_mb * 2**18)), folder / "copy2.onnx"),
            "copy4": _save(_chain(4, int(effort.stream_mb * 2**18)), folder / "copy4.onnx"),
            "node2": _save(_chain(2, 8), folder / "node2.onnx"),
            "nodes": _save(_chain(2 + effort.nodes, 8), folder / "nodes.onnx"),
        }
        images = np.random.default_rng(0).standard_normal((1, effort.channels, effort.size, effort.size)).astype(np.float32)
        for count in (2, 6):
            quantize_default(files[f"conv{count}"], images, folder / f"int8_{count}.onnx")
            files[f"int8_{count}"] = folder / f"int8_{count}.onnx"
        threads = device.describe("fp32")["cores"]
        found = device.measure_many(list(files.values()), threads=threads, seconds=effort.seconds, progress=progress)
        one = device.measure_many([files["node2"], files["nodes"]], threads=1, seconds=effort.seconds, progress=progress)
    seconds = {name: (clock.quiet or clock.p50) / 1e3 for name, clock in zip(files, found, strict=True)}
    work = 2 * 4 * 9 * effort.channels**2 * effort.size**2  # operations of four convolutions
    bytes_moved = 2 * 2 * effort.stream_mb * 2**20  # two copies, each reads and writes
    values: dict[str, float] = {
        "fp32": work / _positive(seconds["conv6"] - seconds["conv2"], "fp32 peak"),
        "int8": work / _positive(seconds["int8_6"] - seconds["int8_2"], "int8 peak"),
        "bandwidth": bytes_moved / _positive(seconds["copy4"] - seconds["copy2"], "bandwidth"),
        "overhead": max(0.0, (one[1].p50 - one[0].p50) * 1e3 / effort.nodes),
    }
    return _with_measured(spec, values, f"{threads} thread{'s' if threads != 1 else ''}", any(clock.noisy for clock in found))


def _with_measured(spec: DeviceSpec, values: Mapping[str, float], threads: str, noisy: bool) -> DeviceSpec:
    how = f"{PROBED} with {spec.runtime}, {threads}" + (", while the machine was not quiet" if noisy else "")
    sources = {key: text for key, text in spec.sources.items() if key.split(".")[0] != "peak_ops_per_s"}
    sources |= {"peak_ops_per_s": f"{how}: dense 3x3 convolutions", "bandwidth_bytes_per_s": f"{how}: an op that only copies"}
    sources |= {"overhead_us": f"{PROBED} with {spec.runtime}: a chain of ops on eight values"}
    changes = {
        "measured": True,
        "peak_ops_per_s": {"fp32": round(values["fp32"], -6), "int8": round(values["int8"], -6)},
        "bandwidth_bytes_per_s": round(values["bandwidth"], -6),
        "overhead_us": round(values["overhead"], 3),
        "sources": sources,
    }
    return DeviceSpec.model_validate({**spec.model_dump(exclude_unset=True), **changes})


def _positive(seconds: float, what: str) -> float:
    if seconds <= 0:
        raise UserError(f"expected the {what} from a longer file that takes longer, got no difference: probe again on a quieter machine")
    return seconds


def _save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def _convolutions(effort: Effort, count: int) -> onnx.ModelProto:
    """`count` dense 3x3 convolutions with ReLU after each other."""
    from onnx import TensorProto, helper, numpy_helper

    rng, shape = np.random.default_rng(0), [1, effort.channels, effort.size, effort.size]
    nodes, weights, last = [], [], "x"
    for number in range(count):
        values = (rng.standard_normal((effort.channels, effort.channels, 3, 3)) / (3 * effort.channels**0.5)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], kernel_shape=[3, 3], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        last = f"r{number}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", last)]
    return _model(helper.make_graph(nodes, "peak", [ends[0]], [ends[1]], weights))


def _chain(count: int, values: int) -> onnx.ModelProto:
    """`count` ops that read and write so many floats, spread from one value; reduced to one at the end."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(np.array([values], np.int64), "shape"), numpy_helper.from_array(np.zeros(1, np.int64), "first")]
    nodes = [helper.make_node("Expand", ["x", "shape"], ["v0"])]
    nodes += [helper.make_node("Neg", [f"v{number}"], [f"v{number + 1}"]) for number in range(count)]
    nodes.append(helper.make_node("Gather", [f"v{count}", "first"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    return _model(helper.make_graph(nodes, "chain", [ends[0]], [ends[1]], weights))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    from onnx import helper

    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
