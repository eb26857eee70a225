"""What a sandwich step costs beside its sampled nets run as plain modules, and what channels_last gains.

For each step the largest, the smallest and two random sub-nets run forward and backward: inside the supernet, and as the plain networks
extracted from it, in train mode on the same batch, in alternating order. The target is a ratio of at most 1.15. Times are processor times
(one thread), so that another process on the core does not count.

    python benchmarks/supernet_step.py --space mobile --input 1 28 28 --batch 96 --steps 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.arch import Arch
from sartor.spaces import build


def seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def forward_backward(module: nn.Module, x: Tensor, y: Tensor, arch: Arch | None) -> Callable[[], None]:
    """One training step's computation without the optimiser; `arch` None for a plain module."""

    def work() -> None:
        logits = module(x) if arch is None else module(x, arch)
        F.cross_entropy(logits, y).backward()

    return work


def step_times(
    net: nn.Module, archs: list[Arch], x: Tensor, y: Tensor, memory_format: torch.memory_format, first: int
) -> tuple[float, float]:
    """(supernet, plain) seconds of one step over `archs`, measured net by net; side `first` goes first."""
    net.to(memory_format=memory_format)  # type: ignore[call-overload]
    images = x.contiguous(memory_format=memory_format)
    totals = [0.0, 0.0]
    for arch in archs:
        plain = net.extract(arch).train().to(memory_format=memory_format)  # type: ignore[operator,call-overload]
        pair = (forward_backward(net, images, y, arch), forward_backward(plain, images, y, None))
        for side in (first, 1 - first):
            totals[side] += seconds(pair[side])
    return totals[0], totals[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobile")
    parser.add_argument("--input", type=int, nargs=3, default=(1, 28, 28), metavar=("C", "H", "W"))
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    net = build(arguments.space, tuple(arguments.input), 10).train()
    rng = np.random.default_rng(0)
    x, y = torch.randn(arguments.batch, *arguments.input), torch.arange(arguments.batch) % 10
    layouts = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in layouts}
    for step in range(arguments.steps + 1):
        archs = [net.largest, net.smallest, net.space.sample(rng), net.space.sample(rng)]
        for name, layout in layouts.items():
            measured = step_times(net, archs, x, y, layout, step % 2)
            if step:  # the first one fills caches
                times[name].append(measured)
        net.zero_grad()
    for name, rows in times.items():
        supernet, plain = (statistics.median(side) for side in zip(*rows, strict=True))
        ratio = statistics.median(a / b for a, b in rows)
        print(
            f"{name:14} supernet {supernet * 1e3:6.0f} ms  plain {plain * 1e3:6.0f} ms  ratio {supernet / plain:.3f} (by step {ratio:.3f})"
        )
    gain = statistics.median(b[0] / a[0] for a, b in zip(times["channels_last"], times["NCHW"], strict=True))
    print(f"channels_last is {gain:.2f} x as fast as NCHW (supernet steps)")


if __name__ == "__main__":
    main()
