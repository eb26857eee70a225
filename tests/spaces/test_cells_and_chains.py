"""NASNet cells, macro chains and multi-branch units: exact sizes, spellings that go round, and plain networks that compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.extract import Net, space_of
from sartor.hardware import CostModel, OpGraph, all_ops, trace
from sartor.recipes.cost_term import Cost
from sartor.request import SPACES as NAMED
from sartor.spaces import NETWORKS, branches, build, macro, nasnet

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
MAKE: dict[str, Callable[[], Net]] = {
    "nasnet": lambda: nasnet.NasNet((3, 8, 8), 4, channels=4, cells=1, blocks=3, ops=nasnet.OPS[:1] + nasnet.OPS[2:4] + nasnet.OPS[6:]),
    "macro": lambda: macro.MacroNet((3, 8, 8), 4, layers=4, widths=(4, 8), kernels=(3, 5), stem=4),
    "branches": lambda: branches.BranchNet((3, 8, 8), 4, units=3, widths=(4, 8), stem=4),
}


def _net(name: str) -> Net:
    torch.manual_seed(0)
    net = MAKE[name]()
    with torch.no_grad():  # norms that are one and zero biases would hide mistakes
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


NETS = {name: _net(name) for name in MAKE}
DEEP = nasnet.NasNet((3, 8, 8), 4, channels=4, cells=2)


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and bool((a - b).abs().max() <= 2e-5 * max(1.0, float(b.abs().max())))


def sampled(net: Net, seed: int) -> Arch:
    return net.space.sample(np.random.default_rng(seed))


# -- what holds for all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_architecture_runs_and_its_plain_network_computes_the_same(name: str, seed: int) -> None:
    net, arch = NETS[name], sampled(NETS[name], seed)
    expected = net(X, arch)
    assert expected.shape == (4, 4) and torch.isfinite(expected).all()
    plain = net.extract(arch).train()
    assert close(plain(X), expected)
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in plain.parameters()}
    names, weights = zip(*plain.named_parameters(), strict=True)
    grads = torch.autograd.grad(plain(X).square().sum(), weights, allow_unused=True)
    assert [n for n, grad in zip(names, grads, strict=True) if grad is None] == [], "dead weights"


@pytest.mark.parametrize("name", NETS)
def test_one_hot_mixtures_equal_indices(name: str) -> None:
    net = NETS[name]
    for seed in range(6):
        arch = sampled(net, seed)
        mixable = {n: {i: 1.0} for n, i in arch.items() if not n.endswith(".stride")}
        assert close(net(X, {**arch, **mixable}), net(X, arch))


@pytest.mark.parametrize("name", NETS)
def test_every_mixture_weight_has_a_gradient_that_differences_confirm(name: str) -> None:
    net = NETS[name]
    arch = sampled(net, 3)
    rng = np.random.default_rng(0)
    free = [n for n in net.space.active(arch) if not n.endswith(".stride") and len(net.space.choices[n]) > 1]
    for choice in rng.choice(sorted(free), size=3, replace=False):
        options = range(len(net.space.choices[choice]))
        weights = torch.full((len(options),), 1.0 / len(options), requires_grad=True)
        out = net(X, {**arch, choice: {i: weights[i] for i in options}}).square().sum()
        (grad,) = torch.autograd.grad(out, [weights])
        assert torch.isfinite(grad).all()
        if choice.endswith((".op", ".op1", ".op2", ".width")):
            assert (grad != 0).any()


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_the_plain_network(name: str) -> None:
    net = NETS[name]
    for seed in range(4):
        arch = sampled(net, seed)
        plain = net.extract(arch)
        costs = net.costs(arch)
        assert costs["params"] == sum(p.numel() for p in plain.parameters())
        assert costs["macs"] == trace(plain, (3, 8, 8)).macs


def placed(graph: OpGraph) -> list[tuple[str, tuple[int, ...]]]:
    return [(op.signature, op.inputs) for op in graph]


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_the_graph_of_nasnet_cells_is_that_of_the_plain_network(seed: int) -> None:
    net: Any = DEEP
    arch = net.space.sample(np.random.default_rng(seed))
    plain = net.extract(arch)
    graph = net.graph(arch)
    assert placed(graph) == placed(trace(plain, (3, 8, 8)))
    assert net.costs(arch)["params"] == sum(p.numel() for p in plain.parameters())
    assert CostModel(net.factors(), lambda op: float(op.macs))(arch) == graph.macs


def test_operations_that_depend_on_every_choice_are_not_listed() -> None:
    factors = nasnet.NasNet((3, 8, 8), 4, channels=4).factors()
    uniform = {name: dict.fromkeys(range(len(options)), 1 / len(options)) for name, options in nasnet.make_space().choices.items()}
    with pytest.raises(UserError, match="depend on 50 choices together"):
        CostModel(factors, lambda op: float(op.macs))(uniform)
    with pytest.raises(UserError, match="without restrictions"):
        all_ops(factors, {name: len(options) for name, options in nasnet.make_space().choices.items()})


def test_the_expected_cost_of_nasnet_cells_is_learned() -> None:
    net = nasnet.NasNet((3, 8, 8), 4, channels=4, cells=1, blocks=2)
    cost = Cost.of_params(net.space, net.factors())
    assert cost.fit is not None and cost.fit.median_error < 0.1 and cost.fit.kendall_tau > 0.6
    rng = np.random.default_rng(0)
    taste = {name: dict(zip(a, rng.dirichlet(np.ones(len(a))).tolist(), strict=True)) for name, a in net.space.allowed.items()}
    draws = [{name: int(rng.choice(list(row), p=list(row.values()))) for name, row in taste.items()} for _ in range(400)]
    assert cost(draws[0]) == sum(op.params for op in net.graph(draws[0]))
    assert cost(taste) == pytest.approx(np.mean([cost(arch) for arch in draws]), rel=0.1)


@pytest.mark.parametrize("name", ["nasnet", "macro", "branches"])
def test_they_are_found_by_name(name: str) -> None:
    with torch.device("meta"):
        net: Any = build(name, (3, 16, 16), 5)
        assert net(torch.empty(2, 3, 16, 16), sampled(net, 0)).shape == (2, 5)
    assert name in NETWORKS and name in NAMED
    assert set(space_of(net).choices) == set(net.space.choices)


# -- NASNet --------------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(blocks=st.integers(1, 5), ops=st.integers(2, 8), combiners=st.integers(1, 2))
def test_size_of_the_nasnet_space(blocks: int, ops: int, combiners: int) -> None:
    """prod (i + 2)^2 M^2 N for each of the two cells, as the space itself counts."""
    space = nasnet.make_space(blocks, nasnet.OPS[:ops], nasnet.COMBINERS[:combiners])
    expected = math.prod((i + 2) ** 2 for i in range(blocks)) * ops ** (2 * blocks) * combiners**blocks
    assert nasnet.size_of(blocks, ops, combiners) == expected
    assert space.size == expected**2


@given(seed=st.integers(0, 2**32 - 1))
def test_nasnet_cells_go_round(seed: int) -> None:
    space = nasnet.make_space()
    arch = space.sample(np.random.default_rng(seed))
    cells = nasnet.decode(space, arch)
    assert nasnet.encode(space, *cells) == arch
    assert tuple(nasnet.from_string(nasnet.to_string(cell)) for cell in cells) == cells


def test_nasnet_a_is_in_the_space_and_leaves_out_what_nothing_takes() -> None:
    space = nasnet.make_space()
    arch = nasnet.encode(space, *nasnet.NASNET_A)
    assert nasnet.decode(space, arch) == nasnet.NASNET_A
    # In the normal cell no block takes another; in the reduction blocks 0 and 1 are taken.
    assert nasnet.CellSpec("normal", 5).loose(arch) == [0, 1, 2, 3, 4]
    assert nasnet.CellSpec("reduce", 5).loose(arch) == [2, 3, 4]


def test_concatenation_is_of_the_loose_blocks_only() -> None:
    """The classifier's weight has a column for every channel of a loose block: 4 channels, two reductions."""
    net = NETS["nasnet"]
    first = nasnet.Block("input0", "identity", "input1", "identity")
    chain = [first, *(nasnet.Block(f"block{i}", "identity", "input1", "conv_3x3") for i in (0, 1))]
    apart = [first] * 3
    for cell, loose in ((chain, 1), (apart, 3)):
        plain = net.extract(nasnet.encode(net.space, tuple(cell), tuple(apart)))
        heads = [m for m in plain.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 4 and m.bias is not None]
        assert [m.in_channels for m in heads] == [16 * loose]


