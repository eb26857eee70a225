"""One first-order DARTS step (architecture and weights) of three programs on this machine: time, memory, share of the GEMM rate.

The network is the search network of DARTS: 16 channels, 8 cells, batches of 64 pictures of 32x32, fp32. Compared are sartor's, a plain
textbook implementation (below; in both memory layouts), and NNI 3.0's, each in a process of its own, in turn. A step is what the
paper's algorithm 1 does with xi = 0: the gradient of the validation loss in the architecture parameters and a step of Adam, then the
gradient of the training loss in the weights, clipped at 5, and a step of SGD. Before anything is timed, a small textbook network is given
sartor's weights and must give the same logits and the same gradients in double precision.

Times are processor times of one thread, so that another process on the core does not count as work; memory is what the steps add to the
resident set of the process at its peak. The GEMM rate is that of a 1024x1024 fp32 product, measured in the same processes.

    python benchmarks/mixed_operation.py                              # sartor and the textbook
    python benchmarks/mixed_operation.py --install-nni /tmp/nni       # makes an environment with NNI 3.0, and compares with it too
    python benchmarks/mixed_operation.py --nni /tmp/nni/bin/python    # with an environment that is there
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: What NNI 3.0 needs, at versions that it runs with.
NNI = ("nni==3.0", "typeguard==4.1.2", "pytorch-lightning==2.1.4", "torchmetrics==1.4.0", "setuptools<81", "torch>=2.6,<2.14")
PRIMITIVES = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


# -- the textbook ---------------------------------------------------------------------------------------------------------------


class Reduce(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.conv_2 = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


def relu_conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=False))


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


def operation(name: str, c: int, stride: int) -> nn.Module:
    def depthwise(kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(c, c, kernel, stride, dilation * (kernel // 2), dilation, groups=c, bias=False)
        return [nn.ReLU(), conv, nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)]

    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else Reduce(c, c)
    if name.endswith("pool_3x3"):
        pool = nn.MaxPool2d(3, stride, 1) if name.startswith("max") else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(c, affine=False))
    kernel = int(name[-1])
    if name.startswith("dil"):
        return nn.Sequential(*depthwise(kernel, stride, 2))
    return nn.Sequential(*depthwise(kernel, stride), *depthwise(kernel, 1))


class MixedOperation(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self.options = nn.ModuleList(operation(name, c, stride) for name in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * option(x) for w, option in zip(weights, self.options, strict=True))  # type: ignore[return-value]


class Cell(nn.Module):
    def __init__(self, before: int, previous: int, c: int, reduction: bool, after_reduction: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = Reduce(before, c) if after_reduction else relu_conv_norm(before, c)
        self.preprocess1 = relu_conv_norm(previous, c)
        self.edges = nn.ModuleList(MixedOperation(c, 2 if reduction and s < 2 else 1) for target in range(2, 6) for s in range(target))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        start = 0
        for _ in range(4):
            edges = list(zip(states, self.edges[start : start + len(states)], weights[start : start + len(states)], strict=True))
            start += len(states)
            states.append(sum(edge(x, row) for x, edge, row in edges))  # type: ignore[arg-type]
        return torch.cat(states[2:], 1)


class Textbook(nn.Module):
    def __init__(self, channels: int, cells: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels))
        self.cells = nn.ModuleList()
        before = previous = 3 * channels
        after_reduction = False
        for number in range(cells):
            reduction = number in (cells // 3, 2 * cells // 3)
            channels = 2 * channels if reduction else channels
            self.cells.append(Cell(before, previous, channels, reduction, after_reduction))
            before, previous, after_reduction = previous, 4 * channels, reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous, classes)
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(14, len(PRIMITIVES))) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, torch.softmax(self.alphas[int(cell.reduction)], 1))  # type: ignore[arg-type]
        return self.classifier(torch.flatten(self.pool(s1), 1))


# -- the sides ------------------------------------------------------------------------------------------------------------------

Logits = Callable[[Tensor], Tensor]


def sartors(channels: int, cells: int) -> tuple[nn.Module, Logits, list[nn.Parameter], list[nn.Parameter]]:
    """(network, its logits under the current architecture parameters, weights, architecture parameters)."""
    from sartor.policies import Softmax
    from sartor.spaces.darts import DartsNet

    net = DartsNet((3, 32, 32), 10, channels=channels, cells=cells)
    policy = Softmax(net.relaxed, derive=net.derive)
    return net, lambda x: net(x, policy.sample()), list(net.parameters()), [policy.alpha]


def textbooks(channels: int, cells: int) -> tuple[nn.Module, Logits, list[nn.Parameter], list[nn.Parameter]]:
    net = Textbook(channels, cells)
    alphas = list(net.alphas)
    return net, net, [p for name, p in net.named_parameters() if not name.startswith("alphas")], alphas


def nnis(channels: int, cells: int) -> tuple[nn.Module, Logits, list[nn.Parameter], list[nn.Parameter]]:
    from nni.nas.hub.pytorch import DARTS as Space
    from nni.nas.strategy import DARTS as Strategy

    net = Strategy().mutate_model(Space(width=channels, num_cells=cells, dataset="cifar"))
    alphas = list({id(p): p for m in net.modules() if hasattr(m, "arch_parameters") for p in m.arch_parameters()}.values())
    known = {id(p) for p in alphas}
    return net, net, [p for p in net.parameters() if id(p) not in known], alphas


SIDES: dict[str, tuple[Callable[[int, int], Any], bool]] = {
    "sartor": (sartors, True),
    "textbook": (textbooks, False),
    "textbook, channels_last": (textbooks, True),
    "NNI 3.0": (nnis, False),
    "NNI 3.0, channels_last": (nnis, True),
}


def one_step(
    logits: Logits, weights: list[nn.Parameter], alphas: list[nn.Parameter], sgd: Any, adam: Any, own: bool
) -> Callable[..., None]:
    """`own`: sartor's recipe asks for the gradient of the architecture parameters alone; the others compute all and use a part."""

    def step(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> None:
        adam.zero_grad()
        if own:
            from sartor.recipes.hypergradient import frozen

            with frozen(weights):
                gradients = torch.autograd.grad(F.cross_entropy(logits(validation[0]), validation[1]), alphas)
            for alpha, gradient in zip(alphas, gradients, strict=True):
                alpha.grad = gradient
        else:
            F.cross_entropy(logits(validation[0]), validation[1]).backward()
        adam.step()
        sgd.zero_grad()
        if own:
            for alpha in alphas:  # as Policy.sample_weights
                alpha.requires_grad_(False)
        F.cross_entropy(logits(train[0]), train[1]).backward()
        for alpha in alphas:
            alpha.requires_grad_(True)
        nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()

    return step


def gemm_rate() -> float:
    """fp32 operations per second of processor time of a product of two 1024x1024 matrices."""
    a = torch.randn(1024, 1024)
    best = 1e9
    for _ in range(5):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best


def run_side(name: str, channels: int, cells: int, batch: int, threads: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, channels_last = SIDES[name]
    net, logits, weights, alphas = make(channels, cells)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net.train().to(memory_format=layout)
    sgd = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    step = one_step(logits, weights, alphas, sgd, adam, own=name == "sartor")

    def draw(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 3, 32, 32).contiguous(memory_format=layout), torch.randint(0, 10, (count,))

    pairs = [(draw(batch), draw(batch)) for _ in range(steps + 1)]
    before = _peak(reset=True)
    step(*pairs.pop())  # the first step at a size prepares the libraries for it; afterwards its memory stays with the process
    cpu, wall = [], []
    for train, validation in pairs:
        start, clock = time.process_time(), time.perf_counter()
        step(train, validation)
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
    return {"side": name, "cpu_s": cpu, "wall_s": wall, "peak_bytes": _peak() - before, "gemm": gemm_rate(), "torch": torch.__version__}


def _peak(*, reset: bool = False) -> int:
    """Peak resident bytes of this process; with `reset` the peak starts anew from what is resident now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


# -- the comparison -------------------------------------------------------------------------------------------------------------


def agreement(channels: int, cells: int) -> tuple[float, float]:
    """Largest relative difference of logits, and of any gradient, between sartor and the textbook with the same weights."""
    torch.manual_seed(0)
    ours, logits, _, (alpha,) = sartors(channels, cells)
    plain = Textbook(channels, cells)
    theirs = [p for name, p in plain.named_parameters() if not name.startswith("alphas")]
    named = dict(ours.named_parameters())
    ordered = [named.pop("stem.weight"), named.pop("stem_scale"), named.pop("stem_shift"), *named.values()]
    with torch.no_grad():
        for a, b in zip(ordered, theirs, strict=True):
            b.copy_(a)
        plain.alphas[0].copy_(alpha[:14])
        plain.alphas[1].copy_(alpha[14:])
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    ours.double()
    plain.double()
    alpha.data = alpha.data.double()
    a, b = logits(x.double()), plain(x.double())
    grads = torch.autograd.grad(F.cross_entropy(a, y), [*ordered, alpha])
    others = list(torch.autograd.grad(F.cross_entropy(b, y), [*theirs, *plain.alphas]))
    others[-2:] = [torch.cat(others[-2:])]
    worst = max(float((g - h).abs().max() / h.abs().max().clamp_min(1e-9)) for g, h in zip(grads, others, strict=True))
    return float(((a - b).abs().max() / b.abs().max()).detach()), worst


def operations(channels: int, cells: int, batch: int) -> float:
    """Floating-point operations of one textbook step's two forward and backward passes, a backward pass being two forward ones.

    The counter takes the gradients of a depthwise convolution for those of a dense one, so that it is asked about the forward pass alone.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net, x = Textbook(channels, cells), torch.empty(batch, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            net(x)
    return 2.0 * 3.0 * counter.get_total_flops()


def install(folder: Path) -> str:
    """Make an environment with NNI; returns its Python."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *NNI], check=True)
    return str(python)


def measure(names: Sequence[str], nni: str | None, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Each side in a process of its own, in turn, `rounds` times."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            python = nni if name.startswith("NNI") else sys.executable
            sizes = [f"--{key}={getattr(arguments, key)}" for key in ("channels", "cells", "batch", "threads", "steps")]
            done = subprocess.run([str(python), __file__, "--side", name, *sizes], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {name}: {found[name][-1]['cpu_s']}", file=sys.stderr, flush=True)
    return found


def report(found: dict[str, list[dict[str, Any]]], flops: float) -> None:
    gemm = statistics.median(row["gemm"] for rows in found.values() for row in rows)
    print(f"{flops / 1e9:.0f} Gflop a step; GEMM {gemm / 1e9:.0f} Gflop/s")
    print(f"{'':26} {'cpu s':>8} {'wall s':>8} {'peak MB':>8} {'of GEMM':>8}")
    for name, rows in found.items():
        cpu, wall = (statistics.median(t for row in rows for t in row[key]) for key in ("cpu_s", "wall_s"))
        peak = statistics.median(row["peak_bytes"] for row in rows) / 1e6
        print(f"{name:26} {cpu:8.2f} {wall:8.2f} {peak:8.0f} {flops / cpu / gemm:8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", choices=list(SIDES), help="these sides alone")
    parser.add_argument("--nni", metavar="PYTHON", help="the Python of an environment with NNI 3.0")
    parser.add_argument("--install-nni", type=Path, metavar="FOLDER", help="make such an environment there")
    for name, default in (("channels", 16), ("cells", 8), ("batch", 64), ("threads", 1), ("steps", 1), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if arguments.side:
        sizes = {key: getattr(arguments, key) for key in ("channels", "cells", "batch", "threads", "steps")}
        print(json.dumps(run_side(arguments.side, **sizes)))
        return
    nni = install(arguments.install_nni) if arguments.install_nni else arguments.nni
    names = arguments.only or [name for name in SIDES if nni or not name.startswith("NNI")]
    logits, gradients = agreement(channels=4, cells=3)  # in double precision the full size would take minutes
    print(
        f"sartor and the textbook, same weights, double precision: logits differ by {logits:.0e}, gradients by {gradients:.0e} (relative)"
    )
    found = measure(names, nni, arguments)
    report(found, operations(arguments.channels, arguments.cells, arguments.batch))


if __name__ == "__main__":
    main()
