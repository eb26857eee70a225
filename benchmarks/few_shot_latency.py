"""How well few measurements tell the latency of all cells of NAS-Bench-201 on a device that was never seen. Resumable: one file of rows.

    python benchmarks/few_shot_latency.py                       the devices kept for the test
    python benchmarks/few_shot_latency.py --devices validation  the devices on which settings were chosen

The protocol is that of HELP (Lee et al. 2021, "HELP: Hardware-adaptive Efficient Latency Prediction for NAS via Meta-Learning", NeurIPS,
section 4): nine source devices, four to choose settings, six unseen ones; Spearman's rank correlation over all cells not measured. With
`--devices sources` each source device is predicted from the other eight: on these the method was designed. A draw is a random choice of
the measured cells, the same for every method; `active` chooses its own among 2,000 random ones that connect input and
output: what a compiler makes of a constant says nothing about costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.benchmarks import nasbench201
from sartor.benchmarks.tables import table
from sartor.predictors.latency.active import measure_actively
from sartor.predictors.latency.additive import fit_additive
from sartor.predictors.latency.features import Readings, cell_readings
from sartor.predictors.latency.transfer import learn_prior, pca_ridge, without_sources

Floats = NDArray[np.float64]
SOURCES = ("1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
DEVICES = {
    "sources": SOURCES,
    "validation": ("titanx_1", "titanx_32", "titanx_256", "gold_6240"),
    "test": ("titan_rtx_256", "gold_6226", "pixel2", "raspi4", "eyeriss", "fpga"),
}
PUBLISHED = {  # HELP's table 2, 10 measurements (BRP-NAS: 900)
    "HELP, 10 measurements": (0.987, 0.989, 0.802, 0.890, 0.940, 0.985),
    "BRP-NAS, 900 measurements": (0.814, 0.796, 0.666, 0.847, 0.811, 0.801),
}
SIZES = (5, 10, 20, 50, 100)
POOL = 2000  # candidates of an active choice
TARGET = 0.945

Method = Callable[[NDArray[np.int64], Floats, np.random.Generator], tuple[NDArray[np.int64], Floats]]
"""Random rows, the device's true latencies (only those of measured rows may be read), random numbers -> measured rows, predictions."""


def methods(device: str) -> dict[str, Method]:
    """What predicts `device` from the source devices (without itself)."""
    return _methods(tuple(name for name in SOURCES if name != device))


@lru_cache
def _methods(names: tuple[str, ...]) -> dict[str, Method]:
    sources = {name: table("nasbench201_latency").column(name) for name in names}
    readings = cell_readings(nasbench201.SPACE, nasbench201.cells())
    prior = learn_prior(readings, sources)
    alone = without_sources(prior, readings)

    def at(rows: NDArray[np.int64]) -> Readings:
        return {name: columns[rows] for name, columns in readings.items()}

    def transfer(rows: NDArray[np.int64], truth: Floats, _: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        return rows, fit_additive(at(rows), truth[rows], prior).predict(readings)[0]

    def no_transfer(rows: NDArray[np.int64], truth: Floats, _: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        return rows, fit_additive(at(rows), truth[rows], alone).predict(readings)[0]

    def active(rows: NDArray[np.int64], truth: Floats, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        pool = rng.choice(np.flatnonzero(nasbench201.connected()), POOL, replace=False)
        picked, _, model = measure_actively(at(pool), lambda wanted: truth[pool[wanted]], len(rows), prior, batch=max(1, len(rows) // 10))
        return pool[picked], model.predict(readings)[0]

    def components(rows: NDArray[np.int64], truth: Floats, _: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        return rows, pca_ridge(sources, rows, truth[rows])

    return {"transfer": transfer, "transfer, active choice": active, "without other devices": no_transfer, "PCA + ridge": components}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", choices=DEVICES, default="test")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("runs/few_shot_latency"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.devices}.jsonl"
    rows = read_rows(path)
    done = {(row["device"], row["measurements"], row["draw"], row["method"]) for row in rows}
    latency = table("nasbench201_latency")
    for size in sorted(options.sizes, key=lambda size: (size != 10, size)):  # the accepted figure first
        for device in DEVICES[options.devices]:
            truth = latency.column(device)
            available = methods(device)
            with path.open("a") as file:
                for draw in range(options.draws):
                    drawn = np.random.default_rng((draw, size)).choice(len(truth), size, replace=False)
                    for name, method in available.items():
                        if (device, size, draw, name) in done:
                            continue
                        measured, predicted = method(drawn, truth, np.random.default_rng((draw, size, 1)))
                        unseen = np.setdiff1d(np.arange(len(truth)), measured)
                        row = {"device": device, "measurements": size, "draw": draw, "method": name}
                        row |= judge(predicted[unseen], truth[unseen])
                        rows.append(row)
                        file.write(json.dumps(row) + "\n")
                        file.flush()
            print(f"{device}, {size} measurements: done", flush=True)
    show(rows, options)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows written so far; one that was cut short when a run was killed is dropped from the file as well."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def judge(predicted: Floats, truth: Floats) -> dict[str, float]:
    from scipy.stats import spearmanr

    return {"spearman": float(spearmanr(predicted, truth).statistic), "within_10": float((np.abs(predicted / truth - 1) <= 0.1).mean())}


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Mean Spearman over draws by device and method at ten measurements, then the curve of the mean over devices."""
    devices = DEVICES[options.devices]
    names = list(dict.fromkeys(str(row["method"]) for row in rows))

    def mean(name: str, size: int, device: str | None = None, what: str = "spearman") -> float:
        found = [r[what] for r in rows if r["method"] == name and r["measurements"] == size and device in (None, r["device"])]
        return float(np.mean(found)) if found else float("nan")

    shown = 10 if 10 in options.sizes else options.sizes[0]
    print(f"\nmean Spearman, {shown} measurements, {options.draws} draws\n| | " + " | ".join([*devices, "mean"]) + " |")
    print("|---|" + "---|" * (len(devices) + 1))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{mean(name, shown, device):.3f}" for device in [*devices, None]) + " |")
    if options.devices == "test":
        for name, values in PUBLISHED.items():
            print(f"| {name}, published | " + " | ".join(f"{value:.3f}" for value in [*values, float(np.mean(values))]) + " |")
    for what, title in (("spearman", "mean Spearman over the devices"), ("within_10", "share within 10 %, mean over the devices")):
        print(f"\n{title}\n| measurements | " + " | ".join(str(size) for size in options.sizes) + " |\n|---|" + "---|" * len(options.sizes))
        for name in names:
            print(f"| {name} | " + " | ".join(f"{mean(name, size, what=what):.3f}" for size in options.sizes) + " |")
    if options.devices == "test" and shown == 10:
        ours, baseline = mean("transfer", 10), mean("PCA + ridge", 10)
        verdict = "kept" if ours >= TARGET and ours > baseline else "missed"
        print(f"\ntransfer {ours:.4f} with 10 measurements; target {TARGET} and above PCA + ridge ({baseline:.4f}): {verdict}")


if __name__ == "__main__":
    main()
