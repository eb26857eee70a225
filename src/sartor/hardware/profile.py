"""Where a model's time goes, from the runtime's own per-node profile."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sartor.errors import UserError
from sartor.hardware.fusion import ELEMENTWISE, category
from sartor.hardware.graph import Op
from sartor.hardware.measure import Setup, measure, open_session, synthetic_input

PROFILED = ("onnxruntime", "openvino")  # runtimes that time their nodes

EVENTS = 100_000  # times of nodes in all: reading a million takes a minute, and a network of many nodes has that in 200 runs
FEWEST_RUNS = 20

Times = dict[tuple[str, str], list[float]]  # (name, type) of a node -> its times in µs


@dataclass(frozen=True)
class Layer:
    """A node that the runtime ran: its name, the runtime's type for it, and its share of the latency in µs."""

    name: str
    type: str
    us: float


def layer_latencies(file: Path | str, *, threads: int = 1, runs: int = 200, batch: int = 1) -> list[tuple[str, float]]:
    """(node name, µs) in execution order, for one inference of an exported file in ONNX Runtime; see `layers`."""
    return [(layer.name, layer.us) for layer in layers(file, Setup(threads=threads, batch=batch), runs=runs)]


def layers(file: Path | str, setup: Setup, *, runs: int = 200, total_ms: float | None = None) -> list[Layer]:
    """The nodes that a runtime runs for one inference, in execution order, with their times.

    A profiler counts coarsely and costs time itself, so only the shares of its averages are used: they are scaled to the median
    latency measured without it (`total_ms`, or measured here), and the list sums to that. `runs` are the most: there are fewer of a network
    of more than `EVENTS` / `runs` nodes, as every node of every run is one event to read. Raises UserError for files the runtime cannot
    load, and for runtimes that time no nodes.
    """
    if setup.runtime not in PROFILED:
        raise UserError(f"expected a runtime that times its nodes ({', '.join(PROFILED)}), got {setup.runtime}")
    total_us = 1e3 * (measure(file, setup=setup, seconds=0.3).p50 if total_ms is None else total_ms)
    times = _openvino(file, setup, runs) if setup.runtime == "openvino" else _onnxruntime(file, setup, runs)
    # The median is robust to interruptions but counts whole µs: average what lies in the middle half.
    means = {node: float(np.mean(np.sort(values)[len(values) // 4 : -(-3 * len(values) // 4)])) for node, values in times.items()}
    scale = total_us / sum(means.values()) if sum(means.values()) else 0.0
    return [Layer(name, kind, mean * scale) for (name, kind), mean in means.items()]


def match(ops: Sequence[Op], found: Sequence[Layer], runtime: str) -> list[float | None]:
    """Measured µs of each executed op (`sartor.hardware.fusion.executed`), None where no layer is certainly its own.

    Layers are matched by name; those left over, kind by kind in order of execution, where a kind has as many layers as ops left.
    """
    times: list[float | None] = [None] * len(ops)
    left: dict[str, list[Layer]] = defaultdict(list)
    by_name = {op.name: index for index, op in enumerate(ops) if op.name}
    for layer in found:
        kind = category(layer.type, runtime)
        index = by_name.get(_plain(layer.name))
        if index is not None and times[index] is None and kind == _kind(ops[index]):
            times[index] = layer.us
        elif kind:
            left[kind].append(layer)
    for kind, rest in left.items():
        open_ops = [index for index, op in enumerate(ops) if times[index] is None and _kind(op) == kind]
        if len(open_ops) == len(rest):
            for index, layer in zip(open_ops, rest, strict=True):
                times[index] = layer.us
    return times


def _kind(op: Op) -> str:
    return "elementwise" if op.kind in ELEMENTWISE else op.kind


def _plain(name: str) -> str:
    """A node's name without what runtimes add to it when they rewrite it."""
    return re.sub(r"(_output_0)?(_nchwc)?(_token_\d+)?$", "", name.removesuffix("/WithoutBiases"))


def _affordable(file: Path | str, runs: int) -> int:
    import onnx

    nodes = len(onnx.load(str(file), load_external_data=False).graph.node)  # the runtime has opened the file, so it can be read
    return min(runs, max(FEWEST_RUNS, EVENTS // max(nodes, 1)))


def _onnxruntime(file: Path | str, setup: Setup, runs: int) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(file, setup.threads, profile=str(Path(folder) / "profile"))
        feeds = synthetic_input(session, setup.batch)
        for _ in range(_affordable(file, runs)):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: Times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time"), str(event.get("args", {}).get("op_name", ""))
            times[node].append(event["dur"] + 0.5)  # truncated to whole µs
    return times


def _openvino(file: Path | str, setup: Setup, runs: int) -> Times:
    import openvino as ov

    from sartor.hardware.runtimes.ov import compile_model
    from sartor.hardware.runtimes.setup import image

    compiled = compile_model(file, setup, profile=True)
    request, entry = compiled.create_infer_request(), compiled.input(0)
    request.set_input_tensor(ov.Tensor(image(tuple(entry.shape), 0, entry.element_type.to_dtype())))
    times: Times = defaultdict(list)
    for _ in range(_affordable(file, runs)):
        request.infer()
        for node in request.profiling_info:
            if str(node.status).endswith("EXECUTED"):
                times[node.node_name, node.node_type].append(node.real_time.total_seconds() * 1e6 + 0.5)
    return times
