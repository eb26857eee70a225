"""Checks exported files against the module they came from, on data, on the clock, and against the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.export.onnx import input_facts
from sartor.export.quantize import int8_report
from sartor.goals import Limit
from sartor.hardware.measure import Measurement, measure, open_session

if TYPE_CHECKING:
    from torch import nn

Images = NDArray[Any]
Labels = NDArray[np.int64]
# (images, labels) as two arrays, or batches of such pairs when all of them would not fit in memory.
Test = tuple[Images, Labels] | Iterable[tuple[Images, Labels]]

# Images on which ONNX fp32 is compared with PyTorch value by value.
COMPARED = 64


@dataclass(frozen=True)
class Files:
    """An exported pair: the deliverable and the fp32 file it was quantised from."""

    int8: Path
    fp32: Path


@dataclass(frozen=True)
class Broken:
    """A limit that the figures of the exported file do not keep: `excess` is relative to the bound, None where nothing was measured."""

    limit: str
    bound: float
    value: float | None
    excess: float | None

    def __str__(self) -> str:
        if self.value is None or self.excess is None:
            return f"{self.limit}: not measured"
        return f"{self.limit}: {self.value:.6g} on the exported file, off by {self.excess:.1%}"


def verify(
    files: Files,
    module: nn.Module,
    test: Test,
    *,
    limits: Sequence[Limit] = (),
    known: Mapping[str, float] | None = None,
    measure: Callable[[Path], Measurement] | None = measure,
    batch: int = 256,
) -> dict[str, Any]:
    """The measured part of a model record (docs/architecture.md): metrics, latency, test, difference, file; and `broken`, `int8`.

    One pass over `test`, whose images (n, C, H, W) are normalised as `module` expects; files that take pixels get them back. `known`
    holds figures computed elsewhere (params, macs, peak_bytes), which limits may name. `measure=None` leaves the clock out.
    `metrics` has latency_ms (p50) with latency_ms_p10 and latency_ms_p90; accuracies are fractions 0..1.

    Raises UserError for empty test data, labels that do not fit, or files that do not load.
    """
    scores, difference = _run(files, module, test, batch)
    metrics: dict[str, float] = dict(known or {})
    metrics.update(accuracy=scores["accuracy"], top5=scores["top5"], file_bytes=float(files.int8.stat().st_size))
    record: dict[str, Any] = {
        "file": str(files.int8),
        "metrics": metrics,
        "test": scores,
        "difference": difference,
        "int8": int8_report(files.int8),
    }
    if measure is not None:
        timed = measure(files.int8)
        metrics.update(latency_ms=timed.p50, latency_ms_p10=timed.p10, latency_ms_p90=timed.p90, throughput=1e3 / timed.p50)
        record["latency"] = asdict(timed)
    record["broken"] = [asdict(b) for b in broken(limits, metrics)]
    return record


def broken(limits: Iterable[Limit], metrics: Mapping[str, float]) -> list[Broken]:
    """The limits that `metrics` do not keep, the worst first; a figure that is missing or not finite keeps none."""
    found = []
    for limit in limits:
        excess = limit.excess(metrics)
        if excess > 0:
            value = metrics.get(limit.key)
            finite = bool(np.isfinite(excess))
            found.append((excess, Broken(str(limit), limit.bound, value if finite else None, excess if finite else None)))
    return [b for _, b in sorted(found, key=lambda pair: -pair[0])]


def accuracy_of(file: str | Path, images: Images | Test, labels: Labels | None = None, batch: int = 256) -> dict[str, float]:
    """{"accuracy", "top5"} (fractions) of an ONNX file through onnxruntime, with one thread.

    Either arrays `images` (n, C, H, W) as the file takes them and `labels` (n,), or, with `labels` None, batches of (images, labels).
    With five classes or fewer every guess is among the first five and top5 is 1. Raises UserError for no images or unfit labels.
    """
    session = open_session(file)
    name = session.get_inputs()[0].name
    tally = _Tally()
    source: Test = images if labels is None else (np.asarray(images), labels)  # type: ignore[assignment]  # arrays come with labels
    for part, truth in _batches(source, batch):
        tally.add(session.run(None, {name: part})[0], truth)
    return tally.scores()


def accuracy_in(runtime: str, file: str | Path, test: Test, batch: int = 256) -> dict[str, float]:
    """{"accuracy", "top5"} (fractions) of a file of any runtime (`sartor.hardware.runtimes`), one image at a time, with one thread.

    `test`: images (n, C, H, W) as the file takes them, with labels. Raises UserError for a runtime that is not installed, a file that it
    cannot load, no images and unfit labels.
    """
    from sartor.hardware.runtimes import Setup, load

    loaded, tally = load(file, Setup(runtime)), _Tally()
    for images, labels in _batches(test, batch):
        given = np.asarray(images, np.float32)
        tally.add(np.concatenate([loaded.infer(given[i : i + 1]) for i in range(len(given))]), labels)
    return tally.scores()


class _Tally:
    def __init__(self) -> None:
        self.count = self.first = self.five = 0

    def add(self, logits: NDArray[np.float32], labels: Labels) -> None:
        if len(labels) != len(logits) or len(labels) == 0 or labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise UserError(
                f"expected {len(logits)} labels from 0 to {logits.shape[1] - 1}, "
                f"got {len(labels)} ({labels.min(initial=0)} to {labels.max(initial=0)})"
            )
        self.count += len(labels)
        self.first += int((logits.argmax(1) == labels).sum())
        # Rank of the right class, equal logits in index order as argmax has them: who is first is then among the first five.
        right = logits[np.arange(len(labels)), labels][:, None]
        earlier = np.arange(logits.shape[1])[None] < labels[:, None]
        self.five += int((((logits > right) | ((logits == right) & earlier)).sum(1) < 5).sum())

    def scores(self) -> dict[str, float]:
        if self.count == 0:
            raise UserError("expected images to test on, got none")
        return {"accuracy": self.first / self.count, "top5": self.five / self.count}


def _run(files: Files, module: nn.Module, test: Test, batch: int) -> tuple[dict[str, float], dict[str, float]]:
    import torch

    sessions = {path: open_session(path) for path in (files.int8, files.fp32)}
    takes = {path: _converter(path) for path in sessions}
    tallies = {path: _Tally() for path in sessions}
    agreed, compared, largest = 0, 0, 0.0
    training = module.training
    module.eval()
    try:
        for images, labels in _batches(test, batch):
            logits = {p: s.run(None, {s.get_inputs()[0].name: takes[p](images)})[0] for p, s in sessions.items()}
            for path, tally in tallies.items():
                tally.add(logits[path], labels)
            agreed += int((logits[files.int8].argmax(1) == logits[files.fp32].argmax(1)).sum())
            if compared < COMPARED:
                part = images[: COMPARED - compared]
                device = next((p.device for p in module.parameters()), torch.device("cpu"))
                with torch.no_grad():
                    expected = module(torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(device)).cpu().numpy()
                largest = max(largest, float(np.abs(expected - logits[files.fp32][: len(part)]).max()))
                compared += len(part)
    finally:
        module.train(training)
    scores = tallies[files.int8].scores()
    count = tallies[files.int8].count
    scores["accuracy_fp32"] = tallies[files.fp32].scores()["accuracy"]
    return scores, {"max_abs_fp32": largest, "agreement_int8": agreed / count}


def _converter(path: Path) -> Callable[[Images], Images]:
    """Normalised images to what the file takes."""
    facts = input_facts(path)
    if facts["pixels"] is None:
        return lambda images: np.ascontiguousarray(images, np.float32)
    mean, std = (np.asarray(facts[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    if facts["pixels"] == "unit":
        return lambda images: np.asarray(images * std + mean, np.float32)
    return lambda images: np.clip(np.round((images * std + mean) * 255), 0, 255).astype(np.uint8)


def _batches(test: Test, batch: int) -> Iterator[tuple[Images, Labels]]:
    if isinstance(test, tuple) and len(test) == 2 and isinstance(test[0], np.ndarray):
        images, labels = test
        if len(images) != len(labels):
            raise UserError(f"expected one label for each image, got {len(images)} images and {len(labels)} labels")
        for start in range(0, len(images), batch):
            yield images[start : start + batch], np.asarray(labels[start : start + batch])
    else:
        for part, truth in test:
            yield part, np.asarray(truth)
