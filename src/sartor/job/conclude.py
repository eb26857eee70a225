"""The end of a run: measure all files side by side, read the test split once, and write result.json, cards and report."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np

from sartor import pareto
from sartor.deploy.card import plain, write_card
from sartor.deploy.verify import Files, broken, verify
from sartor.goals import QUIET
from sartor.job.context import Job
from sartor.job.device_space import deliver_tflite
from sartor.job.device_space import notes as device_notes
from sartor.job.finish import WEIGHTS, reload
from sartor.job.further import OWN, all_timings
from sartor.job.ladder import rung
from sartor.job.records import latencies
from sartor.job.state import write_json
from sartor.report.folder import SCHEMA
from sartor.report.html import write_report
from sartor.store import Store

Record = dict[str, Any]


def conclude(job: Job, models: list[Record], baselines: list[Record], refused: list[dict[str, str]]) -> Record:
    """Final figures of every file, measured in one interleaved run; limits are judged on these. Writes the complete result."""
    if "finished" not in job.state:
        _measure(job, [*models, *baselines])
        for record in list(models):
            failures = broken(job.goals.limits, record["metrics"])
            if failures:
                models.remove(record)
                refused.append({"name": record["name"], "reason": "; ".join(map(str, failures))})
        _mark_front(job, models)
        test = job.data.read_test()
        for record in (*models, *baselines):
            _test(job, record, test)
        job.state.put("finished", plain({"models": models, "baselines": baselines, "refused": refused}))
    done = job.state["finished"]
    _keep_delivered(job, [*done["models"], *done["baselines"]])
    status = "complete" if done["models"] or "only_ladder" in job.state else "infeasible"
    return _write(job, done["models"], done["baselines"], done["refused"], status)


def _keep_delivered(job: Job, records: Sequence[Record]) -> None:
    """Remove the first model, which better ones have replaced, what the last measurement refused, and the weights as the supernet names
    them, which model.safetensors holds too: files under models/ are promises."""
    names = {record["name"] for record in records}
    for folder in (job.folder / "models").glob("*"):
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            (folder / WEIGHTS).unlink(missing_ok=True)


def partial(job: Job, status: str = "partial", note: str = "") -> Record:
    """What exists so far, as a result that says so; accuracies are those of the validation images, the test split is not read."""
    records = [value for key, value in job.state.facts.items() if key.startswith("model:")]
    there = [r for r in records if (job.folder / r["file"]).is_file() and not broken(job.goals.limits, r["metrics"])]
    models = [dict(r) for r in there if r["origin"] == "search"]
    _mark_front(job, models)
    notes = ["The run is not finished: accuracies are those of validation images."] if status == "partial" else []
    return _write(job, models, [r for r in records if r["origin"] == "baseline"], [], status, [*notes, *([note] if note else [])])


def _measure(job: Job, records: Sequence[Record]) -> None:
    with job.state.timing("measure"):
        clocks = job.everywhere([job.folder / record["file"] for record in records], 1.5, patience=4, judged=True)
    for record, found in zip(records, clocks, strict=True):
        record.update(latencies(job, found))
        for name in [name for name in record["metrics"] if name.partition("@")[0].endswith(QUIET)]:
            del record["metrics"][name]  # those of the single file, unless there are some of this run
        record["metrics"].update(all_timings(found))
        record["metrics"].update(job.energies(record.get("energy", {}).get("dynamic_mj"), found[OWN].p50))
        record["metrics"] = job.derive(record["metrics"])


def _mark_front(job: Job, models: Sequence[Record]) -> None:
    """Non-dominated models by the objectives, accuracy being that of the validation images: the test plays no part in choosing."""
    if not models:
        return
    values = np.array(
        [
            job.goals.values(
                job.derive({**r["metrics"], "accuracy": r["validation"]["accuracy"], "top5": r["validation"].get("top5", 0.0)})
            )
            for r in models
        ]
    )
    for record, front in zip(models, pareto.front(values), strict=True):
        record["front"] = bool(front)


def _test(job: Job, record: Record, test: Any) -> None:
    """Accuracy of the exported file on the test images, and the file against PyTorch."""
    with job.state.timing("test"):
        module = reload(job, record, _module(job, record))
        file = job.folder / record["file"]
        float_file = file.with_name("model_fp32.onnx")
        files = Files(file, float_file if float_file.is_file() else file)
        found = verify(files, module, test.batches(256), known={}, measure=None)
    record["metrics"] = job.derive({**record["metrics"], "accuracy": found["test"]["accuracy"], "top5": found["test"]["top5"]})
    record.update(test=found["test"], difference=found["difference"], int8=found["int8"])
    if record["origin"] == "search":
        record.update(deliver_tflite(job, module, file.parent, test.batches(256)))


def _module(job: Job, record: Record) -> Any:
    if record["origin"] == "baseline":
        return rung(job, record["name"])
    return job.net.extract(job.net.space.from_labels(record["arch"]))


def comparison(models: Sequence[Record], baselines: Sequence[Record]) -> Record:
    """The search against the ladder, on test accuracy and latency measured in one run: hypervolumes, and speed at the ladder's best."""
    if not models or not baselines:
        return {}
    slowest = max(r["metrics"]["latency_ms"] for r in baselines)
    floor = _floor(baselines)
    reference = np.array([1 - floor, 1.05 * slowest])

    def points(records: Sequence[Record]) -> np.ndarray:
        return np.array([[1 - r["metrics"]["accuracy"], r["metrics"]["latency_ms"]] for r in records])

    volume = {"search": pareto.hypervolume(points(models), reference), "ladder": pareto.hypervolume(points(baselines), reference)}
    best = max(baselines, key=lambda r: r["metrics"]["accuracy"])
    as_good = [r["metrics"]["latency_ms"] for r in models if r["metrics"]["accuracy"] >= best["metrics"]["accuracy"]]
    return {
        "reference": {"accuracy": floor, "latency_ms": 1.05 * slowest},
        "hypervolume": volume,
        "ratio": volume["search"] / volume["ladder"] if volume["ladder"] > 0 else math.inf,
        "ladder_best": {"name": best["name"], "accuracy": best["metrics"]["accuracy"], "latency_ms": best["metrics"]["latency_ms"]},
        "speedup_at_ladder_best": best["metrics"]["latency_ms"] / min(as_good) if as_good else None,
    }


