"""The further devices of a run: each is measured, or modelled where nobody answers there, beside the run's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sartor.goals import QUIET
from sartor.hardware.cache import table_path
from sartor.hardware.calibrate import Calibration
from sartor.hardware.cost import CostModel
from sartor.hardware.device import Identity
from sartor.hardware.devices import HOST, find
from sartor.hardware.graph import Op
from sartor.hardware.measure import Measurement
from sartor.hardware.modelled import ModelTable
from sartor.hardware.platforms import Platform
from sartor.hardware.spec import DeviceSpec
from sartor.hardware.table import LatencyTable
from sartor.hardware.target import Device, Progress, open_device

OWN = ""  # the name that the run's own device has among its devices


@dataclass
class Further:
    """One further device, its latency table, and what it was asked to keep. Opened when its first figure is wanted."""

    asked: Platform
    precision: str
    threads: int
    quantize: Callable[..., Any]
    progress: Progress
    found: Mapping[str, Any] = field(default_factory=dict)  # what the run has put down about the device's table

    @property
    def name(self) -> str:
        return self.asked.device

    @cached_property
    def target(self) -> Device:
        return open_device(self.name, progress=self.progress)

    @cached_property
    def spec(self) -> DeviceSpec | None:
        """Its file; None for this machine."""
        return None if self.name == HOST else find(self.name)

    @cached_property
    def identity(self) -> Identity:
        """Raises UserError for a precision or a thread count that the device has not."""
        return self.target.identity(self.precision, self.threads)

    @cached_property
    def table(self) -> LatencyTable | ModelTable:
        return own_calibration(self.target.table(table_path(self.identity), self.identity, self.quantize), self.found)

    def price(self, op: Op) -> float:
        """Latency of an op in ms by the table; what it lacks is measured now."""
        if self.target.measured and op.signature not in self.table.entries:
            self.table.ensure([op])
        return self.table.price(op)

    def describe(self) -> dict[str, Any]:
        """The device for reports, with what was asked of it."""
        return {
            **self.target.describe(self.precision, self.threads), "batch": 1, "weight": self.asked.weight, "limit_ms": self.asked.limit_ms,
        }  # fmt: skip

    def close(self) -> None:
        table = self.__dict__.get("table")
        if table is not None:
            table.close()


def own_calibration(table: LatencyTable | ModelTable, found: Mapping[str, Any]) -> LatencyTable | ModelTable:
    """The table with the calibration that the run has put down. That of another space, which a run in between left in the file, would
    predict this one's networks wrong."""
    if found.get("quality") and isinstance(table, LatencyTable):
        table.calibration = Calibration.from_json(found["quality"])
    return table


class Prices:
    """Predicted latencies of a run's further devices, remembered until a table is calibrated anew or the network is another."""

    def __init__(self, factors: list[Any], devices: tuple[Further, ...]) -> None:
        self._models = [(device, CostModel(factors, device.price)) for device in devices]

    def of(self, arch: Mapping[str, Any], input_shape: tuple[int, int, int]) -> dict[str, float]:
        """The latency entries of an architecture's metrics, by the tables."""
        found: dict[str, float] = {}
        for device, model in self._models:
            found |= timings(float(model(arch)) + device.table.session_ms(input_shape), device.name)
        return found


def timings(clock: Measurement | float, device: str = OWN) -> dict[str, float]:
    """The latency metrics of a trial on a device; a prediction in ms stands for every statistic. Throughput is that of the run's own."""
    at = f"@{device}" if device else ""
    p10, p50, p90 = (clock.p10, clock.p50, clock.p90) if isinstance(clock, Measurement) else (clock, clock, clock)
    quiet = clock.quiet if isinstance(clock, Measurement) else None
    return {
        f"latency_ms{at}": p50, f"latency_ms_p10{at}": p10, f"latency_ms_p90{at}": p90,
        **({} if quiet is None else {f"latency_ms{QUIET}{at}": quiet}), **({} if device else {"throughput": 1e3 / p50}),
    }  # fmt: skip


def all_timings(clocks: Mapping[str, Measurement]) -> dict[str, float]:
    """The latency metrics of a trial on all devices of a run, by the device's name."""
    found: dict[str, float] = {}
    for device, clock in clocks.items():
        found |= timings(clock, device)
    return found
