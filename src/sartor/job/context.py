"""Everything that the phases of a run share."""

from __future__ import annotations

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
from sartor.export.quantize import quantisation, quantize
from sartor.goals import Goals, Limit
from sartor.hardware.arena import place
from sartor.hardware.cache import table_path
from sartor.hardware.cost import CostModel, Factor
from sartor.hardware.device import Identity
from sartor.hardware.devices import HOST, find
from sartor.hardware.energy import EnergyModel, energy_model, has_energy
from sartor.hardware.graph import Op, trace
from sartor.hardware.measure import Measurement
from sartor.hardware.memory import op_weight_bytes, peak_bytes, weight_bytes
from sartor.hardware.modelled import ModelTable
from sartor.hardware.spec import DeviceSpec
from sartor.hardware.table import LatencyTable
from sartor.hardware.target import Device, open_device
from sartor.job.derived import Derived, asks, composite_of, moved_bytes
from sartor.job.further import OWN, Further, Prices, own_calibration, timings
from sartor.job.plan import Plan
from sartor.job.records import largest_figures
from sartor.job.state import State
from sartor.predictors.latency.composite import Composite
from sartor.request import SearchRequest
from sartor.spaces import build
from sartor.spaces.mcu import mcu
from sartor.spaces.mobile import MobileNet