def test_a_cell_that_nothing_takes_is_not_built() -> None:
    """When every cell takes only the one before the last, every second cell leads nowhere."""
    net = NETS["nasnet"]
    skipping = tuple(nasnet.Block("input0", "conv_3x3", "input0", "identity") for _ in range(3))
    arch = nasnet.encode(net.space, skipping, skipping)
    assert net.needed(arch) == {0, 2, 4}  # type: ignore[operator]
    assert not any(name.startswith(("cells.1", "cells.3")) for name, _ in net.extract(arch).named_parameters())


def test_unused_shares_of_a_mixture_are_expectations() -> None:
    spec = nasnet.CellSpec("normal", 3)
    arch: dict[str, Any] = {choice.name: 0 for choice in spec.inputs}
    arch["normal.b1.in1"] = {0: 0.75, 2: 0.25}
    arch["normal.b2.in2"] = {2: 0.5, 3: 0.5}
    assert spec.unused(arch) == pytest.approx([0.75 * 0.5, 0.5, 1.0])


@pytest.mark.parametrize("text", ["add(identity(input0))", "identity", "add(identity(input0),conv_3x3(input1)"])
def test_other_texts_are_no_cells(text: str) -> None:
    with pytest.raises(UserError, match="expected blocks"):
        nasnet.from_string(text)


