"""Rooflines of shipped devices against published measurements: Kendall's tau, from the device file alone and with 10 measurements.

    python benchmarks/roofline_calibration.py --out runs/roofline_calibration

NAS-Bench-201 cells (CIFAR-10 network), sampled; the columns come with the package. For each device: tau of FLOPs, of the uncalibrated
roofline, of the roofline calibrated on 10 cells drawn at random (mean and standard deviation over the draws) and on 10 chosen D-optimally.
No measured cell is judged. Resumable: a device whose figures are in summary.json is not worked out again. One core, about two minutes.

What the host's own roofline reaches on measured mobile nets is in `benchmarks/runtimes_prediction.py`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from sartor.benchmarks import nasbench201, table
from sartor.hardware import OpGraph
from sartor.hardware.calibrate import quality
from sartor.hardware.devices import find
from sartor.hardware.roofline import MOST_NETWORKS, Roofline, Workload
from sartor.spaces import build


@dataclass(frozen=True)
class Column:
    """A published column and the device file that stands for it."""

    device: str
    precision: str
    table: str
    column: str
    threads: int = 1


COLUMNS = (
    Column("raspberry-pi-4", "fp32", "nasbench201_latency", "raspi4"),
    Column("pixel-3", "fp32", "nasbench201_latency", "pixel3"),
    Column("eyeriss", "int16", "nasbench201_latency", "eyeriss"),
    Column("edge-tpu", "int8", "nasbench201_latency_1999", "latbench_edgetpu"),
    Column("edge-tpu", "int8", "nasbench201_latency_1999", "hwnb_edgetpu"),
    Column("jetson-nano", "fp32", "nasbench201_latency_1999", "latbench_jetson_nano_fp32"),
    Column("jetson-nano", "fp16", "nasbench201_latency_1999", "latbench_jetson_nano_fp16"),
    Column("hexagon-685", "int8", "nasbench201_latency_1999", "latbench_snapdragon855_hexagon690_dsp"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help="cells that judge")
    parser.add_argument("--draws", type=int, default=20, help="random choices of 10 cells to calibrate on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/roofline_calibration"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "summary.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    net = build("nasbench201", (3, 32, 32), 10)
    graphs: dict[int, OpGraph] = {}
    for entry in COLUMNS:
        name = f"{entry.device} {entry.precision}: {entry.column}"
        if name not in figures:
            figures[name] = one_column(entry, net, graphs, options)
            path.write_text(json.dumps(figures, indent=1))
        print(name, json.dumps(figures[name]), flush=True)


def one_column(entry: Column, net: Any, graphs: dict[int, OpGraph], options: argparse.Namespace) -> dict[str, Any]:
    found = table(entry.table)
    latency = found.column(entry.column)
    index = found.column("index").astype(int) if "index" in found.columns else np.arange(found.rows)
    rng = np.random.default_rng(options.seed)
    # Cells whose output does not depend on the input are no networks.
    usable = np.flatnonzero(np.isfinite(latency) & (latency > 0) & nasbench201.connected()[index])
    rows = rng.choice(usable, min(options.cells + 100, len(usable)), replace=False)
    for row in rows:
        graphs.setdefault(int(index[row]), net.graph(nasbench201.arch_of(int(index[row]))))
    nets, measured = [graphs[int(index[row])] for row in rows], latency[rows]
    model = Roofline.of(find(entry.device), entry.precision, entry.threads)
    pool, judges = np.arange(100), np.arange(100, len(rows))
    held, truth = [nets[i] for i in judges], measured[judges]
    workloads = [Workload.of(model, graph) for graph in held]

    def judged(fitted: Roofline) -> tuple[float, float]:
        figures = quality(np.array([one.us(fitted.parameters.vector()) / 1e3 for one in workloads]), truth)
        return figures.tau, figures.within

    def calibrated(some: Any) -> Roofline:
        return model.calibrate([(nets[i], float(measured[i])) for i in some], leave_one_out=False)

    chosen = model.choose([nets[i] for i in pool], MOST_NETWORKS)
    draws = [rng.choice(pool, MOST_NETWORKS, replace=False) for _ in range(options.draws)]
    random = np.array([judged(calibrated(draw)) for draw in draws])
    best = judged(calibrated(chosen))
    flops = float(kendalltau([graph.macs for graph in held], truth).statistic)
    plain = judged(model)
    return {
        "judged": len(held),
        "tau FLOPs": flops,
        "tau uncalibrated": plain[0],
        "tau with 10 at random": [float(random[:, 0].mean()), float(random[:, 0].std())],
        "tau with 10 chosen": best[0],
        "within 10 %": {"uncalibrated": plain[1], "10 at random": float(random[:, 1].mean()), "10 chosen": best[1]},
        "better than FLOPs": bool(plain[0] > flops),
    }


if __name__ == "__main__":
    main()
