"""Activation memory of one step against the number of candidates on an edge: DARTS, GDAS, ProxylessNAS.

A chain of mixed edges, each with 2 to 8 identical candidates (separable 3x3 convolutions), runs one architecture step and one weight
step of each method on one batch. Counted are the bytes of all tensors that autograd keeps for the backward pass, each storage once, weights
left out. DARTS keeps every candidate, GDAS the one it drew, ProxylessNAS two in the architecture step and one in the weight step. The
last lines have the DARTS search network with all its candidates, in sartor's form and in the textbook's.

    python benchmarks/memory_of_methods.py --out memory.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.extract import Net
from sartor.layers import Chain, ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, OneOf
from sartor.layers.choice import AnyArch
from sartor.policies import Gumbel, Policy, Softmax
from sartor.policies.two_path import TwoPath
from sartor.spaces.darts import DartsNet

METHODS: dict[str, Callable[[Any], Policy]] = {
    "DARTS": lambda space: Softmax(space),
    "GDAS": lambda space: Gumbel(space, temperature=(10.0, 0.1), linear=True, hard=True),
    "ProxylessNAS": lambda space: TwoPath(space),
}


class Edges(Net):
    """A chain of mixed edges of identical candidates between a stem and a classifier."""

    def __init__(self, candidates: int, *, channels: int = 16, edges: int = 6, size: int = 32) -> None:
        super().__init__((3, size, size), 10)

        def candidate() -> Chain:
            depthwise = ElasticConv2d(channels, channels, 3, depthwise=True)
            return Chain(nn.ReLU(), depthwise, ElasticConv2d(channels, channels, 1), ElasticBatchNorm2d(channels))

        self.stem = Chain(ElasticConv2d(3, channels, 3), ElasticBatchNorm2d(channels))
        self.edges = nn.ModuleList(OneOf(f"edge{i}", {f"c{j}": candidate() for j in range(candidates)}) for i in range(edges))
        self.classifier = ElasticLinear(channels, 10)

    def forward(self, x: Tensor, arch: AnyArch) -> Tensor:  # type: ignore[override]  # Net passes drop_path to those that take it
        x = self.stem(x, arch)
        for edge in self.edges:
            x = edge(x, arch)
        out: Tensor = self.classifier(x.mean((2, 3)), arch)
        return out


def kept_bytes(net: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the storages that autograd keeps for the backward pass of ``forward()``, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    loss.backward()  # only now may storages be freed and their addresses be used again
    return sum(found.values())


def steps(net: Net, policy: Policy, batch: int) -> tuple[int, int]:
    """(architecture step, weight step) of one batch, bytes."""
    x = torch.randn(batch, *net.input_shape).contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch) % net.classes
    generator = torch.Generator().manual_seed(0)
    architecture = kept_bytes(net, lambda: F.cross_entropy(net(x, policy.sample(generator)), y))
    weights = kept_bytes(net, lambda: F.cross_entropy(net(x, policy.sample_weights(generator)), y))
    return architecture, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, help="picture of the curves")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    counts = (2, 3, 4, 6, 8)
    rows: dict[str, list[tuple[int, int]]] = {}
    for name, make in METHODS.items():
        nets = [Edges(count) for count in counts]
        rows[name] = [steps(net, make(net.space), arguments.batch) for net in nets]
        print(f"{name:14}" + "  ".join(f"{n}: {a / 1e6:6.1f} / {w / 1e6:6.1f} MB" for n, (a, w) in zip(counts, rows[name], strict=True)))
        growth = [rows[name][-1][i] / rows[name][0][i] for i in (0, 1)]
        print(f"{'':14}from 2 to 8 candidates: architecture step x {growth[0]:.2f}, weight step x {growth[1]:.2f}")
    for fast in (True, False):
        torch.manual_seed(0)
        net = DartsNet((3, 32, 32), 10, fast=fast)
        kept = steps(net, Softmax(net.relaxed), 4)[0]
        print(f"DARTS search network, {'sartor' if fast else 'textbook'}: {kept / 4e6:.0f} MB a picture")
    if arguments.out:
        draw(counts, rows, arguments.out)


def draw(counts: tuple[int, ...], rows: dict[str, list[tuple[int, int]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for name, values in rows.items():
        axis.plot(counts, [a / 1e6 for a, _ in values], marker="o", label=f"{name}, architecture step")
    axis.set(xlabel="candidates on an edge", ylabel="kept for the backward pass, MB", ylim=(0, None))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
