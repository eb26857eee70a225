"""One sandwich step on the once-for-all space: sartor's layers against those of the authors' package `ofa`.

Both supernets have the space's five units of up to four blocks, kernels 3 to 7 through transforms, expansions 3 to 6; a step runs the
largest, the smallest and the same two random nets forward and backward on one batch, the largest with the labels, the others with its soft
predictions. Each side runs in a process of its own, in turn, in both memory layouts. Times are processor times of one thread; memory is
what a step adds to the resident set at its peak. The package imports torchvision for its data loader alone; where that is missing, an empty
module stands for it.

    python benchmarks/sandwich_against_ofa.py --install-ofa /tmp/ofa
    python benchmarks/sandwich_against_ofa.py --ofa /tmp/ofa/bin/python --size 96 --batch 32
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mixed_operation import _peak as peak_bytes
from torch import Tensor, nn
from torch.nn import functional as F

OFA = ("ofa==0.1.0.post202307202001", "torch>=2.6,<2.14", "numpy", "pillow", "pyyaml", "tqdm")

Nets = list[dict[str, list[int]]]  # of each net: ks and e of the 20 blocks, d of the five units
Step = Callable[[Tensor, Tensor], None]


def architectures() -> tuple[Any, Nets]:
    """The four nets of a step, as sartor's architectures and in the package's spelling."""
    import numpy as np

    from sartor.spaces.mobile import MobileNet
    from sartor.spaces.published import once_for_all

    with torch.device("meta"):
        net = MobileNet(once_for_all(), (3, 96, 96), 10)
    rng = np.random.default_rng(0)
    archs = [net.largest, net.smallest, net.space.sample(rng), net.space.sample(rng)]
    spelled = []
    for arch in archs:
        labels = net.space.labels(arch)
        units = sorted({name.split(".")[0] for name in labels if name.endswith(".depth")}, key=lambda name: int(name[1:]))
        found: dict[str, list[int]] = {"ks": [], "e": [], "d": [int(labels[f"{unit}.depth"]) for unit in units]}
        for unit in units:
            for block in range(4):
                found["ks"].append(int(labels.get(f"{unit}.b{block}.kernel", 3)))
                found["e"].append(int(labels.get(f"{unit}.b{block}.expand", 3)))
        spelled.append(found)
    return archs, spelled


def sartors(size: int, nets: Nets) -> tuple[nn.Module, Step]:
    from sartor.recipes.sandwich import sandwich_step
    from sartor.spaces.mobile import MobileNet
    from sartor.spaces.published import once_for_all

    (largest, *others), _ = architectures()
    net = MobileNet(once_for_all(), (3, size, size), 10)
    return net, lambda x, y: sandwich_step(net, x, y, others, largest=largest) and None


def packages(size: int, nets: Nets) -> tuple[nn.Module, Step]:
    class Empty(types.ModuleType):
        __path__: list[str] = []

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return object

    try:
        __import__("torchvision")
    except ImportError:
        parent = sys.modules["torchvision"] = Empty("torchvision")
        for name in ("transforms", "functional"):
            child = Empty(f"{parent.__name__}.{name}")
            setattr(parent, name, child)
            parent = sys.modules[child.__name__] = child
    from ofa.imagenet_classification.elastic_nn.networks.ofa_mbv3 import OFAMobileNetV3

    net = OFAMobileNetV3(10, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4], dropout_rate=0.0)

    def step(x: Tensor, y: Tensor) -> None:
        net.set_active_subnet(**nets[0])
        logits = net(x)
        F.cross_entropy(logits, y).backward()
        targets = F.softmax(logits.detach(), 1)
        del logits
        for other in nets[1:]:
            net.set_active_subnet(**other)
            F.kl_div(F.log_softmax(net(x), 1), targets, reduction="batchmean").backward()

    return net, step


SIDES: dict[str, tuple[Callable[[int, Nets], tuple[nn.Module, Step]], bool]] = {
    "sartor": (sartors, True),
    "ofa": (packages, False),
    "ofa, channels_last": (packages, True),
}


def run_side(name: str, nets: Nets, size: int, batch: int, threads: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, channels_last = SIDES[name]
    net, step = make(size, nets)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net.train().to(memory_format=layout)
    x, y = torch.randn(batch, 3, size, size).contiguous(memory_format=layout), torch.arange(batch) % 10
    step(x[:4].contiguous(memory_format=layout), y[:4])
    before = peak_bytes(reset=True)
    seconds = []
    for _ in range(steps):
        net.zero_grad(set_to_none=True)
        start = time.process_time()
        step(x, y)
        seconds.append(time.process_time() - start)
    parameters = sum(p.numel() for p in net.parameters())
    return {"cpu_s": seconds, "peak_bytes": peak_bytes() - before, "parameters": parameters}


def install(folder: Path) -> str:
    """Make an environment with the package; returns its Python."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *OFA], check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--nets", help=argparse.SUPPRESS)
    parser.add_argument("--ofa", metavar="PYTHON", help="the Python of an environment with ofa")
    parser.add_argument("--install-ofa", type=Path, metavar="FOLDER", help="make such an environment there")
    for name, default in (("size", 96), ("batch", 32), ("threads", 1), ("steps", 3), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    sizes = {key: getattr(arguments, key) for key in ("size", "batch", "threads", "steps")}
    if arguments.side:
        print(json.dumps(run_side(arguments.side, json.loads(arguments.nets), **sizes)))
        return
    python = install(arguments.install_ofa) if arguments.install_ofa else arguments.ofa
    if python is None:
        parser.error("give --ofa PYTHON or --install-ofa FOLDER")
    _, nets = architectures()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(arguments.rounds):
        for name in SIDES:
            command = [python if name.startswith("ofa") else sys.executable, __file__, "--side", name, "--nets", json.dumps(nets)]
            done = subprocess.run([*command, *(f"--{k}={v}" for k, v in sizes.items())], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':20} {'cpu s':>8} {'peak MB':>8} {'parameters':>12}")
    for name, rows in found.items():
        cpu = statistics.median(t for row in rows for t in row["cpu_s"])
        peak = statistics.median(row["peak_bytes"] for row in rows) / 1e6
        print(f"{name:20} {cpu:8.2f} {peak:8.0f} {rows[0]['parameters']:12,}")


if __name__ == "__main__":
    main()
