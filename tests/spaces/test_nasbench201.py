"""The network of NAS-Bench-201: parameter for parameter the benchmark's, and searchable as any other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartor.benchmarks import nasbench201 as tabulated
from sartor.benchmarks import table
from sartor.errors import UserError
from sartor.extract import space_of
from sartor.hardware import trace
from sartor.spaces import build
from sartor.spaces.nasbench201 import SPACE, NasBench201, from_string, live_edges

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet16": 120}


def cell(*ops: str) -> dict[str, int]:
    """Operations of the six edges by their first letters: none, skip, 1x1, 3x3, avg."""
    short = {"none": 0, "skip": 1, "1x1": 2, "3x3": 3, "avg": 4}
    return dict(zip(tabulated.CHOICES, (short[op] for op in ops), strict=True))


@pytest.fixture(scope="module")
def small() -> NasBench201:
    torch.manual_seed(0)
    net = NasBench201((3, 8, 8), 4, channels=4, cells=2)
    with torch.no_grad():  # norms that are one and zero biases would hide mistakes
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max())))


def sampled(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).choice(tabulated.CELLS, size=count, replace=False)]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
def test_parameters_of_200_networks_are_the_tables() -> None:
    with torch.device("meta"):
        net = NasBench201((3, 32, 32), 10)
        for index in (*sampled(197), 6111, 9930, 857):
            assert parameters(net.published(tabulated.arch_of(index))) == table("nasbench201").column("cifar10_params")[index]


def test_parameters_of_200_cells_are_the_tables() -> None:
    """Three cells are built for each, one of each stage, and counted five times; all else is the same in every network."""
    with torch.device("meta"):
        net = NasBench201((3, 32, 32), 10)
        stages = [net.body[i] for i in (0, 6, 12)]
        rest = parameters(net.published(tabulated.arch_of(0))) - 5 * sum(parameters(s.published(tabulated.arch_of(0))) for s in stages)
        for index in (*sampled(197), 6111, 9930, 857):
            built = rest + 5 * sum(parameters(stage.published(tabulated.arch_of(index))) for stage in stages)
            assert built == table("nasbench201").column("cifar10_params")[index]


@pytest.mark.parametrize("data", CLASSES)
def test_parameters_and_multiplications_of_each_data_set(data: str) -> None:
    side = 16 if data == "imagenet16" else 32
    with torch.device("meta"):
        plain = NasBench201((3, side, side), CLASSES[data]).published(tabulated.arch_of(1))
    assert sum(p.numel() for p in plain.parameters()) == table("nasbench201").column(f"{data}_params")[1]
    assert trace(plain, (3, side, side)).macs == table("nasbench201").column(f"{data}_macs")[1]


def test_its_space_is_the_tables() -> None:
    with torch.device("meta"):
        net = build("sartor.spaces.nasbench201:NasBench201", (3, 8, 8), 4)
    assert net.space.fingerprint == SPACE.fingerprint == space_of(net).fingerprint


CELLS = [
    cell("3x3", "skip", "1x1", "avg", "3x3", "1x1"),
    cell("none", "none", "3x3", "3x3", "1x1", "1x1"),  # nodes 1 and 2 get nothing from the input
    cell("3x3", "3x3", "1x1", "skip", "none", "none"),  # nodes 1 and 2 lead nowhere
    cell("3x3", "none", "avg", "none", "none", "skip"),
    cell("3x3", "1x1", "3x3", "none", "none", "none"),  # not connected
    cell(*["none"] * 6),
]


@pytest.mark.parametrize("arch", CELLS)
def test_plain_and_one_hot_compute_the_same(small: NasBench201, arch: dict[str, int]) -> None:
    expected = small(X, arch)
    assert expected.shape == (6, 4)
    assert close(small(X, {name: {index: 1.0} for name, index in arch.items()}), expected)
    plain = small.extract(arch).train()
    assert close(plain(X), expected)
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in plain.parameters()}


@pytest.mark.parametrize("arch", CELLS)
def test_extracted_weights_are_those_on_a_path(small: NasBench201, arch: dict[str, int]) -> None:
    plain = small.extract(arch)
    live = live_edges(arch)
    pruned = {name: index if name in live else 0 for name, index in arch.items()}
    count = sum(p.numel() for p in plain.parameters())
    assert count == sum(p.numel() for p in small.published(pruned).parameters()) == small.costs(arch)["params"]
    if live:
        names, parameters = zip(*plain.named_parameters(), strict=True)
        grads = torch.autograd.grad(plain(X).square().sum(), parameters, allow_unused=True)
        assert [name for name, grad in zip(names, grads, strict=True) if grad is None] == []


ALONE = (  # cells of which nothing but one edge is left, and of which nothing is
    *(f"|none~0|+|none~0|none~1|+|{op}~0|none~1|none~2|" for op in tabulated.OPS),
    "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|avg_pool_3x3~1|none~2|",  # the pool at the end takes no activation in
)


@settings(max_examples=25)
@given(
    st.sampled_from([from_string(text) for text in ALONE]) | st.integers(0, tabulated.CELLS - 1).map(tabulated.arch_of), st.integers(1, 4)
)
def test_its_graph_is_that_of_the_plain_network(arch: dict[str, int], cells: int) -> None:
    with torch.device("meta"):
        net = NasBench201((3, 8, 8), 4, channels=4, cells=cells)
        plain = net.extract(arch).eval()
    graph = net.graph(arch)
    traced = trace(plain, (3, 8, 8))
    assert [(op.signature, op.inputs) for op in graph] == [(op.signature, op.inputs) for op in traced]
    assert net.costs(arch)["params"] == parameters(plain)
    pieces = [op.signature for factor in net.factors() for op in factor.at(tuple(arch[choice] for choice in factor.scope))]
    assert Counter(pieces) == Counter(op.signature for op in traced)


def test_published_is_the_same_function_where_every_node_is_reached(small: NasBench201) -> None:
    assert close(small.published(CELLS[0]).train()(X), small(X, CELLS[0]))
    # What reaches no output costs weights there, and changes nothing.
    wasteful = small.published(CELLS[2])
    assert close(wasteful.train()(X), small(X, CELLS[2]))
    assert sum(p.numel() for p in wasteful.parameters()) > small.costs(CELLS[2])["params"]


def test_a_mixture_is_the_weighted_sum(small: NasBench201) -> None:
    """In one cell; over a whole network the mixture passes through every cell."""
    first = small.body[0]
    x = torch.randn(2, 4, 8, 8)
    arch = dict(CELLS[0])
    mixed = first(x, {**arch, "edge03": {0: 0.25, 1: 0.5, 4: 0.25}})
    none, skip, pool = (first(x, {**arch, "edge03": index}) for index in (0, 1, 4))
    assert close(mixed, 0.25 * none + 0.5 * skip + 0.25 * pool)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        (CELLS[0], set(tabulated.CHOICES)),
        (CELLS[1], {"edge03"}),
        (CELLS[2], {"edge03"}),
        (CELLS[3], {"edge01", "edge12", "edge23"}),
        (CELLS[4], set()),
    ],
)
def test_live_edges(arch: dict[str, int], expected: set[str]) -> None:
    assert live_edges(arch) == expected


def test_live_edges_are_none_where_the_cell_is_not_connected() -> None:
    for index in (*sampled(300), *np.flatnonzero(~tabulated.connected())):
        assert bool(live_edges(tabulated.arch_of(int(index)))) == tabulated.connected()[index]


def test_average_pool_leaves_padding_out(small: NasBench201) -> None:
    ones = torch.ones(1, 4, 8, 8)
    arch = cell("none", "none", "none", "avg", "none", "none")
    assert torch.equal(small.body[0](ones, arch), ones)


def test_convolutions_come_after_the_activation(small: NasBench201) -> None:
    """ReLU, convolution, batch norm: a negative input gives the shift of the norm alone."""
    negative = -torch.rand(2, 4, 8, 8)
    arch = cell("none", "none", "none", "3x3", "none", "none")
    out = small.body[0].extract(arch).train()(negative)
    assert out.std(dim=(0, 2, 3)).max() < 1e-6
    assert any(isinstance(m, nn.ReLU) and not m.inplace for m in small.body[0].extract(arch).modules())


@pytest.mark.parametrize(("shape", "more", "said"), [((3, 30, 32), {}, "30x32"), ((3, 32, 32), {"cells": 0}, "at least 1")])
def test_mistakes_are_said(shape: tuple[int, int, int], more: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        NasBench201(shape, 10, **more)
