"""What a model record tells of a network beside its metrics: its layers, and its latencies on each device, predicted and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sartor.hardware.graph import trace
from sartor.hardware.measure import Measurement
from sartor.job.derived import moved_bytes
from sartor.job.further import OWN

if TYPE_CHECKING:
    from sartor.job.context import Job


def layers(job: Job, module: nn.Module) -> list[dict[str, Any]]:
    """The fused layers of a plain module, each with its latency by the table, for the report."""
    graph = trace(module, job.data.input_shape)
    job.table.ensure(graph.ops, input_shapes=[graph.input_shape])
    return [
        {
            "name": op.name,
            "kind": op.kind,
            "in": list(op.in_shape),
            "out": list(op.out_shape),
            "kernel": op.kernel,
            "stride": op.stride,
            "groups": op.groups,
            "act": op.act,
            "macs": op.macs,
            "params": op.params,
            "latency_us": 1e3 * job.price(op),
        }
        for op in graph.ops
    ]


def table_latencies(job: Job, module: nn.Module) -> dict[str, float]:
    """Predicted latencies in ms of any plain module, by their metric; ops that a table lacks are measured."""
    graph = trace(module, job.data.input_shape)
    own = {"latency_ms": job.table.predict(graph, measure_missing=True)}
    return own | {device.asked.metric: device.table.predict(graph, measure_missing=True) for device in job.further}


def latencies(job: Job, clocks: Mapping[str, Measurement]) -> dict[str, Any]:
    """A record's latencies: those on the run's own device, and by name on the further ones."""
    others = {device.name: {**clocks[device.name].to_json(), "measured": device.target.measured} for device in job.further}
    return {"latency": clocks[OWN].to_json(), **({"platforms": others} if others else {})}


def largest_figures(job: Job) -> dict[str, float]:
    """FLOPs, moved bytes and latency of the largest network of the space: what composite_cost is relative to. Exports and measures it."""
    module = job.net.extract(job.net.largest).eval()
    with tempfile.TemporaryDirectory() as folder:
        clock = job.clock(job.export(module, Path(folder), quick=True), 1.0)
    graph = trace(module, job.data.input_shape)
    return {"flops": 2.0 * graph.macs, "moved_bytes": moved_bytes(graph, job.bytes_per_value), "latency_ms": clock.quiet or clock.p50}
