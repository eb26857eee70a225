"""Everything that the phases of a run share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sartor.arch import Arch
from sartor.data import Dataset, Policy, default_policy, load
from sartor.errors import UserError
from sartor.export.onnx import to_onnx
from sartor.export.quantize import quantize
from sartor.goals import QUIET, Goals
from sartor.hardware.cost import CostModel, Factor
from sartor.hardware.device import Identity
from sartor.hardware.graph import trace
from sartor.hardware.measure import Measurement
from sartor.hardware.memory import peak_bytes
from sartor.hardware.table import LatencyTable
from sartor.hardware.target import Device, open_device
from sartor.job.plan import Plan
from sartor.job.state import State
from sartor.request import SearchRequest
from sartor.spaces import build

Progress = Callable[[str, int, int], None]


def table_path(identity: Identity) -> Path:
    """Where the latency table of a device lies: one file for each device, runtime, version, precision and thread count."""
    base = os.environ.get("SARTOR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sartor"
    return Path(base) / "tables" / f"{identity.fingerprint}.sqlite"


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that says nothing."""


@dataclass
class Job:
    """One run: what was asked, the folder, and the parts that are made on first use."""

    request: SearchRequest
    folder: Path
    progress: Progress = silent

    @cached_property
    def state(self) -> State:
        return State(self.folder / "checkpoints" / "state.json")

    @cached_property
    def data(self) -> Dataset:
        r = self.request
        data = load(r.data, seed=r.seed, validation=r.validation, limit=r.limit_train, size=r.input_size)
        if "data" not in self.state:
            self.state.put("data", data.fingerprint)
        elif self.state["data"] != data.fingerprint:
            raise UserError(f"data: '{r.data}' has changed since this run began; start a new run, or bring the old data back.")
        return data

    @cached_property
    def policy(self) -> Policy:
        return default_policy(self.data)

    @cached_property
    def net(self) -> Any:
        import torch

        torch.manual_seed(self.request.seed)
        net = build(self.request.space, self.data.input_shape, len(self.data.classes))
        kept = self.state.facts.get("sizing", {}).get("keep")
        if kept:
            net.space = net.space.restrict(kept)
        return net

    def close(self) -> None:
        """Close what was opened; a device that never answered leaves nothing to close."""
        table = self.__dict__.get("table")
        if table is not None:
            table.close()

    def forget_extremes(self) -> None:
        """The largest and smallest architecture are remembered by the network; after its space was restricted they may be others."""
        for name in ("largest", "smallest"):
            self.net.__dict__.pop(name, None)

    @cached_property
    def goals(self) -> Goals:
        return self.request.goals()

    @cached_property
    def plan(self) -> Plan:
        r = self.request
        return Plan.of(r.minutes, baselines=r.baselines, from_scratch=r.from_scratch)

    @cached_property
    def target(self) -> Device:
        """The device that all latencies of the run belong to; nothing else in a run measures."""
        return open_device(self.request.device, progress=self.progress)

    @cached_property
    def identity(self) -> Identity:
        return self.target.identity(self.request.precision, self.request.threads)

    @cached_property
    def table(self) -> LatencyTable:
        return self.target.table(table_path(self.identity), self.identity, partial(quantize, method="minmax"))

    @cached_property
    def device(self) -> dict[str, Any]:
        return {**self.target.describe(self.request.precision, self.request.threads), "batch": 1}

    @cached_property
    def calibration(self) -> np.ndarray:
        """Training images `(n, C, H, W)` that fix the ranges of int8 activations."""
        return self.data.train.images(slice(0, 512))

    @property
    def bytes_per_value(self) -> int:
        return 1 if self.request.precision == "int8" else 4

    def rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.request.seed, purpose))

    # -- predicted figures -----------------------------------------------------------------------------------------

    @cached_property
    def factors(self) -> list[Factor]:
        return list(self.net.factors())

    @cached_property
    def _price(self) -> CostModel:
        return CostModel(self.factors, self.table.price)

    def refresh_prices(self) -> None:
        """Forget predicted latencies after the table was calibrated anew."""
        self.__dict__.pop("_price", None)

    def predicted(self, arch: Mapping[str, int]) -> dict[str, float]:
        """Costs of an architecture without building it: params, macs, peak_bytes, and latency_ms by the table."""
        costs: dict[str, float] = dict(self.net.costs(arch))
        costs["peak_bytes"] *= self.bytes_per_value
        latency = float(self._price(arch)) + self.table.session_ms(self.data.input_shape)
        return {**costs, **timings(latency)}

    # -- exported files -----------------------------------------------------------------------------------------------

    def export(self, module: nn.Module, folder: Path, *, quick: bool = False) -> Path:
        """Write `model_fp32.onnx` and the deliverable `model.onnx` into `folder`; returns the latter. `quick`: for timing only."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.request.precision == "fp32":
            return to_onnx(module, self.data.input_shape, folder / "model.onnx")
        float_file = to_onnx(module, self.data.input_shape, folder / "model_fp32.onnx")
        images = self.calibration[:32] if quick else self.calibration
        return quantize(float_file, images, folder / "model.onnx", method="minmax" if quick else "auto")

    def clock(self, file: Path, seconds: float = 0.5) -> Measurement:
        return self.clocks([file], seconds)[0]

    def clocks(self, files: Sequence[Path], seconds: float, *, patience: int = 1, progress: Progress | None = None) -> list[Measurement]:
        """Latencies of files that are to be compared, on the run's device in interleaved rounds."""
        r = self.request
        return self.target.measure_many(files, threads=r.threads, seconds=seconds, seed=r.seed, patience=patience, progress=progress)

    def graph_figures(self, module: nn.Module) -> dict[str, float]:
        """Exact params, macs and peak_bytes of a plain module."""
        graph = trace(module, self.data.input_shape)
        numel = float(sum(p.numel() for p in module.parameters()))
        return {"params": numel, "macs": float(graph.macs), "peak_bytes": float(peak_bytes(graph, self.bytes_per_value))}

    def layers(self, module: nn.Module) -> list[dict[str, Any]]:
        """The fused layers of a plain module, each with its latency by the table, for the report."""
        graph = trace(module, self.data.input_shape)
        self.table.ensure(graph.ops, input_shapes=[graph.input_shape])
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
                "latency_us": 1e3 * self.table.price(op),
            }
            for op in graph.ops
        ]

    def table_latency(self, module: nn.Module) -> float:
        """Predicted latency in ms of any plain module; ops that the table lacks are measured."""
        return self.table.predict(trace(module, self.data.input_shape), measure_missing=True)

    def canonical(self, arch: Mapping[str, int]) -> Arch:
        found: Arch = self.net.space.canonical(arch)
        return found


def timings(clock: Measurement | float) -> dict[str, float]:
    """The latency metrics of a trial; a prediction in ms stands for every statistic."""
    if not isinstance(clock, Measurement):
        return {"latency_ms": clock, "latency_ms_p10": clock, "latency_ms_p90": clock, "throughput": 1e3 / clock}
    quiet = {} if clock.quiet is None else {f"latency_ms{QUIET}": clock.quiet}
    return {"latency_ms": clock.p50, "latency_ms_p10": clock.p10, "latency_ms_p90": clock.p90, **quiet, "throughput": 1e3 / clock.p50}