Progress = Callable[[str, int, int], None]
#: Metrics that are known of an exported file only.
OF_FILES = ("file_bytes", "quantisation_error")


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
        size = self.state.facts.get("space", {}).get("size") or r.input_size
        data = load(r.data, seed=r.seed, validation=r.validation, limit=r.limit_train, size=size)
        if "data" not in self.state:
            self.state.put("data", data.fingerprint)
        elif self.state["data"] != data.fingerprint:
            raise UserError(f"data: '{r.data}' has changed since this run began; start a new run, or bring the old data back.")
        return data

    @cached_property
    def policy(self) -> Policy:
        return default_policy(self.data)

    def forget_data(self) -> None:
        """The pictures are loaded anew, after another size was chosen for them; what depends on them goes as well."""
        for name in ("data", "policy", "calibration", "net", "factors", "_price", "_flash", "_dynamic_costs", "_moved", "_further"):
            self.__dict__.pop(name, None)
        self.state.facts.pop("data", None)

    def build_net(self) -> Any:
        """The untrained supernet over the whole space of the request."""
        chosen = self.state.facts.get("space")
        if chosen is None:
            return build(self.request.space, self.data.input_shape, len(self.data.classes))
        return MobileNet(mcu(chosen["size"], chosen["multiplier"]), self.data.input_shape, len(self.data.classes))

    @cached_property
    def net(self) -> Any:
        import torch

        torch.manual_seed(self.request.seed)
        net = self.build_net()
        for phase in ("restriction", "sizing"):
            kept = self.state.facts.get(phase, {}).get("keep")
            if kept:
                net.space = net.space.restrict(kept)
        return net

    def close(self) -> None:
        """Close what was opened; a device that never answered leaves nothing to close."""
        table = self.__dict__.get("table")
        if table is not None:
            table.close()
        for device in self.__dict__.get("further", ()):
            device.close()

    def forget_extremes(self) -> None:
        """The largest and smallest architecture are remembered by the network; after its space was restricted they may be others."""
        for name in ("largest", "smallest"):
            self.net.__dict__.pop(name, None)

    @cached_property
    def goals(self) -> Goals:
        """What was asked; a microcontroller's SRAM and flash are limits where the request sets none, of several the smallest."""
        asked, added = self.request.goals(), list[Limit]()
        chips = self.chips
        for metric, sizes in (("peak_bytes", [c.sram_bytes for c in chips]), ("flash_bytes", [c.flash_bytes for c in chips])):
            known = [size for size in sizes if size is not None]
            if known and all(limit.metric != metric for limit in asked.limits):
                added.append(Limit(metric, float(min(known))))
        return Goals(asked.objectives, (*asked.limits, *added))

    @property
    def chips(self) -> list[DeviceSpec]:
        """The microcontrollers among the run's devices."""
        return [spec for spec in self.specs if spec.kind == "mcu"]

    @property
    def specs(self) -> list[DeviceSpec]:
        """The files of the run's devices, its own first; this machine has none."""
        return [spec for spec in (self.spec, *(device.spec for device in self.further)) if spec is not None]

    @cached_property
    def plan(self) -> Plan:
        r = self.request
        return Plan.of(r.minutes, baselines=r.baselines, from_scratch=r.from_scratch)

    @cached_property
    def further(self) -> tuple[Further, ...]:
        """The devices beside the run's own."""
        r, smallest = self.request, partial(quantize, method="minmax")
        facts = self.state.facts.get("table", {}).get("platforms", {})
        return tuple(Further(asked, r.precision, r.threads, smallest, self.progress, facts.get(asked.device, {})) for asked in r.further())

    @cached_property
    def target(self) -> Device:
        """The run's own device: what a latency belongs to where no other device is named."""
        return open_device(self.request.device, progress=self.progress)

    @cached_property
    def spec(self) -> DeviceSpec | None:
        """The device's file; None for this machine, which is measured rather than described."""
        return None if self.request.device == HOST else find(self.request.device)

    @cached_property
    def identity(self) -> Identity:
        return self.target.identity(self.request.precision, self.request.threads)

    @cached_property
    def table(self) -> LatencyTable | ModelTable:
        """Entries are shared by all runs on the device; the calibration is the run's own."""
        table = self.target.table(table_path(self.identity), self.identity, partial(quantize, method="minmax"))
        return own_calibration(table, self.state.facts.get("table", {}))

    @cached_property
    def device(self) -> dict[str, Any]:
        """What the figures belong to. A finished run keeps what it was then: its board need not answer for a report."""
        if "finished" in self.state and "device" in self.state:
            return dict(self.state["device"])
        found = {**self.target.describe(self.request.precision, self.request.threads), "batch": 1}
        self.state.put("device", found)
        return found

    @property
    def measuring(self) -> bool:
        """Whether any of the run's devices is measured."""
        return any(device.measured for device in (self.target, *(one.target for one in self.further)))

    @cached_property
    def platforms(self) -> list[dict[str, Any]]:
        """What the further figures belong to; kept by a finished run as its own device is."""
        if "finished" in self.state and "platforms" in self.state:
            return list(self.state["platforms"])
        found = [device.describe() for device in self.further]
        if found:
            self.state.put("platforms", found)
        return found

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

    def price(self, op: Op) -> float:
        """Latency of an op in ms by the table. What it lacks is measured now: in a space of many paths no sample had every op."""
        if self.target.measured and op.signature not in self.table.entries:
            self.table.ensure([op])
        return self.table.price(op)

    @cached_property
    def _price(self) -> CostModel:
        return CostModel(self.factors, self.price)

    def refresh_prices(self) -> None:
        """Forget predicted latencies and energies after the table was calibrated anew."""
        for name in ("_price", "_dynamic_costs", "_further"):
            self.__dict__.pop(name, None)

    def predicted(self, arch: Mapping[str, int]) -> dict[str, float]:
        """Costs of an architecture without building it: params, macs, peak_bytes, latencies by the tables, and what follows from them."""
        costs: dict[str, float] = dict(self.net.costs(arch))
        costs["peak_bytes"] *= self.bytes_per_value
        costs["flash_bytes"] = self.flash_bytes(arch)
        latency = float(self._price(arch)) + self.table.session_ms(self.data.input_shape)
        costs |= timings(latency) | self._further.of(arch, self.data.input_shape) | self.energies(self.dynamic_mj(arch), latency)
        if self.composite is not None:
            costs["moved_bytes"] = float(self._moved(arch))
        return self.derive(costs)

    @cached_property
    def _further(self) -> Prices:
        return Prices(self.factors, self.further)

    @cached_property
    def _moved(self) -> CostModel:
        return CostModel(self.factors, lambda op: moved_bytes([op], self.bytes_per_value))

    # -- figures that follow from others ------------------------------------------------------------------------------

    def derive(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics with those that follow from them; to be asked again after one of them, such as the accuracy, has changed."""
        return self._derived(metrics)

    @cached_property
    def _derived(self) -> Derived:
        return Derived.of(self.request, self.goals, self.request.further(), self.composite)

    @cached_property
    def composite(self) -> Composite | None:
        """The weights of composite_cost; None where nobody asks for it. They are relative to the largest network of the space, which is
        exported and measured once, at the start, so that the cost means the same throughout a run."""
        if not asks(self.request, "composite_cost"):
            return None
        if "composite" not in self.state:
            self.state.put("composite", largest_figures(self))
        return composite_of(self.request, self.state["composite"])

    def weight_bytes(self, op: Op) -> float:
        """Bytes of flash that an op's weights and biases take."""
        return float(op_weight_bytes(op, self.bytes_per_value))

    def flash_bytes(self, arch: Mapping[str, int]) -> float:
        """Bytes of flash that an architecture's weights and biases take, without building it."""
        return float(self._flash(arch))

    @cached_property
    def _flash(self) -> CostModel:
        return CostModel(self.factors, self.weight_bytes)

    # -- energy, where the device's file tells enough -----------------------------------------------------------------

    @cached_property
    def energy(self) -> EnergyModel | None:
        r = self.request
        return energy_model(self.spec, r.precision) if self.spec is not None and has_energy(self.spec, r.precision) else None

    def _op_mj(self, op: Op) -> float:
        """Dynamic energy of an op in mJ, at the table's time and the share of the device's cores that work."""
        assert self.energy is not None and self.spec is not None
        return self.energy.op_mj(op, self.price(op), self.spec.share(self.request.threads))

    @cached_property
    def _dynamic_costs(self) -> CostModel:
        return CostModel(self.factors, self._op_mj)

    def dynamic_mj(self, network: Mapping[str, int] | nn.Module) -> float | None:
        """Dynamic energy in mJ of an architecture or a plain module; None where the device's energy is not known."""
        if self.energy is None:
            return None
        if isinstance(network, nn.Module):
            return sum(self._op_mj(op) for op in trace(network, self.data.input_shape))
        return float(self._dynamic_costs(network))

    def energies(self, dynamic_mj: float | None, latency_ms: float) -> dict[str, float]:
        """energy_mj and edp of an inference of `latency_ms`; nothing where the device's energy is not known."""
        if dynamic_mj is None or self.energy is None:
            return {}
        total = dynamic_mj + self.energy.static_w * latency_ms
        return {"energy_mj": total, "edp": total * latency_ms}

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

    def everywhere(self, files: Sequence[Path], seconds: float, *, patience: int = 1, judged: bool = False) -> list[dict[str, Measurement]]:
        """The latencies of each file on all devices of the run, by the device's name; the run's own is OWN. Told where it takes long.

        `judged`: as limits are judged by, which is in turn with others. A single file takes turns with itself, in a second session: alone
        it would find itself in the caches each time, and take 2 to 3 % less than it does among others.
        """
        r, told = self.request, self.progress if patience > 1 else None
        company = files if judged and len(files) == 1 else []
        own = self.clocks([*files, *(company if self.target.measured else [])], seconds, patience=patience, progress=told)
        found = [{OWN: clock} for clock in own[: len(files)]]
        for device in self.further:
            given = [*files, *(company if device.target.measured else [])]
            clocks = device.target.measure_many(given, threads=r.threads, seconds=seconds, seed=r.seed, patience=patience, progress=told)
            for clock, known in zip(clocks, found, strict=False):
                known[device.name] = clock
        return found

    def graph_figures(self, module: nn.Module) -> dict[str, float]:
        """Exact costs of a plain module: params, macs, flash_bytes and peak_bytes, for a microcontroller the whole arena's size."""
        graph, size = trace(module, self.data.input_shape), self.bytes_per_value
        planned = place(graph, size).bytes if self.chips else peak_bytes(graph, size)
        return {
            "params": float(sum(p.numel() for p in module.parameters())),
            "macs": float(graph.macs),
            "peak_bytes": float(planned),
            "flash_bytes": float(weight_bytes(graph, size)),
            **({"moved_bytes": moved_bytes(graph, size)} if self.composite is not None else {}),
        }

    def file_figures(self, file: Path) -> dict[str, float]:
        """file_bytes of an exported file and, of an int8 one, the largest quantisation_error of its layers."""
        errors = self.weight_errors(file)
        return {"file_bytes": float(file.stat().st_size), **({"quantisation_error": max(errors.values())} if errors else {})}

    def weight_errors(self, file: Path) -> dict[str, float]:
        """norm(W - Q(W)) / norm(W) of each layer of an exported int8 file; nothing of one in floats."""
        return dict(quantisation(file)["weight_error"]) if self.request.precision == "int8" else {}

    def canonical(self, arch: Mapping[str, int]) -> Arch:
        found: Arch = self.net.space.canonical(arch)
        return found
