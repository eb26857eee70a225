"""A supernet and a dataset small enough to train within a test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.data import Dataset, Split
from sartor.layers.base import drop_path_of
from sartor.layers.choice import AnyArch, Choice
from sartor.layers.conv import ConvBNAct, ElasticLinear


class TinyNet(nn.Module):
    """Two elastic convolutions, global pooling, a linear layer; width {4, 8} twice and kernel {3, 5}."""

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, second, kernel = Choice("w1", (4, 8)), Choice("w2", (8, 16)), Choice("k", (3, 5))
            self.one = ConvBNAct(1, first, 3)
            self.two = ConvBNAct(first, second, kernel, 2)
            self.head = ElasticLinear(second, classes)
        self.space = Space({c.name: c.options for c in (first, second, kernel)})
        self.smallest = Arch({"w1": 0, "w2": 0, "k": 0})
        self.largest = Arch({"w1": 1, "w2": 1, "k": 1})
        self.input_shape = (1, 8, 8)
        self.calls: list[tuple[Arch, float]] = []

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        self.calls.append((arch, drop_path))
        x = self.two(self.one(x, arch), arch).mean((2, 3))
        if drop_path:
            x = drop_path_of(x, drop_path)
        out: Tensor = self.head(x, arch)
        return out

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(self.one.extract(arch), self.two.extract(arch), pool, self.head.extract(arch))


def tiny_data(count: int = 256, classes: int = 4, seed: int = 0, noise: float = 0.6) -> Dataset:
    """One bright blob per class at its own place, in noise: separable, but not at once."""
    rng = np.random.default_rng(seed)
    splits = []
    for n in (count, count // 2, 8):
        labels = np.arange(n) % classes
        images = rng.normal(0.0, noise, (n, 1, 8, 8)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[0, 4 * row : 4 * row + 3, 4 * column : 4 * column + 3] += 1.0
        splits.append((images, labels))
    mean, std = np.zeros(1), np.ones(1)
    train, validation, test = (Split(x, y, mean, std) for x, y in splits)
    return Dataset("tiny", train, validation, test, tuple(str(i) for i in range(classes)), mean, std)
