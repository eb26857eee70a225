"""Every weight-sharing method on NAS-Bench-201: the tabulated test accuracy of the cell that it finds on CIFAR-10, its time and memory.

    python benchmarks/differentiable_nb201.py [--methods darts gdas ...] [--seconds 240] [--seeds 3]    # hours; goes on where it stopped
    python benchmarks/differentiable_nb201.py --report                                                   # the table of what is there

The search network is reduced, so that a method takes minutes: 8 channels, one cell a stage, CIFAR-10 pictures of 16x16, 10,000 of them,
equally many of each class, cropped and mirrored. All that a method learns from or selects by is taken of these. Settings are the papers'
(batch size, learning rates, shares of warm-up, temperatures); the budget replaces their epochs. None was chosen on the table. Every cell
of the benchmark may be derived, those with `none` too, as is its custom; fair-darts alone knows no `none`. Beside the methods stand:

    random-n     n cells drawn at random, each trained alone on nine tenths of the images for 1/n of the time; the best on the last tenth
    one random cell, its mean over the benchmark, and the cell with most parameters

Each run is a process of its own with one thread, `--jobs` at a time; its memory is what it adds to the resident set of a process that has
loaded the data. Finished runs are kept in benchmarks/results, one file each, from which a call elsewhere goes on; checkpoints of unfinished
ones lie in --out. Seconds are those of the clock: how much of them the processor worked is told beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

FAMILY = (
    "darts", "darts-2nd", "p-darts", "pc-darts", "fair-darts", "darts-plus", "robust-darts", "snas", "gdas", "drnas",
    "proxylessnas", "proxylessnas-reinforce", "fbnet", "enas", "spos",
)  # fmt: skip
RANDOM = "random-n"
CELLS_ALONE = 8
RESULTS = Path(__file__).resolve().parent / "results" / "differentiable-nb201"
SKIP = 1  # index of skip_connect among the benchmark's operations


def settings_of(name: str) -> dict[str, Any]:
    """What a method is given beside the benchmark's common settings, where its paper's own for this space or scale are others."""
    from dataclasses import replace

    from sartor.recipes.alternation import Adam
    from sartor.recipes.bilevel import WEIGHTS
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.enas import PolicyGradient

    if name == "drnas":  # the authors' settings for this benchmark
        return {
            "k": (4, 2), "candidates": (1.0, 0.6), "weights_only": 0.2, "weights": replace(WEIGHTS),
            "architecture": Adam(weight_decay=0.0),
        }  # fmt: skip
    if name == "fbnet":  # the others are not pressed for a cost, and the table judges accuracy: its loss is the cross-entropy
        return {"cost": Cost("nothing", [], constant=1.0), "a": 1.0, "b": 0.0}
    if name == "enas":  # 300 rewards after 350 steps of the weights, in epochs of 70
        return {"learning": PolicyGradient(steps=6)}
    return {}


def subset(options: argparse.Namespace, *, divide: bool) -> Any:
    """The data with a stratified part of its training images; divided, a tenth of them becomes the validation images. No test images."""
    from sartor.data import Dataset, load

    data = load(options.data, seed=0, size=options.size)
    per_class = options.images // len(data.classes)
    rng = np.random.default_rng(0)
    picked = [rng.permutation(np.flatnonzero(data.train.labels == c))[:per_class] for c in range(len(data.classes))]
    at = round(0.9 * per_class) if divide else per_class
    train = data.train.subset(np.sort(np.concatenate([rows[:at] for rows in picked])))
    held = data.train.subset(np.sort(np.concatenate([rows[at:] for rows in picked]))) if divide else data.validation
    return Dataset(data.name, train, held, held, data.classes, data.mean, data.std)


def network(data: Any, options: argparse.Namespace, seed: int, cells: int = 1) -> Any:
    import torch

    from sartor.spaces.nasbench201 import NasBench201

    torch.manual_seed(seed)
    return NasBench201(data.input_shape, len(data.classes), channels=options.channels, cells=cells)


def one(name: str, seed: int, options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Run one method in this process; everything that the report needs."""
    from dataclasses import replace

    import torch

    from sartor.benchmarks import nasbench201
    from sartor.data import default_policy
    from sartor.hardware.device import host

    torch.set_num_threads(options.threads)
    data = subset(options, divide=name in (RANDOM, "spos"))
    net, resumed = network(data, options, seed), any(checkpoint.parent.glob(f"{name}-{seed}*"))
    begun, before = time.perf_counter(), forget_peak()
    common: dict[str, Any] = {"seconds": options.seconds, "seed": seed, "augment": replace(default_policy(data), cutout=0)}
    if name == RANDOM:
        arch, extra = alone(net, data, common)
    else:
        arch, extra = searched(name, net, data, options, {**common, "checkpoint": checkpoint})
    found = {"method": name, "seed": seed, "cell": nasbench201.to_string(arch), "index": nasbench201.index_of(arch)}
    used: dict[str, float] = {"cpu_seconds": time.process_time(), "wall_seconds": time.perf_counter() - begun}
    if before is not None:
        used["added_bytes"] = memory("VmHWM") - before
    # What an interrupted run had needed and used before is not known any more.
    return {**found, "cpu": host("fp32", options.threads).cpu, **({} if resumed else used), **extra}


