"""Is the promise kept? Twenty latency limits over the attainable range of one trained supernet, one delivered model each.

    python benchmarks/promise.py runs/fashion --out runs/promise [--limits 20] [--seconds 60]

`runs/fashion` is a finished run: its supernet and its screening are used. For every limit a search with real measurements finds candidates,
the most accurate feasible one is fine-tuned, exported and measured; then a separate process measures all delivered files five times,
interleaved. Goes on where it stopped when given again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_REMEASURE = """
import json, sys
from sartor.hardware.measure import measure_many
files = json.loads(sys.argv[1])
print(json.dumps([[m.p50 for m in measure_many(files, threads=1, seconds=0.5, seed=turn)] for turn in range(5)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--out", required=True)
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each limit")
    options = parser.parse_args()
    import numpy as np

    from sartor.store import Store

    base, out = Path(options.run), Path(options.out)
    with Store(base / "history.sqlite") as store:
        latencies = [t.metrics["latency_ms"] for t in store.trials() if t.status == "complete"]
    bounds = np.geomspace(1.08 * min(latencies), max(latencies), options.limits)
    rows = [one(base, out / f"limit-{n:02d}", float(bound), options.seconds) for n, bound in enumerate(bounds)]
    again(rows)
    report(rows, out)


def one(base: Path, folder: Path, bound: float, seconds: float) -> dict:
    """One limit: a run folder that starts behind the supernet phase of `base`."""
    from sartor import job
    from sartor.errors import UserError
    from sartor.report.terminal import Progress
    from sartor.request import SearchRequest

    if not (folder / "result.json").is_file():
        if not (folder / "config.json").is_file():
            asked = SearchRequest.load(base).model_dump()
            asked.update(limits=[f"latency_ms<={bound:.6g}"], models=1, baselines=False, out=str(folder), minutes=seconds / 60 * 2.2)
            SearchRequest(**asked).save()
            prepare(base, folder)
        try:
            with Progress(plain=True) as progress:
                job.resume(folder, progress=progress)
        except UserError as error:
            return {"bound": bound, "refused": str(error)}
    result = json.loads((folder / "result.json").read_text())
    if not result["models"]:
        return {"bound": bound, "refused": "; ".join(r["reason"] for r in result["refused"]) or result["status"]}
    model = result["models"][0]
    return {
        "bound": bound, "file": str(folder / model["file"]), "promised": model["metrics"]["latency_ms"],
        "predicted": model["predicted"],
        "accuracy": model["metrics"]["accuracy"], "validation": model["validation"]["accuracy"],
        "best_of_pool": best_of_pool(folder, bound),
    }  # fmt: skip


def prepare(base: Path, folder: Path) -> None:
    """Take over supernet, calibration and predictor samples; the screened front depends on the limit and is made anew."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(base / "checkpoints" / "supernet.safetensors", folder / "checkpoints")
    shutil.copy(base / "screening.sqlite", folder)
    state = json.loads((base / "checkpoints" / "state.json").read_text())
    facts = {key: state["facts"][key] for key in ("data", "sizing", "table", "supernet")}
    (folder / "checkpoints" / "state.json").write_text(json.dumps({"facts": {**facts, "no_first": True}, "seconds": {"sample": 1e9}}))


def best_of_pool(folder: Path, bound: float) -> dict:
    """Supernet accuracy of the most accurate feasible candidate, and two standard errors of a difference of two such accuracies."""
    from sartor.store import Store

    with Store(folder / "history.sqlite") as store:
        trials = [t for t in store.trials() if t.status == "complete" and t.metrics["latency_ms"] <= bound]
    best = max(t.metrics["accuracy"] for t in trials)
    images = min(1000, json.loads((folder / "result.json").read_text())["data"]["validation"])  # as many as the search looks at
    return {"accuracy": best, "noise": 2 * (2 * best * (1 - best) / images) ** 0.5, "candidates": len(trials)}


def again(rows: list[dict]) -> None:
    """Five interleaved re-measurements of all files by a separate process."""
    import numpy as np

    files = [row["file"] for row in rows if "file" in row]
    found = subprocess.run([sys.executable, "-c", _REMEASURE, json.dumps(files)], check=True, capture_output=True, text=True)
    times = np.median(np.array(json.loads(found.stdout)), axis=0)
    for row, time in zip((row for row in rows if "file" in row), times, strict=True):
        row["again"] = float(time)


def report(rows: list[dict], out: Path) -> None:
    import numpy as np

    delivered = [row for row in rows if "again" in row]
    slack = [1 - row["again"] / row["bound"] for row in delivered]
    summary = {
        "limits": len(rows),
        "delivered": len(delivered),
        "kept": sum(row["again"] <= row["bound"] for row in delivered),
        "median_slack": float(np.median(slack)) if slack else None,
        "most_accurate_of_its_pool": sum(
            row["predicted"]["accuracy"] >= row["best_of_pool"]["accuracy"] - row["best_of_pool"]["noise"] for row in delivered
        ),
        "refused": [row for row in rows if "refused" in row],
    }
    (out / "promise.json").write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