def _floor(baselines: Sequence[Record]) -> float:
    """Reference accuracy: the worst rung's, rounded down to 5 %."""
    worst = min(r["metrics"]["accuracy"] for r in baselines)
    return math.floor(worst * 20) / 20


def _write(
    job: Job, models: list[Record], baselines: list[Record], refused: list[dict[str, str]], status: str, notes: Sequence[str] = ()
) -> Record:
    pixels = job.data.train.raw
    data = {
        **job.data.summary(), "mean": job.data.mean.tolist(), "std": job.data.std.tolist(), "dtype": str(pixels.dtype),
        "range": [float(pixels.min()), float(pixels.max())],
    }  # fmt: skip
    limits = [{"metric": one.metric, "bound": one.bound, "statistic": one.statistic} for one in job.goals.limits]
    whole = status == "complete"
    result = plain(
        {
            "schema": SCHEMA,
            "status": status,
            "name": job.folder.name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": job.state.account(),
            "data": data,
            "device": job.device,
            **({"platforms": job.platforms} if job.platforms else {}),
            "objectives": list(job.goals.objectives),
            "limits": limits,
            "space": {"name": job.request.space, "size": str(job.net.space.size), "fingerprint": job.net.space.fingerprint},
            "models": sorted(models, key=lambda r: r["metrics"]["latency_ms"]),
            "baselines": baselines,
            "refused": refused,
            "comparison": comparison(models, baselines) if whole else {},
            "phases": [{"name": name, "seconds": seconds} for name, seconds in job.state.seconds.items()],
            "table": job.state.facts.get("table", {}),
            "predictor": job.state.facts.get("screen", {}).get("predictor", {}),
            "explanation": _explanation(job) if whole else [],
            "notes": [*device_notes(job), *filter(None, [job.state.facts.get("sizing", {}).get("note")]), *_of_method(job), *notes],
            "restriction": job.state.facts.get("restriction", {}).get("removed", []),
            "chosen_space": job.state.facts.get("space", {}),
            "versions": {name: version(name) for name in ("sartor", "torch", "onnxruntime", "numpy")},
            "request": job.request.model_dump(),
        }
    )
    for record in (*result["models"], *result["baselines"]):
        folder = job.folder / "models" / record["name"]
        if folder.is_dir():
            write_card(record, folder, data=data, device=job.device, limits=job.goals.limits, versions=result["versions"])
    write_json(job.folder / "result.json", result)
    write_report(job.folder, result, _trials(job))
    return dict(result)


def _of_method(job: Job) -> list[str]:
    """What a method said of its own search."""
    facts = job.state.facts.get("supernet")
    return list(facts.get("notes", [])) if isinstance(facts, dict) else []


def _explanation(job: Job) -> list[dict[str, Any]]:
    """Which choices mattered, for every objective that the history has."""
    from sartor.explain import to_json

    path = job.folder / "history.sqlite"
    if not path.is_file():
        return []
    with Store(path) as store:
        trials = list(store.trials(job.net.space))
    return to_json(job.net.space, trials, job.goals.objectives)


def _trials(job: Job) -> list[dict[str, Any]] | None:
    path = job.folder / "history.sqlite"
    if not path.is_file():
        return None
    with Store(path) as store:
        return [dict(row) for row in store.rows()]
