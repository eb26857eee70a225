"""What autograd keeps for the backward pass: all candidates in DARTS, one or two in GDAS and ProxylessNAS; less in the fast form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sartor.arch import Space
from sartor.layers import Chain, ElasticBatchNorm2d, ElasticConv2d, OneOf
from sartor.policies import Gumbel, Policy, Softmax
from sartor.policies.two_path import TwoPath
from sartor.spaces.darts import DartsNet

PICTURES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
X = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))


def kept_bytes(net: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the storages that autograd keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    loss.backward()
    return sum(found.values())


def edges(candidates: int) -> tuple[nn.ModuleList, Space]:
    torch.manual_seed(0)

    def candidate() -> Chain:
        return Chain(nn.ReLU(), ElasticConv2d(8, 8, 3, depthwise=True), ElasticConv2d(8, 8, 1), ElasticBatchNorm2d(8))

    mixed = nn.ModuleList(OneOf(f"e{i}", {f"c{j}": candidate() for j in range(candidates)}) for i in range(4))
    return mixed, Space({edge.choice.name: edge.choice.options for edge in mixed})  # type: ignore[union-attr]  # a OneOf


def run(net: nn.ModuleList, arch: Any) -> Tensor:
    x = X
    for edge in net:
        x = edge(x, arch)
    return x.square().sum()


def growth(make: Callable[[Space], Policy]) -> tuple[float, float]:
    """Bytes with eight candidates for each byte with two: architecture step, weight step."""
    kept = []
    for candidates in (2, 8):
        net, space = edges(candidates)
        policy = make(space)
        mixtures = [draw(torch.Generator().manual_seed(0)) for draw in (policy.sample, policy.sample_weights)]
        kept.append([kept_bytes(net, partial(run, net, mixture)) for mixture in mixtures])
    return kept[1][0] / kept[0][0], kept[1][1] / kept[0][1]


def test_darts_keeps_all_candidates() -> None:
    architecture, weights = growth(Softmax)
    assert 3.0 < architecture < 4.2 and 3.0 < weights < 4.2


def test_gdas_and_proxylessnas_keep_what_they_drew() -> None:
    for make in (lambda space: Gumbel(space, hard=True), TwoPath):
        architecture, weights = growth(make)
        assert architecture <= 1.1 and weights <= 1.1


def test_the_fast_form_keeps_less_than_half_of_the_textbook() -> None:
    kept = []
    for fast in (True, False):
        torch.manual_seed(0)
        net = DartsNet((3, 16, 16), 4, channels=4, cells=3, fast=fast)
        policy = Softmax(net.relaxed)
        kept.append(kept_bytes(net, lambda net=net, policy=policy: net(PICTURES, policy.sample()).square().sum()))
    assert kept[0] < 0.5 * kept[1]
