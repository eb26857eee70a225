"""Search against the hand-designed ladder on one data set: same training time in all, same export, all files measured in one run.

    python benchmarks/against_ladder.py fashion-mnist --minutes 40 --out runs/fashion
    python benchmarks/against_ladder.py cifar10-20k.npz --minutes 40 --out runs/cifar

Interrupted runs go on when the same command is given again. Prints what the report says, and writes summary.json and table.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference-accuracy", type=float, default=None, help="of the hypervolume; 0.85, for CIFAR-10 0.6")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    from sartor import job
    from sartor.report.terminal import Progress, console, print_result
    from sartor.request import SearchRequest

    out = Path(options.out)
    with Progress(plain=True) as progress:
        if (out / "config.json").is_file():
            result = job.resume(out, progress=progress)
        else:
            request = SearchRequest(data=options.data, minutes=options.minutes, models=options.models, seed=options.seed, out=str(out))
            result = job.search(request, progress=progress)
    print_result(result, out, console())
    floor = options.reference_accuracy
    if floor is None:
        floor = 0.6 if "cifar" in options.data else 0.85
    summary = summarise(result, floor)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "table.md").write_text(table(result))
    print(json.dumps(summary, indent=1))


def summarise(result: dict, floor: float) -> dict:
    """Hypervolume of (test accuracy, latency) with reference (floor, 1.05 x the slowest rung), and speed at the ladder's best accuracy."""
    import numpy as np

    from sartor import pareto

    models, ladder = result["models"], result["baselines"]
    slowest = max(r["metrics"]["latency_ms"] for r in ladder)
    reference = np.array([1 - floor, 1.05 * slowest])

    def volume(records: list[dict]) -> float:
        return pareto.hypervolume(np.array([[1 - r["metrics"]["accuracy"], r["metrics"]["latency_ms"]] for r in records]), reference)

    best = max(ladder, key=lambda r: r["metrics"]["accuracy"])
    equal = [r for r in models if r["metrics"]["accuracy"] >= best["metrics"]["accuracy"]]
    fastest = min(equal, key=lambda r: r["metrics"]["latency_ms"]) if equal else None
    return {
        "hypervolume_search": volume(models),
        "hypervolume_ladder": volume(ladder),
        "hypervolume_ratio": volume(models) / volume(ladder) if volume(ladder) else None,
        "reference": {"accuracy": floor, "latency_ms": 1.05 * slowest},
        "ladder_best": {"name": best["name"], "accuracy": best["metrics"]["accuracy"], "latency_ms": best["metrics"]["latency_ms"]},
        "search_as_good": fastest and {"name": fastest["name"], **{k: fastest["metrics"][k] for k in ("accuracy", "latency_ms")}},
        "speedup": best["metrics"]["latency_ms"] / fastest["metrics"]["latency_ms"] if fastest else None,
        "best_accuracy": max(r["metrics"]["accuracy"] for r in models),
        "seconds": result["seconds"],
    }


def table(result: dict) -> str:
    """Every network by latency, searched ones left and the ladder right, as the manual shows them."""
    columns = [sorted(result[kind], key=lambda r: r["metrics"]["latency_ms"]) for kind in ("models", "baselines")]
    head = "| | test accuracy | p50 ms | 95 % interval | epochs "
    lines = [head + head + "|", "|---" * 10 + "|"]
    for pair in itertools.zip_longest(*columns):
        cells = []
        for r in pair:
            if r is None:
                cells += [""] * 5
            else:
                clock, epochs = r["latency"], r["training"]["epochs"]
                cells += [r["name"], f"{r['metrics']['accuracy']:.2%}".replace("%", " %"), f"{clock['p50']:.4f}"]
                cells += [f"{clock['low']:.4f} – {clock['high']:.4f}", f"{epochs:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
