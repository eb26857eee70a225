"""Is a limit given to a gradient method a limit? Twenty latency targets over the attainable range of NAS-Bench-201, four methods.

    python benchmarks/latency_targets.py table       the loss is the tabulated error: minutes in all
    python benchmarks/latency_targets.py supernet    the loss is that of a shared-weight network on CIFAR-10: hours; --seconds a search

Latencies are the published ones of a device, a table over all six edges, so that the expected latency in the loss is exact. With `table`
the loss of a sampled mixture is the multilinear extension of the tabulated validation error after 12 epochs; by the same error a network
that fills its target is compared with the most probable one within it and 16 random ones (`--fill-anyway`: it is not). Reported, whatever
the loss: the tabulated latency of the derived cell against its target, and its tabulated errors (validation after 12 epochs, which is the
loss of `table`, and test after 200) against those of random cells within the target. The command goes on where it stopped when given again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("darts", "gdas", "drnas", "proxylessnas")
RIVALS = 200  # random cells within the target


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


def on_table(method: str, known: dict[str, np.ndarray], target: float, *, steps: int, seed: int, fill_anyway: bool = False) -> Any:
    """A search whose loss is the tabulated error of the sampled mixture; the architecture derived within the target."""
    import torch

    from sartor.benchmarks.nasbench201 import CHOICES, SPACE
    from sartor.methods.limits import derivation_within
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
    derive = derivation_within(
        SPACE, term.cost, target, accept=lambda arch: bool(mask[tuple(arch[c] for c in CHOICES)]),
        loss=None if fill_anyway else lambda arch: float(known["validation_error"][tuple(arch[c] for c in CHOICES)]),
    )  # fmt: skip
    return derive(policy.strengths()), float(term.multiplier), float(term.cost(policy.strengths()))


def on_supernet(method: str, known: dict[str, np.ndarray], target: float, options: argparse.Namespace, seed: int, folder: Path) -> Any:
    """A search with shared weights on CIFAR-10."""
    import torch

    from sartor.benchmarks.nasbench201 import CHOICES
    from sartor.data import load
    from sartor.methods import METHODS as known_methods
    from sartor.methods import limited
    from sartor.recipes.cost_term import Cost
    from sartor.spaces.nasbench201 import NasBench201

    torch.manual_seed(seed)
    data = load(options.data, seed=0, limit=options.images, size=16)
    net = NasBench201(data.input_shape, len(data.classes), channels=8, cells=1)
    cost = Cost.of_table(CHOICES, known["latency_ms"], name="latency_ms", unit="ms")
    mask = known["connected"]
    result = limited(
        known_methods[method], net, data, cost=cost, target=target, seconds=options.seconds, batch=64, seed=seed,
        accept=lambda arch: bool(mask[tuple(arch[c] for c in CHOICES)]),
    )  # fmt: skip
    return result.arch, float("nan"), float(cost(result.policy.strengths()))


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
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loss", choices=("table", "supernet"))
    parser.add_argument("--out", default="runs/latency-targets")
    parser.add_argument("--device", default="raspi4")
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--fill-anyway", action="store_true", help="on the table: whatever the network that fills a target is like")
    parser.add_argument("--steps", type=int, default=400, help="of a search on the table")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a search with shared weights")
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10, for a search with shared weights")
    parser.add_argument("--data", default="cifar10", help="CIFAR-10, by name or as a file, for a search with shared weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    length = options.steps if options.loss == "table" else f"{options.seconds:g}s-{options.images}"
    folder = Path(options.out) / f"{options.loss}-{options.device}-{length}"
    folder.mkdir(parents=True, exist_ok=True)
    known = tables(options.device)
    connected = known["connected"] > 0
    latencies = known["latency_ms"][connected]
    targets = np.geomspace(1.05 * latencies.min(), latencies.max(), options.targets)
    rows = []
    for method in options.methods:
        for number, target in enumerate(float(t) for t in targets):
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
        arch, multiplier, expected = on_table(
            method, known, target, steps=options.steps, seed=options.seed, fill_anyway=options.fill_anyway
        )
    else:
        arch, multiplier, expected = on_supernet(method, known, target, options, options.seed, path.parent)
    at = tuple(arch[c] for c in CHOICES)
    inside = np.flatnonzero(((known["connected"] > 0) & (known["latency_ms"] <= target)).ravel())
    rivals = np.random.default_rng(options.seed).choice(inside, size=RIVALS)
    errors, losses = known["test_error"].ravel()[rivals], known["validation_error"].ravel()[rivals]
    return {
        "method": method, "target_ms": target, "latency_ms": float(known["latency_ms"][at]), "test_error": float(known["test_error"][at]),
        "loss": float(known["validation_error"][at]), "random_loss": float(losses.mean()), "random_mean": float(errors.mean()),
        "random_better": float((errors < known["test_error"][at]).mean()),
        "expected_ms": expected, "multiplier": multiplier, "arch": dict(arch), "within_target": len(inside),
    }  # fmt: skip


if __name__ == "__main__":
    main()
