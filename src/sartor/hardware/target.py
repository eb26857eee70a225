"""Where figures come from: a device measures files, times op kernels and owns its latency table, near or far.

Whoever needs a figure asks the device of the run; only this module decides what a device's name stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sartor.hardware.device import Identity
from sartor.hardware.measure import Measurement
from sartor.hardware.pace import QuietTime

if TYPE_CHECKING:
    from sartor.hardware._lower import Quantize
    from sartor.hardware.modelled import ModelTable
    from sartor.hardware.table import LatencyTable

Feeds = Mapping[str, np.ndarray]
Progress = Callable[[str, int, int], None]


class Device(Protocol):
    """What a search, a table or a report needs of a device."""

    @property
    def name(self) -> str: ...

    @property
    def measured(self) -> bool:
        """Whether its figures are measurements; False: they come from a model of the device, and must be marked so."""

    def identity(self, precision: str = "int8", threads: int = 1) -> Identity:
        """What its figures belong to. Raises UserError for a precision or thread count it has not."""

    def describe(self, precision: str = "int8", threads: int = 1) -> dict[str, Any]:
        """The device for reports: the identity's fields, fingerprint, name, cores, system, measured."""

    def measure_many(
        self, files: Sequence[Path | str], *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0,
        patience: int = 1, progress: Progress | None = None,
    ) -> list[Measurement]:  # fmt: skip
        """Latencies of several ONNX files in interleaved rounds, as `sartor.hardware.measure.measure_many`."""

    def table(self, path: Path | str, identity: Identity, quantize: Quantize | None = None) -> LatencyTable | ModelTable:
        """The device's latency table at `path`, which measures on this device what it lacks; a roofline where nothing is measured."""


class Bench(Protocol):
    """What the latency table needs of a device: its runtime's optimiser, and a clock for single kernels."""

    def identity(self, precision: str = "int8", threads: int = 1) -> Identity: ...

    def optimise(self, model: bytes) -> bytes:
        """The model as the device's runtime rewrites it before running it."""

    def values(self, model: bytes, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
        """Outputs `names` of an optimised model, run as it is."""

    def time(self, models: Iterable[tuple[bytes, Feeds]], *, threads: int = 1, seconds: float = 0.02) -> Iterator[QuietTime]:
        """Undisturbed time of one run of each optimised model, in µs, one by one as they are known."""


def open_device(name: str, *, progress: Progress | None = None) -> Device:
    """The device of that name, ready to measure. `progress` hears of waiting for one that does not answer.

    A device that is only described, without an agent that could measure, is modelled by its roofline: its `measured` is False. Raises
    UserError for an unknown name.
    """
    from sartor.hardware.devices import HOST, find

    if name == HOST:
        from sartor.hardware.local import LocalDevice

        return LocalDevice()
    spec = find(name)
    if spec.agent is not None:
        from sartor.hardware.remote import RemoteDevice

        return RemoteDevice(spec, progress=progress)
    from sartor.hardware.modelled import ModelledDevice

    return ModelledDevice(spec)
