"""How well the op-level predictor prices convolutions that it never saw, from 200 measured ones.

    python benchmarks/learned_ops.py FILE.csv.gz --batch 32 --precision fp32

FILE holds measured convolutions, one a row: `conv` (regular or depthwise), `batch in_ch in_hw out_ch kernel stride fused`, and `fp32_ms`,
`fp16_ms` or `int8_ms` (empty where not measured), such as the V100 profile of lightweight-neural-architecture-search (alibaba, commit
8ccaf88). Rows fused with a following operation are left out. Beside the model stand a power law of the same features (least squares on the
logarithms) and boosted trees on them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np

from sartor.hardware.calibrate import quality
from sartor.hardware.graph import Op
from sartor.predictors.ensemble import fit_boosting
from sartor.predictors.latency.features import Floats
from sartor.predictors.latency.ops import fit_ops, op_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--measured", type=int, default=200)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    ops, latency = read(options.file, options.batch, options.precision)
    print(f"{len(ops)} convolutions, batch {options.batch}, {options.precision}, {latency.min():.4f} to {latency.max():.2f} ms")
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.splits):
        shuffled = np.random.default_rng(number).permutation(len(ops))
        train, new = shuffled[: options.measured], shuffled[options.measured :][:2000]
        for name, predicted in predictions([ops[i] for i in train], latency[train], [ops[i] for i in new]).items():
            figures = quality(predicted, latency[new])
            found.setdefault(name, []).append((figures.within, figures.tau))
    print(
        f"\n{options.measured} measured, 2,000 others judged, mean of {options.splits} splits\n| | within 10 % | Kendall τ |\n|---|---|---|"
    )
    for name, pairs in found.items():
        within, tau = np.mean(pairs, axis=0)
        print(f"| {name} | {within:.1%} | {tau:.3f} |")


def predictions(measured: list[Op], latency_ms: Floats, new: list[Op]) -> dict[str, Floats]:
    def columns(ops: list[Op]) -> Floats:
        depthwise = np.array([[op.groups > 1] for op in ops], dtype=float)
        features = op_features(ops)
        return np.hstack([np.ones((len(ops), 1)), features, depthwise, depthwise * features])

    x, y, at = columns(measured), np.log(latency_ms), columns(new)
    return {
        "line and process": fit_ops(measured, latency_ms).op_latency(new)[0],
        "power law": np.exp(at @ np.linalg.lstsq(x, y, rcond=None)[0]),
        "boosted trees": np.exp(fit_boosting(x, y, seed=0).predict(at)[0]),
    }


def read(path: Path, batch: int, precision: str) -> tuple[list[Op], Floats]:
    ops, latency = [], []
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["batch"]) != batch or row["fused"] != "0" or not row[f"{precision}_ms"]:
                continue
            channels, size, out, stride = (int(row[name]) for name in ("in_ch", "in_hw", "out_ch", "stride"))
            groups = channels if row["conv"] == "depthwise" else 1
            shape = (out, -(-size // stride), -(-size // stride))
            ops.append(Op("conv", (channels, size, size), shape, kernel=int(row["kernel"]), stride=stride, groups=groups))
            latency.append(float(row[f"{precision}_ms"]))
    return ops, np.array(latency)


if __name__ == "__main__":
    main()
