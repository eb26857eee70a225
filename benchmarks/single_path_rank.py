"""How well shared weights rank the cells of NAS-Bench-201: Spearman's rho against the tabulated test accuracy, with its interval.

    python benchmarks/single_path_rank.py --seconds 600 [--cells 200] [--recipes uniform stratified sandwich fair best] [--seeds 3]

A reduced supernet (8 channels, one cell a stage) on CIFAR-10 pictures of 16x16 is trained by each recipe; then the same cells are evaluated
with calibrated batch normalisation. Parameter count alone is the bar: its rho on the same cells stands beside, and the difference with its
bootstrap interval, over all cells and among those above 90 %. Each recipe and seed is a file in benchmarks/results, from which a call
elsewhere goes on; checkpoints of unfinished ones lie in --out. Two run at a time, each in a process of its own with one thread.

The recipes: `uniform`, one uniform path a step (SPOS); `stratified`, one path, equally many of every band of parameters; `sandwich`,
largest, smallest (all skip connections) and two random nets with in-place distillation (BigNAS); `fair`, five paths that run
every operation of every edge once (FairNAS);
`best`, fair paths and the average of the weights over the training. No setting was chosen on the table. `alone` shares nothing: every cell
is trained by itself, in the same small network, for an equal part of --seconds; it says what is the network's fault and not the sharing's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "single-path-rank"
RECIPES = ("uniform", "stratified", "sandwich", "fair", "best")
ALONE = "alone"


def cells(count: int, seed: int = 0) -> list[int]:
    """Benchmark indices of distinct connected cells, the same for every recipe."""
    from sartor.benchmarks import nasbench201

    connected = np.flatnonzero(nasbench201.connected())
    return sorted(np.random.default_rng(seed).choice(connected, size=count, replace=False).tolist())


def trained(recipe: str, net: Any, data: Any, *, seconds: float, seed: int, checkpoint: Path) -> int:
    """Train the supernet; returns the number of steps."""
    from sartor.data import default_policy
    from sartor.recipes.sampler import stratified_sampler
    from sartor.recipes.sandwich import train_sandwich
    from sartor.recipes.single_path import WEIGHTS, fair_paths, single, train_single_path

    common: dict[str, Any] = {"seconds": seconds, "seed": seed, "checkpoint": checkpoint}
    common["augment"] = replace(default_policy(data), cutout=0)  # crop and flip, as the papers do
    if recipe == "sandwich":
        # Operations have names, no sizes: left to itself the rule would draw its extremes at random.
        smallest = net.space.from_labels(dict.fromkeys(net.space.choices, "skip_connect"))
        net.extremes = lambda rng: (net.largest, smallest)
        return train_sandwich(net, data, **common).steps
    paths = {
        "uniform": lambda: None,
        "stratified": lambda: single(stratified_sampler(net.space, lambda arch: net.costs(arch)["params"])),
        "fair": lambda: fair_paths(net.space),
        "best": lambda: fair_paths(net.space),
    }[recipe]()
    weights = replace(WEIGHTS, ema=0.999) if recipe == "best" else WEIGHTS
    return train_single_path(net, data, paths=paths, weights=weights, **common).steps


def one(recipe: str, seed: int, options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Train one supernet and evaluate all cells."""
    import torch

    from sartor.benchmarks import nasbench201
    from sartor.data import load
    from sartor.evaluators.supernet import SupernetEvaluator
    from sartor.spaces.nasbench201 import NasBench201

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = load(options.data, seed=0, limit=options.images, size=options.size)
    net = NasBench201(data.input_shape, len(data.classes), channels=options.channels, cells=options.stage_cells)
    picked = cells(options.cells)
    if recipe == ALONE:
        steps, accuracies = by_themselves(net, data, picked, seconds=options.seconds / len(picked), seed=seed, kept=checkpoint)
        return {"recipe": recipe, "seed": seed, "steps": steps, "seconds": options.seconds, "cells": picked, "shared": accuracies}
    steps = trained(recipe, net, data, seconds=options.seconds, seed=seed, checkpoint=checkpoint)
    evaluate = SupernetEvaluator(net, data, images=None)
    shared = [evaluate(nasbench201.arch_of(index))["accuracy"] for index in picked]
    return {"recipe": recipe, "seed": seed, "steps": steps, "seconds": options.seconds, "cells": picked, "shared": shared}


