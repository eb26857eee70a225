"""How well the latency table predicts the latency of exported files. Resumable: finished steps are read back from the folder.

    python benchmarks/latency_prediction.py --space mobile --input 3 32 32 --nets 60 --out runs/latency_prediction

Builds the whole table of the space, draws architectures stratified over the deciles of predicted latency, exports each, measures every file
twice (how often the two measurements agree is the ceiling of any prediction), and compares. Two latencies are judged: `quiet` (moments in
which the machine ran at full speed) and `p50` (whatever the machine did). Writes rows.jsonl, summary.json and scatter.png.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sartor.arch import Arch
from sartor.export.onnx import to_onnx
from sartor.export.quantize import quantize
from sartor.hardware import CostModel, OpGraph, all_ops, trace
from sartor.hardware.calibrate import Pair, fit, quality, terms
from sartor.hardware.device import host
from sartor.hardware.measure import measure_many
from sartor.hardware.table import LatencyTable
from sartor.spaces import build

POOL = 3000  # architectures among which the deciles are formed
GROUP = 10  # files whose measurements are interleaved
CALIBRATION = 40  # networks used for the correction, at most; the rest judge it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobile")
    parser.add_argument("--input", type=int, nargs=3, default=[3, 32, 32])
    parser.add_argument("--nets", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each of the two measurements of a file")
    parser.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/latency_prediction"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    net = build(options.space, tuple(options.input), 10)
    table = LatencyTable(
        options.out / f"table_{options.precision}.sqlite", host(options.precision), quantize=functools.partial(quantize, method="minmax")
    )
    factors = net.factors()
    began = time.time()
    ops = all_ops(factors, {name: len(labels) for name, labels in net.space.choices.items()})
    added = table.ensure(ops, input_shapes=[net.input_shape], progress=_say)
    build_seconds = time.time() - began
    chosen = stratified(net, CostModel(factors, table.price), options.nets, options.seed)
    rows = measure_all(net, chosen, table, options)
    figures = summary(net, rows, table, options.out)
    figures["table"] = {"entries": len(table.entries), "added": added, "seconds": build_seconds,
                        "noisy": sum(entry.noisy for entry in table.entries.values())}  # fmt: skip
    (options.out / "summary.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))


def _say(what: str, done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"{what} {done}/{total}", flush=True)


def stratified(net: Any, model: CostModel, count: int, seed: int) -> list[Arch]:
    """`count` architectures, equally many from every decile of predicted latency."""
    rng = np.random.default_rng(seed)
    pool = [net.space.sample(rng) for _ in range(POOL)]
    order = np.argsort([model(arch) for arch in pool])
    share = -(-count // 10)
    picked = [index for decile in np.array_split(order, 10) for index in rng.choice(decile, share, replace=False)]
    return [pool[index] for index in rng.permutation(picked)[:count]]


def measure_all(net: Any, archs: list[Arch], table: LatencyTable, options: argparse.Namespace) -> list[dict[str, Any]]:
    path = options.out / f"rows_{options.precision}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {json.dumps(row["arch"], sort_keys=True) for row in rows}
    todo = [arch for arch in archs if json.dumps(arch.to_json(), sort_keys=True) not in known]
    for start in range(0, len(todo), GROUP):
        group = todo[start : start + GROUP]
        files = [export(net, arch, options, number) for number, arch in enumerate(group)]
        twice = [measure_many(files, seconds=options.seconds, seed=turn) for turn in range(2)]
        with path.open("a") as file:
            for number, arch in enumerate(group):
                row = {"arch": arch.to_json(), "measured": [one[number].to_json() for one in twice]}
                rows.append(row)
                file.write(json.dumps(row) + "\n")
        print(f"measured {start + len(group)}/{len(todo)}", flush=True)
    return rows


def export(net: Any, arch: Arch, options: argparse.Namespace, number: int) -> Path:
    module = net.extract(arch).eval()
    path = to_onnx(module, net.input_shape, options.out / f"net{number}.onnx")
    if options.precision == "fp32":
        return path
    images = np.random.default_rng(0).standard_normal((16, *net.input_shape)).astype(np.float32)
    return quantize(path, images, options.out / f"net{number}_int8.onnx", method="minmax")


def summary(net: Any, rows: list[dict[str, Any]], table: LatencyTable, folder: Path) -> dict[str, Any]:
    graphs: list[OpGraph] = [trace(net.extract(Arch.from_json(row["arch"])), net.input_shape) for row in rows]
    design = np.array([terms(graph, table.price, table.session_ms) for graph in graphs])
    figures: dict[str, Any] = {"nets": len(rows), "device": str(table.identity)}
    plots = {}
    for key in ("quiet", "p50"):
        usable = [i for i, row in enumerate(rows) if all(one[key] is not None for one in row["measured"])]
        first, second = (np.array([rows[i]["measured"][turn][key] for i in usable]) for turn in range(2))
        measured, x = (first + second) / 2, design[usable]
        train = slice(0, min(CALIBRATION, len(usable) // 2))
        held = slice(train.stop, None)
        calibration = fit([Pair(row, value) for row, value in zip(x[train], measured[train], strict=True)])
        predicted = x @ np.array(list(calibration.factors.values()))
        figures[key] = {
            "usable": len(usable),
            "range_ms": [float(measured.min()), float(measured.max())],
            "ceiling: second measurement against first": asdict(quality(second, first)),
            "table alone": asdict(quality(x.sum(1), measured)),
            f"calibrated on {train.stop}, judged on the others": asdict(quality(predicted[held], measured[held])),
            "leave one out": asdict(calibration.quality) if calibration.quality else None,
            "factors": dict(calibration.factors),
        }
        plots[key] = (measured[held], predicted[held], x.sum(1)[held])
    scatter(plots, folder / "scatter.png")
    return figures


def scatter(plots: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(plots), figsize=(6 * len(plots), 5.5))
    for axis, (key, (measured, predicted, alone)) in zip(axes, plots.items(), strict=True):
        line = np.array([measured.min(), measured.max()])
        axis.fill_between(line, 0.9 * line, 1.1 * line, alpha=0.15, label="within 10 %")
        axis.loglog(measured, alone, "x", label="table alone")
        axis.loglog(measured, predicted, "o", label="calibrated")
        axis.set(xlabel=f"measured {key} (ms)", ylabel="predicted (ms)", title=f"{key}: {len(measured)} networks not used for calibration")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
