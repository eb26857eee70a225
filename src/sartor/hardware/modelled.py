"""A device that is only described: its latencies come from the roofline of its file, and everything that shows them says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError
from sartor.hardware.device import Identity
from sartor.hardware.graph import Op, OpGraph, Shape
from sartor.hardware.kept import device_roofline
from sartor.hardware.measure import Measurement

if TYPE_CHECKING:
    from sartor.hardware._lower import Quantize
    from sartor.hardware.roofline import Roofline
    from sartor.hardware.spec import DeviceSpec
    from sartor.hardware.target import Progress


class ModelTable:
    """A roofline where a latency table is expected: it has a price for every op, so that there is nothing to measure."""

    def __init__(self, model: Roofline, identity: Identity) -> None:
        self.model, self.identity = model, identity
        self.path = Path(f"roofline of {model.name}")
        self.entries: dict[str, Any] = {}

    def price(self, op: Op) -> float:
        """Modelled latency of one op in ms."""
        return self.model.price(op)

    def session_ms(self, input_shape: Shape) -> float:
        """Modelled cost of an inference apart from its ops in ms."""
        return self.model.session_ms(input_shape)

    def predict(self, graph: OpGraph | Sequence[Op], *, measure_missing: bool = False) -> float:
        """Modelled latency of a network in ms as the runtime fuses it. A list of ops has no edges to fuse along: it costs their sum."""
        if isinstance(graph, OpGraph):
            return self.model.predict(graph)
        return sum(self.price(op) for op in graph) + self.session_ms(graph[0].in_shape)

    def ensure(self, ops: Iterable[Op], *, input_shapes: Iterable[Shape] = (), progress: Progress | None = None) -> int:
        """Nothing is missing: 0 entries were added."""
        return 0

    def close(self) -> None:
        """There is no file to close."""


class ModelledDevice:
    """A device of which there is a file but no agent. None of its figures is a measurement (`measured` is False)."""

    measured = False

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec

    @property
    def name(self) -> str:
        return self.spec.name

    def identity(self, precision: str = "int8", threads: int = 1) -> Identity:
        """Raises UserError for a precision that the device has not, and for more threads than cores."""
        if precision not in self.spec.precisions:
            raise UserError(f"expected precision to be one of {', '.join(self.spec.precisions)} on {self.name}, got {precision!r}")
        if not 1 <= threads <= self.spec.cores:
            raise UserError(f"expected threads between 1 and the {self.spec.cores} cores of {self.name}, got {threads}")
        return Identity(self.spec.processor or self.spec.title, (), self.spec.runtime, "modelled", precision, threads)

    def describe(self, precision: str = "int8", threads: int = 1) -> dict[str, Any]:
        identity = self.identity(precision, threads).to_json()
        return {"name": self.name, **identity, "cores": self.spec.cores, "system": self.spec.title, "measured": False}

    def roofline(self, precision: str = "int8", threads: int = 1) -> Roofline:
        """As calibrated for the device, otherwise of its file. Raises UserError when the file lacks what a roofline needs."""
        return device_roofline(self.spec, precision, threads)

    def measure_many(
        self, files: Sequence[Path | str], *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0,
        patience: int = 1, progress: Progress | None = None,
    ) -> list[Measurement]:  # fmt: skip
        """The modelled latency of each file for one image, as measurements of no runs. Raises UserError for batches."""
        from sartor.hardware.onnx_graph import onnx_graph, precision_of

        if batch != 1:
            raise UserError(f"expected batch 1 on {self.name}, which is modelled, got {batch}")
        found = []
        for number, file in enumerate(files):
            graph = onnx_graph(file)
            identity = self.identity(precision_of(graph), threads)
            ms = self.roofline(identity.precision, threads).predict(graph)
            found.append(Measurement(ms, ms, ms, ms, ms, runs=0, cpu_ms=ms, drift=0.0, noisy=False))
            if progress is not None:
                progress("model", number + 1, len(files))
        return found

    def table(self, path: Path | str, identity: Identity, quantize: Quantize | None = None) -> ModelTable:
        return ModelTable(self.roofline(identity.precision, identity.threads), identity)


def note(spec: DeviceSpec, model: Roofline | None = None) -> str:
    """One sentence for whatever shows figures of a modelled device. `model` is what they come from, where it is known."""
    if model is not None and model.calibrated:
        off = "" if model.quality is None else f", each of which it predicts with a mean error of {model.quality.mape:.0%} when left out"
        return (
            f"No latency of {spec.title} was measured: its figures are those of a roofline model calibrated on {model.networks} networks "
            f"that were measured on it{off}."
        )
    return (
        f"No latency of {spec.title} was measured: its figures are those of a roofline model made from the numbers in its device "
        f"file, and say which network is faster rather than how fast it is."
    )