def by_themselves(net: Any, data: Any, picked: list[int], *, seconds: float, seed: int, kept: Path) -> tuple[int, list[float]]:
    """Steps of all, and each cell's accuracy after training alone; what is done is kept beside the checkpoints."""
    from sartor.benchmarks import nasbench201
    from sartor.data import default_policy
    from sartor.recipes.doctor import reset
    from sartor.recipes.train import train

    kept = kept.with_suffix(".json")
    done: list[list[float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    policy = replace(default_policy(data), cutout=0)
    for index in picked[len(done) :]:
        module = reset(net.extract(nasbench201.arch_of(index)), seed=seed)
        result = train(module, data, seconds=seconds, augment=policy, seed=seed)
        done.append([result.steps, result.accuracy])
        kept.with_suffix(".tmp").write_text(json.dumps(done), encoding="utf-8")
        os.replace(kept.with_suffix(".tmp"), kept)
        print(f"{len(done)} of {len(picked)} cells", flush=True)
    return int(sum(steps for steps, _ in done)), [accuracy for _, accuracy in done]


def judge(row: dict[str, Any]) -> str:
    """Rank correlations of one supernet, and of parameters, with intervals."""
    from scipy.stats import rankdata

    from sartor.benchmarks import table
    from sartor.recipes.faithfulness import rank_correlation

    index = np.array(row["cells"])
    truth, params = (table("nasbench201").column(f"cifar10_{name}")[index] for name in ("test_200", "params"))
    shared = np.array(row["shared"])
    text = [f"{row['recipe']:10s} seed {row['seed']} ({row['steps']} steps)"]
    for name, mask in (("all", np.ones(len(index), dtype=bool)), ("above 90 %", truth > 90)):
        if mask.sum() < 5:
            continue
        found = rank_correlation(shared[mask], truth[mask])
        bar = rank_correlation(params[mask], truth[mask]).spearman
        low, high = difference(shared[mask], params[mask], truth[mask])
        both = rank_correlation(rankdata(shared[mask]) + rankdata(params[mask]), truth[mask]).spearman
        text.append(
            f"{name} ({mask.sum()}): rho {found.spearman.value:.3f} [{found.spearman.low:.3f}, {found.spearman.high:.3f}],"
            f" tau {found.kendall_tau.value:.3f}; parameters {bar.value:.3f}; difference [{low:+.3f}, {high:+.3f}];"
            f" mean rank of the two {both.value:.3f}"
        )
    return "\n   ".join(text)


def difference(shared: np.ndarray, params: np.ndarray, truth: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of rho(shared) - rho(parameters) over cells."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        i = rng.integers(len(truth), size=len(truth))
        draws.append(float(spearmanr(shared[i], truth[i]).statistic) - float(spearmanr(params[i], truth[i]).statistic))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def bars(count: int) -> str:
    """What parameters alone and the benchmark's own trainings of 12 epochs come to on the same cells: full networks, each by itself."""
    from scipy.stats import spearmanr

    from sartor.benchmarks import table

    index, known = np.array(cells(count)), table("nasbench201")
    truth = known.column("cifar10_test_200")[index]
    text = []
    for name, column in (
        ("parameters", "cifar10_params"),
        ("12 epochs of each cell's full network, validation", "cifar10_val_12"),
        ("the same, test", "cifar10_test_12"),
    ):
        values = known.column(column)[index]
        rhos = [float(spearmanr(values[mask], truth[mask]).statistic) for mask in (truth > 0, truth > 90)]
        text.append(f"   {name}: rho {rhos[0]:.3f}, above 90 % {rhos[1]:.3f}")
    return "\n".join(["To compare with:", *text])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/single-path-rank"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished runs (default: in benchmarks/results)")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=(*RECIPES, ALONE))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each training")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--stage-cells", type=int, default=1, help="cells a stage; the benchmark's networks have five")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each in a process of its own with one thread")
    parser.add_argument("--report", action="store_true", help="only print what is there")
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = f"{options.images}-{options.size}-{options.channels}-{options.stage_cells}"
    setting = f"{Path(options.data).stem}-{options.seconds:g}s-{size}-{options.cells}"
    folder = options.results / setting
    folder.mkdir(parents=True, exist_ok=True)
    (options.out / setting).mkdir(parents=True, exist_ok=True)
    if options.one:
        name = f"{options.one[0]}-{options.one[1]}"
        row = one(options.one[0], int(options.one[1]), options, options.out / setting / f"{name}.safetensors")
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(row) + "\n", encoding="utf-8")
        os.replace(temporary, folder / f"{name}.json")
        return

    def finished(run: tuple[int, str]) -> bool:
        seed, recipe = run
        if not options.report and not (folder / f"{recipe}-{seed}.json").is_file():
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", recipe, str(seed)])
        return (folder / f"{recipe}-{seed}.json").is_file()

    runs = [(seed, recipe) for seed in range(options.seeds) for recipe in options.recipes]
    with ThreadPoolExecutor(options.jobs) as pool:
        for (seed, recipe), done in zip(runs, pool.map(finished, runs), strict=True):
            text = judge(json.loads((folder / f"{recipe}-{seed}.json").read_text(encoding="utf-8"))) if done else "not there"
            print(text if done else f"{recipe} seed {seed}: {text}", flush=True)
    print(bars(options.cells))


if __name__ == "__main__":
    main()
