"""Is a limit given to a gradient method a limit? Twenty latency targets over the attainable range of NAS-Bench-201, four methods.

    python benchmarks/latency_targets.py table       the loss is the tabulated error: minutes in all
    python benchmarks/latency_targets.py supernet    the loss is that of a shared-weight network on CIFAR-10: hours; --seconds a search
    python benchmarks/latency_targets.py supernet --warm 1200 --seconds 40 --images 20000      the same from weights that are trained once

Latencies are the published ones of a device, a table over all six edges, so that the expected latency in the loss is exact. With `table`
the loss of a sampled mixture is the multilinear extension of the tabulated validation error after 12 epochs, and the same error chooses
among what is drawn from the learned strengths, so that validation errors are good by construction (`--fill-anyway`: it does not choose).
Reported, whatever the loss: the tabulated latency of the derived cell against its target, and its tabulated errors (validation after 12
epochs, which is the loss of `table`, and test after 200) against those of random cells within the target. The command goes on where it
stopped when given again.

With `--warm SECONDS` all searches of a `supernet` begin with the same weights, trained once on single paths, equally many of every band of
the latencies, on the half of the training images that these searches train weights on. They differ from their papers in that: the
architecture parameters move at `--rate` from the first step, SGD begins at 0.025 for all, DrNAS runs all channels and keeps three of five
candidates in its second half. `limited` chooses by half of the validation images; errors on the other half, with the weights of the search,
are told of its choice and of random cells, and the tabulated ones of the most probable cell, which would have been taken without choosing.
Of the tables, latencies and whether a cell is connected take part in these searches, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

METHODS = ("darts", "gdas", "drnas", "proxylessnas")
RIVALS = 200  # random cells within the target
SHARED = 20  # of them, with the weights of a search


def tables(device: str) -> dict[str, np.ndarray]:
    """Latency ms, validation error (12 epochs), test error (200 epochs) and connectedness of every cell, `(5, 5, 5, 5, 5, 5)` by option."""
    from sartor.benchmarks import nasbench201, table

    cells, accuracy = nasbench201.cells(), table("nasbench201")
    latency, connected = table("nasbench201_latency").column(device), nasbench201.connected()
    found = {}
    for name, values in {
        "latency_ms": np.where(np.isfinite(latency), latency, 0.0),
        "validation_error": 1 - accuracy.column("cifar10_val_12") / 100,
        "test_error": 1 - accuracy.column("cifar10_test_200") / 100,
        "connected": connected.astype(float),
    }.items():
        found[name] = np.zeros([5] * 6)
        found[name][tuple(cells.T)] = values
    return found


def on_table(
    method: str, known: dict[str, np.ndarray], target: float, *, steps: int, seed: int, fill_anyway: bool = False
) -> dict[str, Any]:
    """A search whose loss is the tabulated error of the sampled mixture; the architecture derived within the target."""
    import torch

    from sartor.benchmarks.nasbench201 import CHOICES, SPACE
    from sartor.methods.derivation import Derivation
    from sartor.policies import Dirichlet, Gumbel, Policy, Softmax
    from sartor.policies.two_path import TwoPath
    from sartor.recipes.cost_term import Cost, Target

    makers: dict[str, Callable[[], Policy]] = {
        "darts": lambda: Softmax(SPACE, seed=seed),
        "gdas": lambda: Gumbel(SPACE, hard=True, linear=True, temperature=(10.0, 0.1), seed=seed),
        "drnas": lambda: Dirichlet(SPACE, seed=seed),
        "proxylessnas": lambda: TwoPath(SPACE, seed=seed),
    }
    policy = makers[method]()
    error = Cost.of_table(CHOICES, known["validation_error"], name="error")
    term = Target(Cost.of_table(CHOICES, known["latency_ms"], name="latency_ms", unit="ms"), target)
    betas = (0.0, 0.999) if method == "proxylessnas" else (0.5, 0.999)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.03, betas=betas)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimiser.zero_grad()
        # Errors are a tenth of a cross-entropy's size: the factor gives the loss the scale that the target's control is made for.
        loss = 10.0 * error(policy.sample(generator, fraction=step / steps))
        term(loss, policy.expected()).backward()
        optimiser.step()
        policy.updated()
        term.update(policy.expected())
    mask = known["connected"]
    derive = Derivation(SPACE, term.cost, target, accept=lambda arch: bool(mask[tuple(arch[c] for c in CHOICES)]))
    strengths = policy.strengths()
    if fill_anyway:
        arch = derive(strengths)
    else:
        arch, _ = derive.best(strengths, lambda arch: float(known["validation_error"][tuple(arch[c] for c in CHOICES)]))
    return {"arch": dict(arch), "multiplier": float(term.multiplier), "expected_ms": float(term.cost(strengths))}


def on_supernet(method: str, known: dict[str, np.ndarray], target: float, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A search with shared weights on CIFAR-10, and what the network that it trained says of the derived cell and of random ones."""
    import torch

    from sartor.benchmarks.nasbench201 import CHOICES
    from sartor.data import load
    from sartor.methods import METHODS as known_methods
    from sartor.methods import limited
    from sartor.methods.derivation import Derivation
    from sartor.methods.parts import fixed_norms
    from sartor.recipes.cost_term import Cost
    from sartor.spaces.nasbench201 import NasBench201

    torch.manual_seed(options.seed)
    data = load(options.data, seed=0, limit=options.images, size=16)
    net: Any = NasBench201(data.input_shape, len(data.classes), channels=8, cells=1)
    cost = Cost.of_table(CHOICES, known["latency_ms"], name="latency_ms", unit="ms")
    half = len(data.validation) // 2  # `limited` chooses by the first half, the other says what that is worth
    seen, unseen = data.validation.subset(np.arange(half)), data.validation.subset(np.arange(half, len(data.validation)))
    common: dict[str, Any] = {"seconds": options.seconds, "batch": 64, "seed": options.seed}
    if options.warm:
        net = fixed_norms(net)
        start(net, data, cost, options, folder)
        common.update(trained_start(method, options.rate))

    def accept(arch: Any) -> bool:
        return bool(known["connected"][tuple(arch[c] for c in CHOICES)])

    images = SimpleNamespace(train=data.train, validation=seen)
    result = limited(known_methods[method], net, images, cost=cost, target=target, accept=accept, **common)
    strengths = result.policy.strengths()
    plain = Derivation(net.space, cost, target, accept=accept)(strengths)
    judged = shared_errors(result.net, SimpleNamespace(train=data.train, validation=unseen), result.arch, known, target, options.seed)
    return {
        "arch": dict(result.arch), "plain": dict(plain), "steps": result.steps, "expected_ms": float(cost(strengths)),
        "certainty": float(np.mean([max(row.values()) for row in strengths.values() if isinstance(row, dict)])), **judged,
    }  # fmt: skip