def forget_peak() -> int | None:
    """Begin a new peak of the resident set; its size now in bytes, or None where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return memory("VmRSS")
    except OSError:
        return None


def memory(field: str) -> int:
    """A size of this process in bytes, as Linux tells it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def searched(name: str, net: Any, data: Any, options: argparse.Namespace, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from sartor.benchmarks import nasbench201
    from sartor.methods import METHODS
    from sartor.recipes.doctor import diagnose

    if name == "p-darts":
        settings["deepen"] = lambda stage: network(data, options, settings["seed"], cells=stage + 1)
    result = METHODS[name](net, data, **settings, **settings_of(name))
    trajectory = getattr(result, "trajectory", ())
    extra = {
        "steps": result.steps,
        "seconds": result.seconds,
        "stopped": getattr(result, "stopped", None),
        "notes": list(result.notes),
        "epochs": [nasbench201.to_string(s.arch) for s in trajectory],
        "doctor": [str(finding) for finding in diagnose(trajectory, net.space)] if trajectory else [],
    }
    return result.arch, extra


def alone(net: Any, data: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Random search with real trainings: the best of some cells on the validation images."""
    import torch

    from sartor.benchmarks import nasbench201
    from sartor.recipes.train import train

    rng = np.random.default_rng([common["seed"], 1])
    picked = rng.choice(len(nasbench201.cells()), size=CELLS_ALONE, replace=False)
    seconds, found = common["seconds"] / CELLS_ALONE, []
    for number, index in enumerate(picked):
        arch = nasbench201.arch_of(int(index))
        torch.manual_seed(common["seed"] + number)
        module = type(net)(net.input_shape, net.classes, channels=net.stem.steps[0].outputs.max, cells=1).extract(arch)
        result = train(module, data, **{**common, "seconds": seconds})
        found.append((result.accuracy, arch))
    best = max(found, key=lambda pair: pair[0])
    tried = [[nasbench201.to_string(a), accuracy] for accuracy, a in found]
    return best[1], {"seconds": common["seconds"], "tried": tried, "epochs": [], "doctor": [], "notes": [], "stopped": None}


# -- the report -------------------------------------------------------------------------------------------------------------------


def report(folder: Path) -> str:
    """A table of all results, and the references, in Markdown."""
    from sartor.benchmarks import nasbench201, table

    test = table("nasbench201").column("cifar10_test_200")
    params = table("nasbench201").column("cifar10_params")
    connected = nasbench201.connected()
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        rows.setdefault(row["method"], []).append(row)
    lines = [
        "| method | runs | test accuracy %, mean ± sd (each) | steps | seconds (at work) | MiB added | skips | doctor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(rows, key=lambda name: -float(np.mean([test[r["index"]] for r in rows[name]])))
    for name in order:
        found = rows[name]
        values = np.array([test[r["index"]] for r in found])
        deviation = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        each = ", ".join(f"{v:.2f}" for v in values)
        kinds = sorted({d.split(" ", 1)[0] for r in found for d in r["doctor"]})
        lines.append(
            f"| {name} | {len(found)} | {values.mean():.2f}{deviation} ({each}) | {mean(found, 'steps')} "
            f"| {mean(found, 'seconds')} ({mean(found, 'cpu_seconds')}) | {mean(found, 'added_bytes', 2**20)} | "
            f"{', '.join(str(r['cell'].count('skip_connect')) for r in found)} | {', '.join(kinds) or '–'} |"
        )
    most = int(np.argmax(np.where(connected, params, -1)))
    lines += [
        f"| one random cell | – | {test.mean():.2f} ± {test.std():.2f} (connected: {test[connected].mean():.2f}) | – | 0 | – | – | – |",
        f"| most parameters | – | {test[most]:.2f} | – | 0 | – | {int((nasbench201.cells()[most] == SKIP).sum())} | – |",
        f"| best of the benchmark | – | {test.max():.2f} | – | – | – | – | – |",
    ]
    return "\n".join(lines)


def mean(rows: list[dict[str, Any]], key: str, unit: float = 1.0) -> str:
    """Of the runs that know it, in units."""
    known = [row[key] / unit for row in rows if key in row]
    return f"{np.mean(known):.0f}" if known else "–"


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def started(name: str, seed: int, folder: Path) -> int:
    """The exit code of a search in a process of its own, unless it is finished already."""
    if (folder / f"{name}-{seed}.json").is_file():
        return 0
    print(f"{name}, seed {seed}", flush=True)
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", name, str(seed)]).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/differentiable-nb201"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished runs (default: in benchmarks/results)")
    parser.add_argument("--methods", nargs="+", default=[RANDOM, *FAMILY], choices=[RANDOM, *FAMILY])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240.0, help="of each search")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000, help="training images, equally many of each class")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of each search")
    parser.add_argument("--jobs", type=int, default=2, help="searches at a time, each in a process of its own")
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = f"{Path(options.data).stem}-{options.seconds:g}s-{options.images}-{options.size}-{options.channels}-{options.threads}t"
    folder = options.results / setting
    folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        name, seed = options.one[0], int(options.one[1])
        checkpoint = options.out / setting / f"{name}-{seed}.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write(folder / f"{name}-{seed}.json", json.dumps(one(name, seed, options, checkpoint)) + "\n")
        return
    if not options.report:
        with ThreadPoolExecutor(options.jobs) as pool:
            wanted = [(name, seed) for seed in range(options.seeds) for name in options.methods]
            failed = [run for run, ended in zip(wanted, pool.map(lambda run: started(*run, folder), wanted), strict=True) if ended]
        if failed:
            sys.exit(f"These ended with an error, and are tried again when the command is given again: {failed}")
    print(report(folder))


if __name__ == "__main__":
    main()
