"""Do sub-nets of a supernet keep up with the same nets trained alone? OFA and BigNAS on the mobile space with Fashion-MNIST.

    python benchmarks/supernet_against_alone.py --epochs 30 [--methods bignas ofa] [--classes 5] [--data fashion-mnist]

A supernet is trained by each recipe; from each of `classes` bands of multiply-accumulates (equal on a logarithmic scale) the sub-net
nearest to the middle of the band is evaluated as it is (calibrated batch normalisation only), and the same net is then trained from scratch
on as many images as the supernet saw in total. Reported: both validation accuracies, their difference (target: within one point), and
whether the sub-nets' accuracy rises with the bands. Each result is a file in benchmarks/results, from which a call elsewhere goes on;
checkpoints of unfinished trainings lie in --out. A net trained alone counts with the better of its trained and calibrated statistics.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "supernet-against-alone"


def size_classes(net: Any, count: int, seed: int = 0) -> list[Any]:
    """One architecture for each band of multiply-accumulates, from small to large."""
    rng = np.random.default_rng(seed)
    pool = list(dict.fromkeys([net.smallest, net.largest, *(net.space.sample(rng) for _ in range(3000))]))
    macs = np.log([net.costs(arch)["macs"] for arch in pool])
    edges = np.linspace(macs.min(), macs.max(), count + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    return [pool[int(np.abs(macs - middle).argmin())] for middle in middles]


def setting(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Data, its augmentation, and an untrained supernet, the same every time."""
    import torch

    from sartor.data import default_policy, load
    from sartor.spaces import build

    data = load(options.data, seed=0, limit=options.images)
    torch.manual_seed(0)
    return data, default_policy(data), build(options.space, data.input_shape, len(data.classes))


def supernet(method: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one supernet and evaluate a sub-net of every size class."""
    from sartor.evaluators.supernet import SupernetEvaluator
    from sartor.recipes.sandwich import train_sandwich
    from sartor.recipes.shrinking import train_shrinking

    data, augment, net = setting(options)
    common = {"epochs": options.epochs, "batch": options.batch, "augment": augment, "checkpoint": folder / f"{method}.safetensors"}
    result: Any = train_sandwich(net, data, drop_path=0.2, **common) if method == "bignas" else train_shrinking(net, data, **common)
    evaluate = SupernetEvaluator(net, data, images=None)
    rows = [{"arch": dict(arch), **evaluate(arch)} for arch in size_classes(net, options.classes)]
    return {"method": method, "steps": result.steps, "seconds": result.seconds, "nets": rows}


def alone(number: int, steps: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train the net of one size class from scratch."""
    from sartor.evaluators.supernet import SupernetEvaluator
    from sartor.recipes.doctor import reset
    from sartor.recipes.evaluate import validation_accuracy
    from sartor.recipes.train import train

    data, augment, net = setting(options)
    module = reset(net.extract(size_classes(net, options.classes)[number]), seed=number)
    train(
        module,
        data,
        steps=steps,
        batch=options.batch,
        augment=augment,
        validate=False,
        checkpoint=folder / f"alone-{number}-{steps}.safetensors",
    )
    as_trained = validation_accuracy(module, data.validation)["accuracy"]
    calibrated = SupernetEvaluator(net, data, images=None).evaluate_module(module)
    return {"steps": steps, **calibrated, "calibrated": calibrated["accuracy"], "accuracy": max(as_trained, calibrated["accuracy"])}


def kept(path: Path, make: Any) -> dict[str, Any]:
    """The content of a file that is made where it does not exist."""
    if not path.is_file():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/supernet-against-alone"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished parts (default: in benchmarks/results)")
    parser.add_argument("--methods", nargs="+", default=["bignas", "ofa"], choices=("bignas", "ofa"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--space", default="mobile")
    parser.add_argument("--images", type=int)
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=5)
    options = parser.parse_args()
    setting = f"{Path(options.data).stem}-{options.space}-{options.epochs:g}-{options.images or 'all'}-{options.classes}"
    folder, unfinished = options.results / setting, options.out / setting
    for place in (folder, unfinished):
        place.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        trained = kept(folder / f"{method}.json", lambda method=method: supernet(method, options, unfinished))
        print(f"{method}: {trained['steps']} steps, {trained['seconds']:.0f} s", flush=True)
        gaps, shared = [], [net["accuracy"] for net in trained["nets"]]
        for number, net in enumerate(trained["nets"]):
            steps = trained["steps"]
            own = kept(
                folder / f"alone-{number}-{steps}.json", lambda number=number, steps=steps: alone(number, steps, options, unfinished)
            )
            gaps.append(own["accuracy"] - net["accuracy"])
            print(
                f"  {net['macs'] / 1e6:8.2f} M  shared {net['accuracy']:.4f}  alone {own['accuracy']:.4f}  gap {gaps[-1]:+.4f}", flush=True
            )
        rises = all(a <= b for a, b in pairwise(shared))
        print(
            f"  within one point: {sum(gap <= 0.01 for gap in gaps)} of {len(gaps)}; rises with size: {'yes' if rises else 'no'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
