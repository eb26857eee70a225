"""How much of a device's latency a few hundred measurements tell, and whether the intervals hold. Resumable: one file of rows.

    python benchmarks/learned_latency.py                      raspi4 and pixel3, 50, 100 and 200 measurements
    python benchmarks/learned_latency.py --devices gold_6240  another column of the table

Cells of NAS-Bench-201 that connect input and output. A split is a random choice of measured cells, the same for every method; all
others judge. `ceiling` learns from 12,000 cells. `transfer` takes its prior from HELP's source devices without the one that is judged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.benchmarks import nasbench201
from sartor.benchmarks.tables import table
from sartor.predictors.kernel import fit_kernel
from sartor.predictors.latency.active import measure_actively
from sartor.predictors.latency.additive import fit_additive, vague_prior
from sartor.predictors.latency.conformal import split
from sartor.predictors.latency.features import cell_readings, one_hot
from sartor.predictors.latency.model import fit, intervals
from sartor.predictors.latency.transfer import learn_prior

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SOURCES = ("1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
EARLIER = {"raspi4": (0.73, 0.35, 0.54), "pixel3": (0.75, 0.35, 0.54)}  # measured before: 12,000 cells, a process on 200 (both devices)
TARGET, COVERAGE = 0.60, (0.88, 0.93)
CEILING_CELLS = 12000
POOL = 2000
BASELINE = ("GP on the cell's operations", "ceiling")


class Bench:
    """The connected cells of one device."""

    def __init__(self, device: str) -> None:
        latency = table("nasbench201_latency")
        self.truth = latency.column(device)
        self.cells = np.flatnonzero(nasbench201.connected() & np.isfinite(self.truth) & (self.truth > 0))
        self.readings = cell_readings(nasbench201.SPACE, nasbench201.cells())
        self.features = one_hot(nasbench201.cells(), len(nasbench201.OPS))
        self.prior = learn_prior(self.readings, {name: latency.column(name) for name in SOURCES if name != device})

    def at(self, rows: Ints) -> dict[str, Floats]:
        return {name: columns[rows] for name, columns in self.readings.items()}

    def methods(self) -> dict[str, Callable[[Ints, Ints], tuple[Ints, Floats]]]:
        """Method: measured rows, rows to predict -> rows it measured, predictions."""

        def costs(rows: Ints, at: Ints) -> tuple[Ints, Floats]:
            return rows, fit(self.at(rows), self.truth[rows], features=self.features[rows]).predict(self.at(at), self.features[at])[0]

        def transfer(rows: Ints, at: Ints) -> tuple[Ints, Floats]:
            return rows, fit(self.at(rows), self.truth[rows], prior=self.prior).predict(self.at(at))[0]

        def active(rows: Ints, at: Ints) -> tuple[Ints, Floats]:
            pool = np.random.default_rng(int(rows[0])).choice(self.cells, POOL, replace=False)
            prior = vague_prior(self.readings)
            readings = self.at(pool)
            picked, _, model = measure_actively(readings, lambda w: self.truth[pool[w]], len(rows), prior, batch=max(5, len(rows) // 10))
            return pool[picked], model.predict(self.at(at))[0]

        def process(rows: Ints, at: Ints) -> tuple[Ints, Floats]:
            return rows, np.exp(fit_kernel("gp", self.features[rows], np.log(self.truth[rows])).predict(self.features[at])[0])

        return {"costs": costs, "costs, transfer": transfer, "costs, active choice": active, BASELINE[0]: process}

    def ceiling(self, seed: int) -> dict[str, float]:
        """What 12,000 cells teach the same model."""
        shuffled = np.random.default_rng(seed).permutation(self.cells)
        rows, at = shuffled[:CEILING_CELLS], shuffled[CEILING_CELLS:]
        return judge(fit_additive(self.at(rows), self.truth[rows]).predict(self.at(at))[0], self.truth[at])

    def cover(self, rows: Ints, at: Ints, seed: int) -> dict[str, float]:
        """Coverage of intervals of nominally 90 %, and their median width relative to the prediction."""

        def fit_predict(train: Ints, wanted: Ints) -> tuple[Floats, Floats]:
            mean, deviation = fit(self.at(train), self.truth[train]).predict(self.at(wanted))
            return np.log(mean), deviation

        found = {
            "split": split(fit_predict, rows, np.log(self.truth[rows]), at, seed=seed).exp(),
            "cv+": intervals(self.readings, rows, self.truth[rows], at),
        }
        figures = {f"coverage {name}": one.covers(self.truth[at]) for name, one in found.items()}
        return figures | {f"width {name}": float(np.median((one.high - one.low) / one.centre)) for name, one in found.items()}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows written so far; one that was cut short when a run was killed is dropped from the file as well."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def judge(predicted: Floats, truth: Floats) -> dict[str, float]:
    from scipy.stats import kendalltau

    return {"within_10": float((np.abs(predicted / truth - 1) <= 0.1).mean()), "kendall_tau": float(kendalltau(predicted, truth).statistic)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["raspi4", "pixel3"])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 100, 50])
    parser.add_argument("--out", type=Path, default=Path("runs/learned_latency"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rows.jsonl"
    rows = read_rows(path)
    done = {(row["device"], row["method"], row["measurements"], row["split"]) for row in rows}

    def add(device: str, method: str, size: int, number: int, figures: Callable[[], dict[str, float]]) -> None:
        if (device, method, size, number) not in done:
            rows.append({"device": device, "method": method, "measurements": size, "split": number, **figures()})
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")

    benches = {device: Bench(device) for device in options.devices}
    for device, bench in benches.items():
        add(device, BASELINE[1], CEILING_CELLS, 0, lambda bench=bench: bench.ceiling(0))
    for size in options.sizes:
        for device, bench in benches.items():
            for number in range(options.splits):
                drawn = np.random.default_rng((number, size)).choice(bench.cells, size, replace=False)
                unseen = np.setdiff1d(bench.cells, drawn)
                for name, method in bench.methods().items():
                    add(device, name, size, number, lambda b=bench, m=method, d=drawn: score(b, m, d))
                if size == max(options.sizes):
                    add(device, "intervals", size, number, lambda b=bench, d=drawn, u=unseen, n=number: b.cover(d, u, n))
            print(f"{device}, {size} measurements: done", flush=True)
    show(rows, options)


def score(bench: Bench, method: Callable[[Ints, Ints], tuple[Ints, Floats]], drawn: Ints) -> dict[str, float]:
    measured, predicted = method(drawn, bench.cells)
    others = ~np.isin(bench.cells, measured)
    return judge(predicted[others], bench.truth[bench.cells][others])


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    def mean(what: str, **where: Any) -> float:
        found = [row[what] for row in rows if what in row and all(row[key] == value for key, value in where.items())]
        return float(np.mean(found)) if found else float("nan")

    for device in options.devices:
        print(f"\n{device}: within 10 % (Kendall τ), mean over {options.splits} splits")
        print("| measurements | " + " | ".join(str(size) for size in options.sizes) + " |\n|---|" + "---|" * len(options.sizes))
        for name in dict.fromkeys(row["method"] for row in rows if "within_10" in row and row["method"] != BASELINE[1]):
            cells = [{"device": device, "method": name, "measurements": size} for size in options.sizes]
            print(f"| {name} | " + " | ".join(f"{mean('within_10', **c):.1%} ({mean('kendall_tau', **c):.3f})" for c in cells) + " |")
        print(f"same model on {CEILING_CELLS} cells: {mean('within_10', device=device, method=BASELINE[1]):.1%}")
        if device in EARLIER:
            most, low, high = EARLIER[device]
            print(f"measured before, other features: {most:.0%} from {CEILING_CELLS} cells; a GP on 200: {low:.0%} to {high:.0%}")
        for name in ("split", "cv+"):
            covered = mean(f"coverage {name}", device=device, method="intervals")
            kept = "kept" if COVERAGE[0] <= covered <= COVERAGE[1] else "missed"
            width = mean(f"width {name}", device=device, method="intervals")
            print(f"intervals of 90 %, {name}: cover {covered:.1%} ({kept}), median width {width:.0%} of the prediction")
        if 200 in options.sizes:
            ours = mean("within_10", device=device, method="costs", measurements=200)
            print(f"target {TARGET:.0%} within 10 % with 200 measurements: {ours:.1%}, {'kept' if ours >= TARGET else 'missed'}")


if __name__ == "__main__":
    main()
