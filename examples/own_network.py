"""A network of your own, searchable: `sartor.spaces.build("own_network:Branched", (1, 28, 28), 10)`, run in this folder.

Write an ordinary torch module. Where something is to be searched, use a sartor layer with a `Choice`; pass `arch` on; branch on it freely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.extract import Net
from sartor.layers import Choice, ConvBNAct, ElasticDepth, ElasticLinear, OneOf


class Branched(Net):
    """Two branches of which the second may be left out, an elastic depth, and a skip connection that `forward` decides itself."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(input_shape, classes)
        width = Choice("width", (16, 24, 32))
        self.stem = ConvBNAct(input_shape[0], width, 3, 2)
        self.branch = OneOf(
            "branch",
            {
                "conv": ConvBNAct(width, width, 3),
                "depthwise": ConvBNAct(width, width, Choice("branch.kernel", (3, 5)), depthwise=True),
                "pool": nn.MaxPool2d(3, 1, 1),
            },
        )
        self.depth = Choice("depth", (1, 2, 3))
        self.body = ElasticDepth(self.depth, [ConvBNAct(width, width, 3) for _ in range(3)])
        self.skip = Choice("skip", (False, True))
        self.classifier = ElasticLinear(width, classes)

    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:
        x = self.stem(x, arch)
        y = self.body(x, arch) + self.branch(x, arch)
        if self.skip.pick(arch):  # an ordinary branch: sampled, never mixed
            y = y + x
        return self.classifier(F.relu(y).mean((2, 3)), arch)


class Perceptron(Net):
    """A multilayer perceptron on the flattened input, one or two hidden layers of searchable widths."""

    conditions = {"second.width": {"layers": [2]}}  # what an `if` decides, only its author can say

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(input_shape, classes)
        first, second = Choice("first.width", (16, 32, 64)), Choice("second.width", (8, 16, 32))
        self.layers = Choice("layers", (1, 2))
        channels, height, width = input_shape
        self.first = ElasticLinear(channels * height * width, first)
        self.second = ElasticLinear(first, second)
        self.shallow, self.deep = ElasticLinear(first, classes), ElasticLinear(second, classes)

    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:
        x = F.relu(self.first(torch.flatten(x, 1), arch))
        if self.layers.pick(arch) == 1:
            return self.shallow(x, arch)
        return self.deep(F.relu(self.second(x, arch)), arch)
