"""Small nets that use every layer an extracted network may hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.reduce: nn.Module = nn.Linear(channels, 8) if linear else nn.Conv2d(channels, 8, 1)
        self.expand: nn.Module = nn.Linear(8, channels) if linear else nn.Conv2d(8, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        gate = F.hardsigmoid(self.expand(torch.relu(self.reduce(pooled))))
        return x * (gate[:, :, None, None] if self.linear else gate)


class MBConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: type[nn.Module], se: nn.Module | None) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act())
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), act())
        self.se = se
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y if self.se is None else self.se(y))
        return x + y if self.residual else y


class Ghost(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.primary = nn.Conv2d(channels, channels, 1)
        self.cheap = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.primary(x))
        return torch.cat((a, F.relu(self.cheap(a))), 1)


class PreActivation(nn.Module):
    """BatchNorm and ReLU before the convolution, on a tensor that the shortcut uses too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(torch.relu(self.norm(x)))


class Resized(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)


def head(channels: int, classes: int = 10) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def stem(channels: int, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), act()]


def build(name: str) -> nn.Module:
    if name == "mobile_v3":
        blocks = [MBConv(16, 16, 3, 1, nn.Hardswish, SqueezeExcite(32)), MBConv(16, 24, 5, 2, nn.Hardswish, SqueezeExcite(32, linear=True))]
        return nn.Sequential(*stem(16, nn.Hardswish), *blocks, *head(24))
    if name == "relu6":
        return nn.Sequential(*stem(16, nn.ReLU6), MBConv(16, 16, 3, 1, nn.ReLU6, None), MBConv(16, 24, 3, 2, nn.ReLU6, None), *head(24))
    if name == "swish":
        return nn.Sequential(*stem(8, nn.SiLU), MBConv(8, 8, 3, 1, nn.SiLU, None), *head(8))
    if name == "ghost_pools":
        pools = [nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)]
        return nn.Sequential(Resized(12), *stem(8), Ghost(8), *pools, nn.Conv2d(16, 16, 3, groups=2, padding=1), nn.ReLU(), *head(16))
    assert name == "pre_activation"
    return nn.Sequential(*stem(8), PreActivation(8), PreActivation(8), nn.ReLU(), *head(8))


NETS = ("mobile_v3", "relu6", "swish", "ghost_pools", "pre_activation")


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """(192, 3, 16, 16): smooth blobs, because white noise is the one input no net ever meets."""
    noise = np.random.default_rng(0).normal(size=(192, 3, 16, 16)).astype(np.float32)
    return np.ascontiguousarray(sum(np.roll(noise, (i, j), (2, 3)) for i in range(3) for j in range(3)) / 3, dtype=np.float32)


@pytest.fixture(scope="session")
def nets(images: np.ndarray) -> dict[str, nn.Module]:
    """Every net with BatchNorm statistics of `images`, in evaluation mode."""
    built = {}
    for name in NETS:
        torch.manual_seed(1)
        net = build(name).train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain average: one pass suffices
        with torch.no_grad():
            net(torch.from_numpy(images))
        built[name] = net.eval()
    return built


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest, nets: dict[str, nn.Module]) -> nn.Module:
    return nets[request.param]