# -- macro ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(layers=st.integers(1, 6), kernels=st.integers(1, 3), widths=st.integers(2, 3))
def test_size_of_the_macro_space(layers: int, kernels: int, widths: int) -> None:
    with torch.device("meta"):
        net = macro.MacroNet((3, 8, 8), 4, layers=layers, widths=(4, 8, 12)[:widths], kernels=(3, 5, 7)[:kernels])
    assert net.space.size == macro.size_of(layers, kernels, widths)


@given(seed=st.integers(0, 2**32 - 1))
def test_macro_strings_go_round(seed: int) -> None:
    space = NETS["macro"].space
    arch = space.sample(np.random.default_rng(seed))
    assert macro.from_string(space, macro.to_string(space, arch)) == arch


def test_a_string_says_what_is_built() -> None:
    net = NETS["macro"]
    arch = macro.from_string(net.space, "conv_5x5:8/2 max_pool:4/1+0 sep_conv_3x3:8/2+0,1 avg_pool:8/1+2")
    assert net.space.labels(arch)["layer3.from0"] is True and "layer2.kernel" not in net.space.labels(arch)
    graph = net.graph(arch)
    assert [op.out_shape for op in graph if op.kind == "conv" and op.kernel == 5] == [(8, 4, 4)]
    # Extra inputs widen the 1x1 convolution in front of a layer: 4 + 4 (stem) + 8 channels in layer 3.
    assert sorted(op.in_shape[0] for op in graph if op.kind == "conv" and op.kernel == 1 and op.groups == 1)[-1] == 16
    assert net(X, arch).shape == (4, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conv_5x5", "expected layers"),
        ("max_pool:4/1 max_pool:4/1+1", "outputs 0 to 0"),
        ("conv_9x9:4/1", "9"),
        ("conv_3x5:4/1", "no option 'conv_3x5'"),
        ("conv_3x3:4/1+,", "expected layers"),
        ("max_pool_3x3:4/1", "'max_pool' takes no kernel"),
    ],
)
def test_other_texts_are_no_chains(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        macro.from_string(NETS["macro"].space, text)


# -- branches --------------------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(units=st.integers(1, 4), count=st.integers(1, 4), kinds=st.integers(2, 6), widths=st.integers(2, 3))
def test_size_of_the_multi_branch_space(units: int, count: int, kinds: int, widths: int) -> None:
    with torch.device("meta"):
        net = branches.BranchNet((3, 8, 8), 4, units=units, branches=count, kinds=branches.KINDS[:kinds], widths=(4, 8, 12)[:widths])
    assert net.space.size == branches.size_of(units, count, kinds, widths)


@given(seed=st.integers(0, 2**32 - 1))
def test_branch_strings_go_round(seed: int) -> None:
    space = NETS["branches"].space
    arch = space.sample(np.random.default_rng(seed))
    assert branches.from_string(space, branches.to_string(space, arch)) == arch


def test_joining_and_missing_branches() -> None:
    """Added: the sum of the branches through the ReLU. Concatenated: a projection with columns for the live branches only."""
    net = NETS["branches"]
    unit: Any = net.units[0]  # type: ignore[index]
    x = torch.randn(2, 4, 8, 8)
    rest = "add(conv_1x1,none,none)/4 add(conv_1x1,none,none)/4"
    added = branches.from_string(net.space, f"add(conv_3x3,none,max_pool_3x3)/8 {rest}")
    parts = [unit.branches[i](x, added) for i in (0, 2)]
    assert close(unit(x, added), torch.relu(parts[0] + parts[1]))
    joined = branches.from_string(net.space, f"concat(conv_3x3,none,max_pool_3x3)/8 {rest}")
    projection = [op for op in net.graph(joined) if op.kind == "conv" and op.in_shape[0] == 16]
    assert [op.out_shape[0] for op in projection] == [8]
    assert not any(op.in_shape[0] == 16 for op in net.graph(added) if op.kind == "conv")


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="unknown kind 'conv_9x9'"):
        branches.BranchNet((3, 8, 8), 4, kinds=("conv_9x9",))
    with pytest.raises(UserError, match="sides that 4 divides"):
        nasnet.NasNet((3, 10, 8), 4)
    with pytest.raises(UserError, match="strides"):
        macro.MacroNet((3, 8, 8), 4, strides=(3,))
