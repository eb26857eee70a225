"""Small networks with every pattern that tracing has to recognise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int, se: bool, act: type[nn.Module]) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = conv_bn(channels, hidden, 1, act=act) if expansion > 1 else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, kernel, stride, hidden, act)
        self.se = SqueezeExcite(hidden, 8) if se else nn.Identity()
        self.project = conv_bn(hidden, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(channels, out, 3, stride, act=nn.ReLU), conv_bn(out, out, 3)
        self.shortcut = conv_bn(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class Dense(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.primary, self.cheap = conv_bn(channels, channels, 1, act=nn.ReLU), conv_bn(channels, channels, 3, 1, channels, nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


def random_net(seed: int) -> tuple[nn.Module, tuple[int, int, int]]:
    rng = np.random.default_rng(seed)
    size, channels = int(rng.choice([8, 16, 28])), int(rng.choice([1, 3]))
    act = nn.Hardswish if rng.random() < 0.5 else nn.ReLU
    width = 8 * int(rng.integers(1, 4))
    layers: list[nn.Module] = [conv_bn(channels, width, 3, act=act)]
    for stage in range(int(rng.integers(2, 4))):
        out, family = 8 * int(rng.integers(1 + stage, 4 + 2 * stage)), rng.choice(["inverted", "residual", "dense"])
        for depth in range(int(rng.integers(1, 3))):
            stride = 2 if depth == 0 and stage else 1
            if family == "inverted":
                layers.append(Inverted(width, out, int(rng.choice([1, 3])), int(rng.choice([3, 5])), stride, bool(rng.random() < 0.5), act))
            elif family == "residual":
                layers.append(Residual(width, out, stride))
            else:
                layers.append(nn.Sequential(Dense(width), conv_bn(2 * width, out, 1, stride)))
            width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval(), (channels, size, size)


def export(module: nn.Module, shape: tuple[int, int, int], path: str) -> None:
    """An fp32 ONNX file, written here because this package must not look at `sartor.export`."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(1, *shape),), path, input_names=["input"], output_names=["logits"], opset_version=17,
                          dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False)  # fmt: skip
