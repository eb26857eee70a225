"""Do sub-nets of a supernet keep up with the same nets trained alone? OFA and BigNAS on the mobile space with Fashion-MNIST.

    python benchmarks/supernet_against_alone.py --epochs 30 [--methods bignas ofa] [--classes 5] [--arithmetic bf16]

The space is the mobile one with the papers' blocks: inverted residuals throughout and a first stride of 2 (`--kinds` leaves it as it is).
A supernet is trained by each recipe; from each of `classes` bands of multiply-accumulates (equal on a logarithmic scale) the sub-net
nearest to the middle of the band is evaluated as it is (calibrated batch normalisation only), and the same net is then trained from scratch
on as many images as the supernet saw in total. Reported: both validation accuracies, their difference (target: within one point), and
whether the sub-nets' accuracy rises with the bands. Each result is a file in benchmarks/results, from which a call elsewhere goes on;
checkpoints of unfinished trainings lie in --out. A net trained alone counts with the better of its trained and calibrated statistics.

The recipes: `bignas`, the sandwich rule with in-place distillation, residual blocks that start as the identity, and the paper's exponential
decay to a constant rate; `identity`, the same under a cosine; `sandwich`, a cosine and blocks that start as they come; `unclipped`, this
with the sum of the nets' gradients as it is; `warm`, this after a third of the budget for the largest net alone; `stratified`, `identity`
with random nets from every band of multiply-accumulates equally often; `six`, `identity` with six random nets a step, not two; `ofa`,
progressive shrinking; `ofa-paper`, with the relative learning rates that its paper has for 590 epochs. Stochastic depth is left out
(`--drop-path`): the papers train for hundreds of epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "supernet-against-alone"
SANDWICHES: dict[str, dict[str, Any]] = {
    "bignas": {"zero_residuals": True, "schedule": "exponential", "floor": 0.05},
    "identity": {"zero_residuals": True},
    "sandwich": {},
    "unclipped": {"clip_norm": None},
    "warm": {"largest_only": 1 / 3},
    "stratified": {"zero_residuals": True},
    "six": {"zero_residuals": True, "random_nets": 6},
}
METHODS = (*SANDWICHES, "ofa", "ofa-paper")


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
    from dataclasses import replace

    import torch

    from sartor.data import default_policy, load
    from sartor.spaces.mobile import MobileNet
    from sartor.spaces.small import mobile

    data = load(options.data, seed=0, limit=options.images)
    spec = mobile(data.input_shape[1])
    if not options.kinds:
        spec = replace(spec, stem_strides=(2,), stages=tuple(replace(stage, kinds=("mbconv",)) for stage in spec.stages))
    if options.fixed_se:
        spec = replace(spec, stages=tuple(replace(stage, ses=stage.ses[-1:]) for stage in spec.stages))
    torch.manual_seed(0)
    return data, default_policy(data), MobileNet(spec, data.input_shape, len(data.classes))


def supernet(method: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one supernet and evaluate a sub-net of every size class."""
    from sartor.evaluators.supernet import SupernetEvaluator
    from sartor.recipes.sampler import stratified_sampler
    from sartor.recipes.sandwich import train_sandwich
    from sartor.recipes.shrinking import stages, train_shrinking

    data, augment, net = setting(options)
    common = {
        "epochs": options.epochs, "batch": options.batch, "augment": augment, "arithmetic": options.arithmetic,
        "checkpoint": folder / f"{method}.safetensors",
    }  # fmt: skip
    if method in SANDWICHES:
        ends = (net.costs(net.smallest)["macs"], net.costs(net.largest)["macs"])
        draw = stratified_sampler(net.space, lambda arch: net.costs(arch)["macs"], range_=ends) if method == "stratified" else None
        result: Any = train_sandwich(net, data, drop_path=options.drop_path, sampler=draw, **SANDWICHES[method], **common)
    else:
        result = train_shrinking(net, data, plan=stages(net.space) if method == "ofa-paper" else None, **common)
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
        arithmetic=options.arithmetic,
        validate=False,
        checkpoint=folder / f"alone-{number}.safetensors",
    )
    as_trained = validation_accuracy(module, data.validation)["accuracy"]
    calibrated = SupernetEvaluator(net, data, images=None).evaluate_module(module)
    return {"steps": steps, **calibrated, "calibrated": calibrated["accuracy"], "accuracy": max(as_trained, calibrated["accuracy"])}


