"""Networks and data small enough to search within a test."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from sartor.data import Dataset, Split
from sartor.recipes.cost_term import Cost
from sartor.recipes.elimination import Potential
from sartor.spaces.mobile import MobileNet, MobileSpec, Stage
from sartor.spaces.nasbench201 import NasBench201


def blobs(count: int = 96, classes: int = 4, seed: int = 0) -> Dataset:
    """One bright blob a class in noise."""
    rng = np.random.default_rng(seed)
    splits = []
    for n in (count, count // 2, 8):
        labels = np.arange(n) % classes
        images = rng.normal(0.0, 0.5, (n, 1, 8, 8)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[0, 4 * row : 4 * row + 3, 4 * column : 4 * column + 3] += 1.0
        splits.append(Split(images, labels, np.zeros(1), np.ones(1)))
    return Dataset("blobs", *splits, tuple(str(i) for i in range(classes)), np.zeros(1), np.ones(1))


@lru_cache
def cell_net(seed: int = 0) -> NasBench201:
    """Methods copy it, so that tests can share it, and what it knows of its graphs."""
    torch.manual_seed(seed)
    return NasBench201((1, 8, 8), 4, channels=4, cells=1)


@lru_cache
def elastic_net(seed: int = 0) -> MobileNet:
    torch.manual_seed(seed)
    stages = (Stage((8,), (1, 2), 1, kernels=(3, 5), expands=(2, 4)), Stage((8, 16), (1, 2), 2, kernels=(3, 5), expands=(2, 4)))
    return MobileNet(MobileSpec("elastic", stages, (8,), (1,)), (1, 8, 8), 4)


def edge_cost(net: NasBench201) -> Cost:
    """A latency that is a sum over edges; 5 ms for what all cells have."""
    price = {"none": 0.0, "skip_connect": 0.1, "nor_conv_1x1": 1.0, "nor_conv_3x3": 9.0, "avg_pool_3x3": 0.5}
    tables = [Potential((name,), np.array([price[op] for op in options])) for name, options in net.space.choices.items()]
    return Cost("latency_ms", tables, constant=5.0, unit="ms")


def falling(net: NasBench201) -> dict[str, dict[int, float]]:
    """Strengths under which cheap operations are likely."""
    weights = {name: np.linspace(2.0, 1.0, len(options)) for name, options in net.space.choices.items()}
    return {name: dict(enumerate((w / w.sum()).tolist())) for name, w in weights.items()}
