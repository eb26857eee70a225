"""The source a person gets is the network, bit for bit, and needs no sartor."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.export.source import save_source, to_source
from sartor.spaces import build

SHAPE = (3, 16, 16)


def rebuilt(source: str, name: str, module: nn.Module) -> nn.Module:
    namespace: dict[str, object] = {}
    exec(source, namespace)
    net = namespace[name]()  # type: ignore[operator]
    net.load_state_dict(module.state_dict())
    return net.eval()


def test_another_process_without_sartor_computes_the_same_bits(nets: dict[str, nn.Module], images: np.ndarray, tmp_path: Path) -> None:
    part = torch.from_numpy(images[:4])
    np.save(tmp_path / "images.npy", images[:4])
    for name, net in nets.items():
        source, weights = save_source(net, tmp_path / name, "Net", SHAPE if name == "mobile_v3" else None)
        assert (source.name, weights.name) == ("model.py", "model.safetensors")
        assert sorted(p.name for p in source.parent.iterdir()) == ["model.py", "model.safetensors"]
    program = (
        "import sys; sys.modules['sartor'] = None\n"
        "import importlib.util, numpy, torch\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        f"for name in {list(nets)!r}:\n"
        "    spec = importlib.util.spec_from_file_location(name, f'{name}/model.py')\n"
        "    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "    with torch.no_grad(): numpy.save(f'{name}.npy', module.load()(images).numpy())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, net in nets.items():
            with torch.no_grad():
                np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), net(part).numpy(), strict=True)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("space", ["mobile", "catalogue", "nasbench201", "nasnet", "macro", "branches"])
def test_extracted_networks(space: str) -> None:
    net = build(space, SHAPE, 5)
    rng = np.random.default_rng(0)
    for _ in range(6):
        module = net.extract(net.space.sample(rng)).eval()
        # An extracted BatchNorm has no statistics of its own yet.
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean, child.running_var = torch.randn(child.num_features), torch.rand(child.num_features) + 0.5
        source = to_source(module, "Found", SHAPE)  # checks the bits itself
        again = rebuilt(source, "Found", module)
        assert list(again.state_dict()) == list(module.state_dict())
        assert "sartor" not in source
        assert max(len(line) for line in source.splitlines()) < 160


def test_reads_like_something_a_person_wrote(nets: dict[str, nn.Module]) -> None:
    source = to_source(nets["mobile_v3"], "Net", SHAPE)
    assert '"""(16, 16, 16) -> (16, 16, 16)"""' in source

    assert "return x + self.project(self.se(self.depthwise(self.expand(x))))" in source
    assert "nn.Conv2d(32, 32, 5, stride=2, padding=2, groups=32, bias=False)" in source
    assert "running_mean" not in source
    tree = ast.parse(source)
    imported = {name.name for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= {"__future__", "collections", "pathlib", "torch", "torch.nn", "safetensors.torch"}


def test_equal_blocks_share_a_class(nets: dict[str, nn.Module]) -> None:
    source = to_source(nets["pre_activation"], "Net")
    assert source.count("class PreActivation") == 1
    assert source.count("PreActivation1(),") == 2


class EveryKindOfStatement(nn.Module):
    """In-place operations whose order matters, own parameters and buffers, containers, slices, several uses."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.register_buffer("shift", torch.rand(3, 1, 1))
        self.register_buffer("fixed", torch.tensor([1.5, -2.0, float("inf")]).view(3, 1, 1), persistent=False)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, (1, 3), padding=(0, 1))])
        self.named = nn.ModuleDict({"act": nn.ReLU(inplace=True)})
        self.pool = nn.MaxPool2d(3, stride=2)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = -(x - self.shift) * self.gain + x.clamp(max=1.0) / (9 + torch.minimum(self.fixed, x))
        y = self.first(x)
        before = y * 2
        z = self.named["act"](y)  # changes y
        z = (z - before) * (y + 1)
        z = torch.cat([branch(z) for branch in self.branches], 1)
        z = F.max_pool2d(self.pool(z), 2)
        batch, channels = z.shape[:2]
        return self.last(z.mean([2, 3]).view(batch, channels)[:, :16]) ** 2


def test_every_kind_of_statement() -> None:
    torch.manual_seed(0)
    module = EveryKindOfStatement().eval()
    again = rebuilt(to_source(module, "Net"), "Net", module)
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again(images), module(images))


class Reversed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](self[1](x)) + x


class ConvNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


class Mean(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        return (self[0](x) + self[1](x)) / 2


def test_subclasses_of_containers_keep_their_forward() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Reversed(nn.Conv2d(3, 3, 1), nn.ReLU()), ConvNorm(), Mean([nn.Sigmoid(), nn.Conv2d(3, 3, 1)])).eval()
    for whole in (module, module[0], module[1], module[2]):
        images = torch.randn(2, *SHAPE)
        with torch.no_grad():
            assert torch.equal(rebuilt(to_source(whole, "Net", SHAPE), "Net", whole)(images), whole(images))


def test_the_module_and_the_random_state_are_left_alone(nets: dict[str, nn.Module]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    to_source(module, "Net", SHAPE)
    assert torch.equal(torch.rand(1), expected)
    assert module.training
    assert torch.equal(module[1].running_mean, torch.zeros(4))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch._weight_norm(x, x)


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(100), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table.sum()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), "Branching cannot be traced"),
        (Foreign(), "not of torch"),
        (Forgetful(), "persistent=True"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "MultiheadAttention does not keep its argument"),
    ],
)
def test_what_has_no_source_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_source(module, "Net")


def test_bad_names_and_shapes_are_refused(nets: dict[str, nn.Module]) -> None:
    with pytest.raises(UserError, match="identifier"):
        to_source(nets["relu6"], "my net")
    with pytest.raises(UserError, match=r"shape \(1, 1, 16, 16\)"):
        to_source(nets["relu6"], "Net", (1, 16, 16))