def made(part: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One part: a supernet by its recipe's name, or a net trained alone by its number."""
    import torch

    from sartor.recipes.loop import steps_per_epoch

    torch.set_num_threads(1)
    if part in METHODS:
        return supernet(part, options, folder)
    steps = round(options.epochs * steps_per_epoch(setting(options)[0].train, options.batch))
    return alone(int(part.removeprefix("alone-")), steps, options, folder)


def report(method: str, folder: Path, classes: int) -> str:
    """Shared and own accuracies of one recipe's sub-nets."""
    trained = read(folder / f"{method}.json")
    lines, gaps, shared = [f"{method}: {trained['steps']} steps, {trained['seconds']:.0f} s"], [], [n["accuracy"] for n in trained["nets"]]
    for number, net in enumerate(trained["nets"]):
        own = read(folder / f"alone-{number}.json")
        assert own["steps"] == trained["steps"], "a net alone must have seen as many images as the supernet"
        gaps.append(own["accuracy"] - net["accuracy"])
        lines.append(f"  {net['macs'] / 1e6:8.2f} M  shared {net['accuracy']:.4f}  alone {own['accuracy']:.4f}  gap {gaps[-1]:+.4f}")
    rises = "yes" if all(a <= b for a, b in pairwise(shared)) else "no"
    return "\n".join([*lines, f"  within one point: {sum(gap <= 0.01 for gap in gaps)} of {classes}; rises with size: {rises}"])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/supernet-against-alone"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished parts (default: in benchmarks/results)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--kinds", action="store_true", help="the whole mobile space, with kinds of block and first strides")
    parser.add_argument(
        "--fixed-se", action="store_true", help="squeeze and excitation wherever it is offered, as in the papers, no choice"
    )
    parser.add_argument("--drop-path", type=float, default=0.0, help="final rate of stochastic depth, for the largest net of a sandwich")
    parser.add_argument("--images", type=int)
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--arithmetic", default="fp32", choices=("fp32", "bf16"), help="of all trainings")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each in a process of its own with one thread")
    parser.add_argument("--one", metavar="PART", help=argparse.SUPPRESS)
    options = parser.parse_args()
    named = f"{Path(options.data).stem}-{options.epochs:g}-{options.images or 'all'}-{options.batch}-{options.classes}-{options.arithmetic}"
    named += f"{'-kinds' * options.kinds}{'-se' * options.fixed_se}{f'-drop{options.drop_path:g}' if options.drop_path else ''}"
    folder, unfinished = options.results / named, options.out / named
    for place in (folder, unfinished):
        place.mkdir(parents=True, exist_ok=True)
    if options.one:
        temporary = folder / f"{options.one}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(made(options.one, options, unfinished), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / f"{options.one}.json")
        return

    def finished(part: str) -> bool:
        if not (folder / f"{part}.json").is_file():
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", part])
        return (folder / f"{part}.json").is_file()

    parts = [*options.methods, *(f"alone-{number}" for number in reversed(range(options.classes)))]  # the longest first
    with ThreadPoolExecutor(options.jobs) as pool:
        missing = [part for part, there in zip(parts, pool.map(finished, parts), strict=True) if not there]
    if missing:
        sys.exit(f"These ended with an error, and are tried again when the command is given again: {', '.join(missing)}")
    for method in options.methods:
        print(report(method, folder, options.classes))


if __name__ == "__main__":
    main()
