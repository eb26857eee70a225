"""Evaluation networks of DARTS genotypes: parameter for parameter the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.hardware import trace
from sartor.spaces.darts_eval import GENOTYPES, CellNetwork, Genotype, reductions

#: systems.md S1: C = 36, 20 cells, 10 classes, without the auxiliary head.
PARAMETERS = {"darts-v1": 3_169_414, "darts-v2": 3_349_342, "p-darts": 3_433_798, "pc-darts": 3_634_678}
#: Millions on ImageNet, C = 48, 14 cells, as the papers print them (P-DARTS and PC-DARTS: the CIFAR-10 cells).
IMAGENET = {"darts-v2": 4.7, "p-darts": 4.9, "pc-darts": 5.3}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_of_the_published_networks(name: str, parameters: int) -> None:
    with torch.device("meta"):
        net = CellNetwork(name, auxiliary=True)
    assert net.auxiliary is not None and count(net.auxiliary) == 476_426
    net.auxiliary = None
    assert count(net) == parameters


@pytest.mark.parametrize(("name", "millions"), IMAGENET.items())
def test_parameters_on_imagenet(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = CellNetwork(name, (3, 224, 224), 1000, channels=48, cells=14, imagenet=True)
        assert round(count(net) / 1e6, 1) == millions
        assert net(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert name != "darts-v2" or count(net) == 4_718_752
    assert trace(net, (3, 224, 224)).macs < 600e6  # the mobile setting


def small(genotype: str | Genotype = "darts-v2", **more: object) -> CellNetwork:
    torch.manual_seed(0)
    settings: dict[str, object] = {"channels": 4, "cells": 4, **more}
    return CellNetwork(genotype, (3, 32, 32), 5, **settings)  # type: ignore[arg-type]  # settings of several types


X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", GENOTYPES)
def test_every_weight_is_used(name: str) -> None:
    net = small(name, auxiliary=True)
    logits, auxiliary = net.training_outputs(X)
    assert auxiliary is not None and logits.shape == auxiliary.shape == (4, 5)
    grads = torch.autograd.grad(logits.sum() + auxiliary.sum(), list(net.parameters()), allow_unused=True)
    assert all(grad is not None for grad in grads)


def test_the_auxiliary_head_changes_nothing_else() -> None:
    net = small(auxiliary=True)
    net.eval()
    assert torch.equal(net(X), net.training_outputs(X)[0])


def paths(net: CellNetwork, rate: float) -> Tensor:
    """Values of the first cell's nodes under drop-path."""
    torch.manual_seed(5)
    s = torch.relu(net.stem(X))
    cell = net.cells[0]
    found: Tensor = cell.dropping(s, s, rate) if rate else cell(s, s)
    return found


def test_drop_path_drops_whole_paths_of_pictures_and_never_identities() -> None:
    """Node 4 of DARTS_V2's normal cell is sep(1) + skip(0): where the convolution is dropped the identity alone is left."""
    net = small().train()
    cell = net.cells[0]
    channels = slice(8, 12)  # the third node
    torch.manual_seed(5)
    s = torch.relu(net.stem(X))
    identity = cell.preprocess0(s)
    whole, dropped = paths(net, 0.0)[:, channels], paths(net, 0.5)[:, channels]
    path = whole - identity
    kinds = []
    for picture in range(4):
        rest = dropped[picture] - identity[picture]
        gone, doubled = bool(rest.abs().max() < 1e-5), bool((rest - 2.0 * path[picture]).abs().max() < 1e-4)
        assert gone != doubled
        kinds.append(gone)
    assert set(kinds) == {True, False}


def test_an_expected_path_is_the_path() -> None:
    net = small().train()
    torch.manual_seed(0)
    s = torch.relu(net.stem(X[:1, :, :8, :8])).repeat(400, 1, 1, 1)
    whole, dropped = net.cells[0](s, s), net.cells[0].dropping(s, s, 0.3)
    first_node = slice(0, 4)  # later nodes read dropped ones through a ReLU
    assert (dropped[:, first_node].mean(0) - whole[:, first_node].mean(0)).abs().mean() < 0.15


def test_reductions_halve_the_sides_at_thirds_of_the_depth() -> None:
    with torch.device("meta"):
        net = CellNetwork("darts-v2", channels=4, cells=9)
        s0 = s1 = torch.empty(1, 12, 32, 32)
        sides = []
        for cell in net.cells:
            s0, s1 = s1, cell(s0, s1)
            sides.append(s1.shape[-1])
    assert sides == [32] * 3 + [16] * 3 + [8] * 3
    assert sorted(reductions(20)) == [6, 13]


V2 = GENOTYPES["darts-v2"]


@pytest.mark.parametrize(
    ("genotype", "more", "said"),
    [
        ("darts-v3", {}, "darts-v1"),
        (Genotype(V2.normal[:6], V2.reduce), {}, "eight"),
        (Genotype((("none", 0), *V2.normal[1:]), V2.reduce), {}, "'none'"),
        (Genotype((("skip_connect", 1), *V2.normal[1:]), V2.reduce), {}, "1 twice"),
        (Genotype((("skip_connect", 2), *V2.normal[1:]), V2.reduce), {}, "sources from 0 to 1"),
        (V2, {"cells": 3, "auxiliary": True}, "at least 4 cells"),
    ],
)
def test_mistakes_are_said(genotype: str | Genotype, more: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said), torch.device("meta"):
        small(genotype, **more)