def start(net: Any, data: Any, cost: Any, options: argparse.Namespace, folder: Path) -> None:
    """The weights that all searches begin with: of single paths, equally many of every band of latency, on the images of the weights.

    Trained once; the checkpoint is what later searches read.
    """
    from sartor.data import default_policy
    from sartor.recipes.bilevel import divide
    from sartor.recipes.sampler import stratified_sampler
    from sartor.recipes.single_path import single, train_single_path

    paths = single(stratified_sampler(net.space, lambda arch: float(cost(arch))))
    images = SimpleNamespace(train=divide(data.train, 0.5, options.seed)[0], validation=data.validation)
    train_single_path(
        net, images, seconds=options.warm, seed=options.seed, paths=paths, checkpoint=folder / f"start-{options.seed}.safetensors",
        augment=replace(default_policy(data), cutout=0),
    )  # fmt: skip


def trained_start(method: str, rate: float) -> dict[str, Any]:
    """Settings for trained weights: nothing rests, all channels run, and the architecture moves faster."""
    from sartor.methods.parts import WEIGHTS, Adam

    betas = (0.0, 0.999) if method == "proxylessnas" else (0.5, 0.999)
    decay = 1e-3 if method in ("darts", "gdas") else 0.0
    own: dict[str, Any] = {"k": (1, 1), "candidates": (1.0, 0.6)} if method == "drnas" else {}
    rests = {"weights_only": 0.0} if method in ("drnas", "proxylessnas") else {}
    return {**own, **rests, "weights": WEIGHTS, "architecture": Adam(lr=rate, betas=betas, weight_decay=decay)}


def shared_errors(net: Any, data: Any, arch: Any, known: dict[str, np.ndarray], target: float, seed: int) -> dict[str, float]:
    """Errors with the weights of the search on images that took no part in it: of `arch`, and the mean of random ones."""
    from sartor.benchmarks.nasbench201 import CHOICES
    from sartor.errors import UserError
    from sartor.evaluators.supernet import SupernetEvaluator

    try:
        evaluate = SupernetEvaluator(net, data, images=None)
        own = 1.0 - evaluate(arch)["accuracy"]
    except UserError:  # of a network that has no sub-nets
        return {"shared_error": float("nan"), "random_shared": float("nan")}
    inside = np.argwhere((known["connected"] > 0) & (known["latency_ms"] <= target))
    drawn = np.random.default_rng(seed).choice(len(inside), size=min(SHARED, len(inside)), replace=False)
    errors = [1.0 - evaluate(dict(zip(CHOICES, map(int, inside[i]), strict=True)))["accuracy"] for i in drawn]
    return {"shared_error": own, "random_shared": float(np.mean(errors))}


