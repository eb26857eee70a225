"""From a measured front to delivered models: choose, train, export, verify on the file, repair or refuse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sartor import pareto
from sartor.deploy.card import plain
from sartor.deploy.verify import accuracy_of, broken
from sartor.export.source import save_source
from sartor.goals import Goals
from sartor.job.context import Job, timings
from sartor.job.explore import batch_size, load_weights, save_weights
from sartor.job.state import write_json
from sartor.recipes.bn import calibrate_bn
from sartor.recipes.evaluate import first_images
from sartor.recipes.train import train
from sartor.trial import Trial

_FINE_TUNE_LR = 0.04
_SCRATCH_LR = 0.1


def choose(trials: Sequence[Trial], goals: Goals, count: int) -> list[Trial]:
    """Feasible trials, the most useful first: the best by the first objective, then those of the front that add the most hypervolume, up to
    `count`; then the others by rank and first objective, to fall back on.

    Objectives are scaled to the range of the feasible trials, and costs enter by their logarithm, because a millisecond matters more to a
    fast network than to a slow one.
    """
    feasible = [t for t in trials if t.status == "complete" and goals.feasible(t.metrics) and np.isfinite(goals.values(t.metrics)).all()]
    if not feasible:
        return []
    values = np.array([goals.values(t.metrics) for t in feasible])
    scaled = np.where((values > 0).all(0), np.log(np.maximum(values, 1e-12)), values)
    low, high = scaled.min(0), scaled.max(0)
    scaled = (scaled - low) / np.where(high > low, high - low, 1.0)
    rank = pareto.ranks(values)
    reference = np.full(values.shape[1], 1.05)
    left = [int(i) for i in np.flatnonzero(rank == rank.min())]
    picked = [left.pop(int(np.argmin(values[left, 0])))]
    while left and len(picked) < count:
        gains = [pareto.hypervolume(scaled[[*picked, i]], reference) for i in left]
        picked.append(left.pop(int(np.argmax(gains))))
    rest = sorted((i for i in range(len(feasible)) if i not in picked), key=lambda i: (rank[i], float(values[i, 0])))
    return [feasible[i] for i in (*picked, *rest)]


def make(
    job: Job, name: str, origin: str, module: nn.Module, *, seconds: float, start: str, predicted: dict[str, Any], labels: dict[str, Any]
) -> dict[str, Any]:
    """Train `module`, export it, measure the file, and write everything but the card into models/<name>. Returns the model record.

    A record that exists is read, not made again: a resumed run goes on behind it.
    """
    folder = job.folder / "models" / name
    if f"model:{name}" in job.state:
        return dict(job.state[f"model:{name}"])
    work = job.folder / "checkpoints" / f"{name}.safetensors"
    lr = _FINE_TUNE_LR if start == "supernet" else _SCRATCH_LR
    result = train(
        module, job.data, seconds=seconds, batch=batch_size(job), lr=lr, augment=job.policy, label_smoothing=0.1, ema=0.99, validate=False,
        seed=job.request.seed, checkpoint=work, progress=job.progress, name=f"train {name}",
    )  # fmt: skip
    training = {"from": start, "epochs": round(result.epochs, 2), "seconds": round(result.seconds, 1)}
    record = export_record(job, name, origin, module, folder, predicted=predicted, labels=labels, training=training)
    job.state.put(f"model:{name}", plain(record))
    work.unlink(missing_ok=True)
    return record


def export_record(
    job: Job,
    name: str,
    origin: str,
    module: nn.Module,
    folder: Path,
    *,
    predicted: dict[str, Any],
    labels: dict[str, Any],
    training: dict[str, Any],
) -> dict[str, Any]:
    """Export into a temporary folder, measure there, then move it into place: a folder under models/ is always whole."""
    module.eval()
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as the source builds it; torch's stub lacks the form
    part = folder.with_name(f".{name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        file = job.export(module, part)
        save_source(module, part, "model", job.data.input_shape)
        save_weights(module, part / "weights.safetensors")
        validation = accuracy_of(file, job.data.validation.batches(256))
        float_file = part / "model_fp32.onnx"
        fp32 = accuracy_of(float_file, job.data.validation.batches(256)) if float_file.is_file() else validation
        clock = job.clock(file, 1.0)
        layers = job.layers(module)
        predicted = {**predicted, "latency_ms": job.table_latency(module)}
        metrics = {
            **job.graph_figures(module), **timings(clock.p50, clock.p10, clock.p90), "file_bytes": float(file.stat().st_size), **validation,
        }  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {
        "name": name, "origin": origin, "arch": labels, "file": f"models/{name}/model.onnx", "metrics": metrics, "latency": clock.to_json(),
        "predicted": predicted, "validation": {**validation, "accuracy_fp32": fp32["accuracy"]}, "training": training, "layers": layers,
    }  # fmt: skip


def reload(job: Job, record: dict[str, Any], module: nn.Module) -> nn.Module:
    """The trained weights of a delivered model, into a module of its architecture."""
    load_weights(module, job.folder / "models" / record["name"] / "weights.safetensors")
    return module.eval()


def inherited(job: Job, arch: Any) -> nn.Module:
    """A sub-net with the supernet's weights and calibrated batch normalisation."""
    module: nn.Module = job.net.extract(arch)
    calibrate_bn(module, first_images(job.data.train, 512, seed=job.request.seed))
    return module


def deliver(job: Job, trials: Sequence[Trial]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Train and export the chosen architectures; a model whose measured figure breaks a limit gives way to the next candidate.

    Returns:
        (records that keep every limit, refused ones with the reason).
    """
    queue = choose(trials, job.goals, job.request.models)
    wanted = min(job.request.models, len(queue))
    tries = min(len(queue), job.request.models + 8)
    each = job.plan.finish / max(1, wanted)
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    for number, trial in enumerate(queue[:tries], start=1):
        if len(kept) >= wanted:
            break
        name = f"s{number:02d}"
        labels = job.net.space.labels(trial.arch)
        predicted = {"accuracy": trial.metrics["accuracy"]}
        record = make(job, name, "search", inherited(job, trial.arch), seconds=each, start="supernet", predicted=predicted, labels=labels)
        if job.request.from_scratch:
            record = _better(job, record, trial, each)
        failures = broken(job.goals.limits, record["metrics"])
        if failures:
            refused.append({"name": name, "reason": "; ".join(str(f) for f in failures)})
            shutil.rmtree(job.folder / "models" / name, ignore_errors=True)
        else:
            kept.append(record)
        write_json(job.folder / "checkpoints" / "refused.json", refused)
    return kept, refused


def _better(job: Job, record: dict[str, Any], trial: Trial, seconds: float) -> dict[str, Any]:
    """Train the same architecture from scratch as well; the record tells both, and the better one on validation is delivered."""
    from sartor.spaces import build

    torch.manual_seed(job.request.seed + 1)
    fresh = build(job.request.space, job.data.input_shape, len(job.data.classes)).extract(trial.arch)
    name = f"{record['name']}-scratch"
    other = make(job, name, "search", fresh, seconds=seconds, start="scratch", predicted=record["predicted"], labels=record["arch"])
    compared = {
        "inherited": {"accuracy": record["validation"]["accuracy"], **record["training"]},
        "scratch": {"accuracy": other["validation"]["accuracy"], **other["training"]},
    }
    best = other if other["validation"]["accuracy"] > record["validation"]["accuracy"] else record
    loser = record if best is other else other
    shutil.rmtree(job.folder / "models" / loser["name"], ignore_errors=True)
    return {**best, "compared": compared}
