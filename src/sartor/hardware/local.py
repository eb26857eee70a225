"""This machine as a device. Needs numpy and ONNX Runtime only, because it is also what an agent runs on a board."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.hardware.device import Identity, describe, host
from sartor.hardware.measure import Measurement, measure_many, open_session
from sartor.hardware.pace import Pacer, QuietTime

if TYPE_CHECKING:
    from sartor.hardware._lower import Quantize
    from sartor.hardware.table import LatencyTable
    from sartor.hardware.target import Progress

SAMPLES = 24  # quiet samples wanted
PATIENCE = 6  # times the usual duration that a series may wait for them


class LocalDevice:
    """This machine's CPU with ONNX Runtime."""

    name = "host"
    measured = True

    def identity(self, precision: str = "int8", threads: int = 1) -> Identity:
        return host(precision, threads)

    def describe(self, precision: str = "int8", threads: int = 1) -> dict[str, Any]:
        return {**describe(precision, threads), "measured": True}

    def measure_many(
        self, files: Sequence[Path | str], *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0,
        patience: int = 1, progress: Progress | None = None,
    ) -> list[Measurement]:  # fmt: skip
        return measure_many(files, threads=threads, batch=batch, seconds=seconds, seed=seed, patience=patience, progress=progress)

    def table(self, path: Path | str, identity: Identity, quantize: Quantize | None = None) -> LatencyTable:
        from sartor.hardware.table import LatencyTable

        return LatencyTable(path, identity, quantize=quantize, bench=self)

    @cached_property
    def pacer(self) -> Pacer:
        return Pacer()

    def optimise(self, model: bytes) -> bytes:
        import onnxruntime as ort

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            options = ort.SessionOptions()
            options.optimized_model_filepath = str(path)
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            options.add_session_config_entry("session.load_model_format", "ONNX")  # as in open_session
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return path.read_bytes()

    def values(self, model: bytes, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = open_session(model, optimise=False)
        return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))

    def time(
        self, models: Iterable[tuple[bytes, Mapping[str, np.ndarray]]], *, threads: int = 1, seconds: float = 0.02
    ) -> Iterator[QuietTime]:
        for model, feeds in models:
            session, given = open_session(model, threads, optimise=False), dict(feeds)
            for _ in range(5):
                session.run(None, given)
            yield self.pacer.quiet_time(partial(session.run, None, given), seconds, SAMPLES, PATIENCE)
