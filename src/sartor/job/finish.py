"""From a measured front to delivered models: choose, train, export, verify on the file, repair or refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sartor import pareto
from sartor.deploy.card import plain
from sartor.deploy.verify import accuracy_of, broken
from sartor.export.source import save_source
from sartor.goals import OF_ACCURACY, Goals, metric_of
from sartor.hardware.graph import trace
from sartor.hardware.schedule import memory_plan
from sartor.job.context import Job
from sartor.job.explore import batch_size, load_weights, save_weights
from sartor.job.further import OWN, all_timings
from sartor.job.records import latencies, table_latencies
from sartor.job.records import layers as layers_of
from sartor.job.workers import Task, module_of, train_all, trained, with_shares
from sartor.recipes.bn import calibrate_bn
from sartor.recipes.evaluate import first_images
from sartor.recipes.train import train
from sartor.trial import Trial

WEIGHTS = "weights.safetensors"  # a trained module's own state, in its model's folder until the run is over
_FINE_TUNE_LR = 0.04
_SCRATCH_LR = 0.1
#: For every network, the ladder's too. On Fashion-MNIST 8 epochs from scratch gave 92.1 % of the validation images, with 1e-4 91.6 %.
_WEIGHT_DECAY = 5e-4
#: Of a limit on time: the same file takes up to so much longer when another process measures it later, among others.
_MARGIN = 0.05
_REPAIRS = 8  # candidates in reserve for models whose measured figure breaks a limit


def choose(trials: Sequence[Trial], goals: Goals, count: int, *, margin: float = 0.0) -> list[Trial]:
    """Feasible trials, the most useful first: the best by the first objective, then those of the front that add the most hypervolume, up to
    `count`; then the others by rank and first objective, to fall back on. If any keeps the limits on time by `margin`, a share of them,
    only such ones.

    Objectives are scaled to the range of the feasible trials, and costs enter by their logarithm, because a millisecond matters more to a
    fast network than to a slow one.
    """
    feasible = _feasible(trials, goals, count + _REPAIRS, margin)
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


def margin(job: Job) -> float:
    """By how much candidates should keep a limit on time: what measurements of a file differ by; a modelled latency is one number."""
    return _MARGIN if job.measuring else 0.0


def _feasible(trials: Sequence[Trial], goals: Goals, least: int, margin: float) -> list[Trial]:
    """Trials that keep every limit; where fewer than `least` do, also those that miss nothing but a limit on accuracy, the nearest first:
    shared weights are worse than those that training will give, and such a limit is judged on the trained file. Of either kind only those
    clear of the limits on time by `margin`, if any is."""
    costs = Goals(goals.objectives, tuple(limit for limit in goals.limits if limit.metric not in OF_ACCURACY))
    timed = [limit for limit in goals.limits if metric_of(limit.metric).unit in ("ms", "images/s", "ratio")]
    good = [t for t in trials if t.status == "complete" and np.isfinite(goals.values(t.metrics)).all() and costs.feasible(t.metrics)]

    def clear(some: list[Trial]) -> list[Trial]:
        return [t for t in some if all(limit.excess(t.metrics) <= -margin for limit in timed)] or some

    kept = clear([t for t in good if goals.feasible(t.metrics)])
    near = clear(sorted((t for t in good if not goals.feasible(t.metrics)), key=lambda t: goals.violation(t.metrics)))
    return kept + near[: max(0, least - len(kept))]


def fit_module(job: Job, task: Task, module: nn.Module) -> dict[str, Any]:
    """The standard recipe for one network, in place and in this process; resumes from its checkpoint. Returns what a record says of it."""
    work = job.folder / "checkpoints" / f"{task.name}.safetensors"
    lr = _FINE_TUNE_LR if task.start == "supernet" else _SCRATCH_LR
    result = train(
        module, job.data, seconds=task.seconds, batch=batch_size(job), lr=lr, weight_decay=_WEIGHT_DECAY, augment=job.policy,
        label_smoothing=0.1, ema=0.99, arithmetic=task.arithmetic, validate=False, seed=job.request.seed, checkpoint=work,
        progress=job.progress, name=f"train {task.name}",
    )  # fmt: skip
    return {
        "from": task.start, "epochs": round(result.epochs, 2), "seconds": round(result.seconds, 1), "arithmetic": task.arithmetic,
    }  # fmt: skip


def make(job: Job, task: Task, origin: str, predicted: dict[str, Any]) -> dict[str, Any]:
    """Train the task's network unless a worker has, export it and measure the file. Returns the model record.

    A record that exists is read, not made again: a resumed run goes on behind it.
    """
    if f"model:{task.name}" in job.state:
        record = dict(job.state[f"model:{task.name}"])
        return {**record, "predicted": {**predicted, **record["predicted"]}}
    weights = trained(job, task.name)
    module = module_of(job, task)
    if weights.is_file():
        load_weights(module, weights)
        training = json.loads(weights.with_suffix(".json").read_text())
    else:
        training = fit_module(job, task, module)
    labels = task.labels if task.labels is not None else {"design": task.design}
    folder = job.folder / "models" / task.name
    record = export_record(job, task.name, origin, module, folder, predicted=predicted, labels=labels, training=training)
    job.state.put(f"model:{task.name}", plain(record))
    for path in (weights, weights.with_suffix(".json"), job.folder / "checkpoints" / f"{task.name}.safetensors"):
        path.unlink(missing_ok=True)
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
        save_weights(module, part / WEIGHTS)
        validation = accuracy_of(file, job.data.validation.batches(256))
        float_file = part / "model_fp32.onnx"
        fp32 = accuracy_of(float_file, job.data.validation.batches(256)) if float_file.is_file() else validation
        clocks = job.everywhere([file], 1.0, judged=True)[0]
        layers, memory = layers_of(job, module), memory_plan(trace(module, job.data.input_shape), job.bytes_per_value)
        errors = job.weight_errors(file)
        predicted = {**predicted, **table_latencies(job, module)}
        metrics = job.derive({
            **job.graph_figures(module), **all_timings(clocks), **job.energies(dynamic := job.dynamic_mj(module), clocks[OWN].p50),
            **job.file_figures(file), **validation,
        })  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {
        "name": name, "origin": origin, "arch": labels, "file": f"models/{name}/model.onnx", "metrics": metrics, **latencies(job, clocks),
        "predicted": predicted, "validation": {**validation, "accuracy_fp32": fp32["accuracy"]}, "training": training, "layers": layers,
        "memory": memory, "weight_error": errors, **({} if dynamic is None else {"energy": {"dynamic_mj": dynamic, "validated": False}}),
    }  # fmt: skip


def reload(job: Job, record: dict[str, Any], module: nn.Module) -> nn.Module:
    """The trained weights of a delivered model, into a module of its architecture."""
    load_weights(module, job.folder / "models" / record["name"] / WEIGHTS)
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
    queue = choose(trials, job.goals, job.request.models, margin=margin(job))
    wanted = min(job.request.models, len(queue))
    queue = queue[: job.request.models + _REPAIRS]
    tasks = _tasks(job, queue, wanted)
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    for task, trial in zip(tasks, queue, strict=True):
        if len(kept) >= wanted:
            break
        record = make(job, task, "search", {"accuracy": trial.metrics["accuracy"]})
        if job.request.from_scratch:
            record = _better(job, record, task)
        failures = broken(job.goals.limits, record["metrics"])
        if failures:
            refused.append({"name": task.name, "reason": "; ".join(str(f) for f in failures)})
            shutil.rmtree(job.folder / "models" / task.name, ignore_errors=True)
        else:
            kept.append(record)
    return kept, refused


def salvage(job: Job) -> None:
    """Export what is trained by now, so that a stopped run leaves it; a resumed one goes on behind it."""
    tasks = [Task(**task) for task in job.state.facts.get("tasks", [])]
    there = [task for task in tasks if trained(job, task.name).is_file() and f"model:{task.name}" not in job.state]
    for number, task in enumerate(there):
        job.progress("export what is trained (Ctrl-C again leaves it out)", number, len(there))
        make(job, task, "search", {})


def _tasks(job: Job, queue: Sequence[Trial], wanted: int) -> list[Task]:
    """The trainings, with their time: the first `wanted` side by side now; those in reserve, if it comes to that, one by one."""
    if "tasks" not in job.state:
        start = job.state["supernet"].get("start", "supernet")
        named = [Task(f"s{n:02d}", start, dict(job.net.space.labels(t.arch))) for n, t in enumerate(queue, start=1)]
        modules = [module_of(job, task) for task in named[:wanted]]
        shared = with_shares(named[:wanted], modules, job.data.input_shape, batch_size(job), job.plan.finish)
        usual = float(np.median([task.seconds for task in shared]))
        job.state.put("tasks", [asdict(task) for task in (*shared, *(replace(task, seconds=usual) for task in named[wanted:]))])
    tasks = [Task(**task) for task in job.state["tasks"]]
    both = [*tasks[:wanted], *(map(_scratch, tasks[:wanted]) if job.request.from_scratch else ())]
    train_all(job, [task for task in both if f"model:{task.name}" not in job.state])
    return tasks


def _scratch(task: Task) -> Task:
    return replace(task, name=f"{task.name}-scratch", start="scratch")


def _better(job: Job, record: dict[str, Any], task: Task) -> dict[str, Any]:
    """The same architecture trained from scratch as well; the record tells both, and the better one on validation is delivered."""
    other = make(job, _scratch(task), "search", record["predicted"])
    compared = {
        "inherited": {"accuracy": record["validation"]["accuracy"], **record["training"]},
        "scratch": {"accuracy": other["validation"]["accuracy"], **other["training"]},
    }
    best = other if other["validation"]["accuracy"] > record["validation"]["accuracy"] else record
    loser = record if best is other else other
    shutil.rmtree(job.folder / "models" / loser["name"], ignore_errors=True)
    return {**best, "compared": compared}