def judge(rows: list[dict[str, Any]]) -> list[str]:
    """What the derived networks came to, for each method, beside the targets."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        kept = sum(row["latency_ms"] <= row["target_ms"] for row in own)
        used = sum(row["latency_ms"] >= 0.85 * row["target_ms"] for row in own)
        loss = sum(row["loss"] < row["random_loss"] for row in own)
        better = sum(row["test_error"] < row["random_mean"] for row in own)
        chance = np.mean([row["random_better"] for row in own])
        lines.append(
            f"{method}: {len(own)} targets; within {kept}; at least 0.85 of it {used}; below the mean random cell within the target by"
            f" validation error {loss}, by test error {better}; random cells within the target with a lower test error: {chance:.1%}"
        )
        if all("shared_error" in row for row in own):
            shared = sum(row["shared_error"] < row["random_shared"] for row in own)
            plain = sum(row["plain_loss"] < row["random_loss"] for row in own), sum(row["plain_test"] < row["random_mean"] for row in own)
            lines.append(
                f"{'':{len(method)}s}  with the weights of the search, on other images: {shared}; the most probable cell that fills the"
                f" target, were it taken as it is: by validation error {plain[0]}, by test error {plain[1]}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loss", choices=("table", "supernet"))
    parser.add_argument("--out", default="runs/latency-targets")
    parser.add_argument("--device", default="raspi4")
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument(
        "--fill-anyway", action="store_true", help="on the table: the most probable cell that fills a target, without choosing by the loss"
    )
    parser.add_argument("--steps", type=int, default=400, help="of a search on the table")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a search with shared weights")
    parser.add_argument("--warm", type=float, default=0.0, help="seconds to train, once, the weights that all searches begin with")
    parser.add_argument("--rate", type=float, default=0.01, help="of the architecture parameters from such weights")
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10, for a search with shared weights")
    parser.add_argument("--data", default="cifar10", help="CIFAR-10, by name or as a file, for a search with shared weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm = f"-warm{options.warm:g}s-{options.rate:g}" if options.warm else ""
    length = options.steps if options.loss == "table" else f"{Path(options.data).stem}-{options.seconds:g}s-{options.images}{warm}"
    folder = Path(options.out) / f"{options.loss}-{options.device}-{length}"
    folder.mkdir(parents=True, exist_ok=True)
    known = tables(options.device)
    connected = known["connected"] > 0
    latencies = known["latency_ms"][connected]
    targets = np.geomspace(1.05 * latencies.min(), latencies.max(), options.targets)
    rows = []
    for number, target in enumerate(float(t) for t in targets):
        for method in options.methods:
            path = folder / f"{method}-{options.targets}-{number:02d}-{options.seed}{'-filled' * options.fill_anyway}.json"
            if not path.is_file():
                row = one(method, known, target, options, path)
                temporary = path.with_suffix(".tmp")
                temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
                os.replace(temporary, path)
            rows.append(json.loads(path.read_text(encoding="utf-8")))
            r = rows[-1]
            print(f"{method:14s} target {r['target_ms']:8.3f} ms  found {r['latency_ms']:8.3f} ms  error {r['test_error']:.4f}"
                  f"  random {r['random_mean']:.4f}", flush=True)  # fmt: skip
    print("\n".join(judge(rows)))


def one(method: str, known: dict[str, np.ndarray], target: float, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """One search, and random cells within its target."""
    from sartor.benchmarks.nasbench201 import CHOICES

    if options.loss == "table":
        found = on_table(method, known, target, steps=options.steps, seed=options.seed, fill_anyway=options.fill_anyway)
    else:
        found = on_supernet(method, known, target, options, path.parent)
    at, plain = (tuple(found[key][c] for c in CHOICES) if key in found else None for key in ("arch", "plain"))
    if plain is not None:
        found.update(plain_loss=float(known["validation_error"][plain]), plain_test=float(known["test_error"][plain]))
    inside = np.flatnonzero(((known["connected"] > 0) & (known["latency_ms"] <= target)).ravel())
    rivals = np.random.default_rng(options.seed).choice(inside, size=RIVALS)
    errors, losses = known["test_error"].ravel()[rivals], known["validation_error"].ravel()[rivals]
    return {
        "method": method, "target_ms": target, "latency_ms": float(known["latency_ms"][at]), "test_error": float(known["test_error"][at]),
        "loss": float(known["validation_error"][at]), "random_loss": float(losses.mean()), "random_mean": float(errors.mean()),
        "random_better": float((errors < known["test_error"][at]).mean()), "within_target": len(inside), **found,
    }  # fmt: skip


if __name__ == "__main__":
    main()
