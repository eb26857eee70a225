"""The DARTS cell space: what can be derived, and a search network whose fast and textbook forms agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.extract import check
from sartor.hardware import trace
from sartor.layers.primitives import PRIMITIVES
from sartor.policies import Softmax
from sartor.spaces import build
from sartor.spaces.darts import (
    CELLS,
    GENOTYPES,
    INCOMING,
    NODES,
    RELAXED,
    SPACE,
    DartsNet,
    Genotype,
    arch_of,
    derive,
    edge_name,
    genotype_of,
    inputs_name,
)  # fmt: skip
from sartor.spaces.darts_cell import plan_of

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def small(**more: Any) -> DartsNet:
    torch.manual_seed(0)
    net = DartsNet((3, 8, 8), 4, channels=4, cells=3, **more)
    with torch.no_grad():  # a scale of one and a shift of zero would hide mistakes
        for parameter in (net.stem_scale, net.stem_shift):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def relaxed(seed: int) -> dict[str, dict[int, Tensor]]:
    policy = Softmax(RELAXED, scale=1.0, seed=seed)
    return {name: dict(value) for name, value in policy.sample().items() if isinstance(value, Mapping)}


# -- the space ----------------------------------------------------------------------------------------------------------------


def test_size_counts_pairs_of_inputs_and_two_operations_each() -> None:
    per_cell = math.prod(math.comb(target, 2) * 7**2 for target in NODES)
    assert per_cell == 1_037_664_180
    assert SPACE.size == per_cell**2
    assert RELAXED.size == 8**28
    assert [len(group) for group in INCOMING] == [2, 3, 4, 5] * 2


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_sampled_architectures_are_genotypes_and_back(seed: int) -> None:
    arch = SPACE.sample(np.random.default_rng(seed))
    genotype = genotype_of(arch)
    for edges in genotype:
        for number in range(0, 8, 2):
            (first, a), (second, b) = edges[number : number + 2]
            assert a != b and max(a, b) < 2 + number // 2
            assert "none" not in (first, second)
    assert arch_of(genotype) == arch
    assert derive({name: {index: 1.0} for name, index in arch.items()}) == arch
    assert derive(arch) == arch


def published_rule(weights: np.ndarray) -> tuple[tuple[str, int], ...]:
    """The parse of the published code: rows are edges in order, columns options."""
    gene: list[tuple[str, int]] = []
    start = 0
    for nodes in range(2, 6):
        rows = weights[start : start + nodes]
        kept = sorted(range(nodes), key=lambda s: -max(rows[s][k] for k in range(8) if PRIMITIVES[k] != "none"))[:2]
        for source in sorted(kept):
            gene.append((PRIMITIVES[max((k for k in range(8) if PRIMITIVES[k] != "none"), key=lambda k: rows[source][k])], source))
        start += nodes
    return tuple(gene)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_derive_is_the_published_rule(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = {cell: rng.integers(0, 3, (14, 8)).astype(float) if ties else rng.dirichlet(np.ones(8), 14) for cell in CELLS}
    mixture = {}
    for cell in CELLS:
        names = [edge_name(cell, source, target) for target in NODES for source in range(target)]
        mixture.update({name: dict(enumerate(row)) for name, row in zip(names, rows[cell].tolist(), strict=True)})
    assert genotype_of(derive(mixture)) == Genotype(*(published_rule(rows[cell]) for cell in CELLS))


def test_none_is_never_kept_however_heavy() -> None:
    mixture = {name: {0: 0.9, 3: 0.06, 4: 0.04} for name in RELAXED.choices}
    mixture[edge_name("normal", 4, 5)] = {0: 0.0, 3: 0.5, 4: 0.5}
    derived = genotype_of(derive(mixture))
    assert {op for edges in derived for op, _ in edges} == {"skip_connect"}
    assert derived.normal[6:] == (("skip_connect", 0), ("skip_connect", 4))  # the heaviest edge, then the first


def test_edge_weights_decide_which_inputs_stay() -> None:
    """PC-DARTS: a policy with edge weights derives by their product with the operations' weights."""
    policy = Softmax(RELAXED, edges=INCOMING, derive=DartsNet.derive, scale=0.0)
    assert policy.beta is not None
    with torch.no_grad():
        policy.beta[policy.row[edge_name("normal", 3, 5)]] = 2.0
        policy.beta[policy.row[edge_name("normal", 2, 5)]] = 1.0
    assert SPACE.labels(policy.mode())[inputs_name("normal", 5)] == "2,3"


@pytest.mark.parametrize("name", GENOTYPES)
def test_published_genotypes_are_in_the_space(name: str) -> None:
    arch = arch_of(name)
    assert arch in SPACE
    found = genotype_of(arch)
    for published, ours in zip(GENOTYPES[name], found, strict=True):
        assert sorted(published[:2]) == sorted(ours[:2]) and len(ours) == 8


@pytest.mark.parametrize(
    ("mixture", "said"),
    [({}, "into node 2 of the normal cell"), ({name: {0: 1.0} for name in RELAXED.choices}, "got 0")],
)
def test_a_mixture_without_operations_is_refused(mixture: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        derive(mixture)


# -- the network --------------------------------------------------------------------------------------------------------------


def everything(net: DartsNet, x: Tensor, policy: Softmax) -> list[Tensor]:
    """Logits, and the gradients in the pictures, the architecture parameters and all weights."""
    x = x.detach().clone().requires_grad_()
    logits = net(x, policy.sample())
    named = [x, policy.alpha, *net.parameters()]
    grads = torch.autograd.grad((logits * torch.arange(1.0, logits.numel() + 1).view_as(logits).to(logits)).sum(), named)
    return [logits.detach(), *grads]


def test_fast_step_equals_the_textbook_step() -> None:
    """In double precision through three cells, with a reduction: logits and every gradient. Rounding alone is left."""
    net = small().double()
    policy = Softmax(RELAXED, scale=1.0).double()
    fast = everything(net, X.double(), policy)
    net.fast = False
    plain = everything(net, X.double(), policy)
    assert len(fast) > 400
    for a, b in zip(fast, plain, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1e-3)


def test_one_fast_cell_equals_the_textbook_cell_in_single_precision() -> None:
    net = small()
    policy = Softmax(RELAXED, scale=1.0)
    s0, s1 = (torch.randn(8, 12, 8, 8, generator=torch.Generator().manual_seed(seed)).relu() for seed in (1, 2))
    cell = net.cells[0]
    found = []
    for fast in (True, False):
        plan = plan_of(policy.sample(), "normal", s0)
        named = [policy.alpha, *cell.parameters()]
        out = cell(s0, s1, plan, fast)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), named)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp_min(1e-2)


@pytest.fixture(scope="module")
def net() -> DartsNet:
    return small()


@pytest.mark.parametrize("seed", range(3))
def test_extracted_network_computes_the_same(net: DartsNet, seed: int) -> None:
    arch = SPACE.sample(np.random.default_rng(seed))
    expected = net(X, arch)
    one_hot = net(X, {name: {index: 1.0} for name, index in arch.items()})
    plain = net.extract(arch).train()
    for found in (one_hot, plain(X)):
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in plain.parameters()}
    names, parameters = zip(*plain.named_parameters(), strict=True)
    grads = torch.autograd.grad(plain(X).square().sum(), parameters, allow_unused=True)
    assert [name for name, grad in zip(names, grads, strict=True) if grad is None] == []
    assert net.costs(arch)["params"] == sum(p.numel() for p in plain.parameters())
    assert [op.signature for op in net.graph(arch)] == [op.signature for op in trace(plain, (3, 8, 8))]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_factors_add_up_to_the_graph(seed: int) -> None:
    """For every architecture, with no factor over more than four choices: exact expectations stay cheap."""
    arch = SPACE.sample(np.random.default_rng(seed))
    assert max(len(factor.scope) for factor in COSTED.factors()) == 4
    found = [op.signature for factor in COSTED.factors() for op in factor.at(tuple(arch[name] for name in factor.scope))]
    assert sorted(found) == sorted(op.signature for op in COSTED.graph(arch))


with torch.device("meta"):
    COSTED = DartsNet((3, 16, 16), 10, channels=4, cells=6)


def test_it_keeps_the_promises_of_every_network(net: DartsNet) -> None:
    check(net, archs=1, batch=4)


def test_mixtures_over_pairs_of_inputs_weigh_edges(net: DartsNet) -> None:
    """A node whose inputs are a mixture of two pairs is the mixture of the two nodes, in the cell where the nodes are the output."""
    arch = dict(arch_of("darts-v2"))
    name = inputs_name("normal", 5)
    both = {pair: {**arch, name: pair, **{edge_name("normal", s, 5): 3 for s in range(5)}} for pair in (0, 9)}
    cell = net.cells[0]
    s0, s1 = torch.rand(2, 12, 8, 8), torch.rand(2, 12, 8, 8)
    alone = {pair: cell(s0, s1, plan_of(a, "normal", s0), True) for pair, a in both.items()}
    mixed = cell(s0, s1, plan_of({**both[0], name: {0: 0.3, 9: 0.7}}, "normal", s0), True)
    assert torch.allclose(mixed, 0.3 * alone[0] + 0.7 * alone[9], atol=1e-5)


def test_a_node_that_only_none_enters_is_zero(net: DartsNet) -> None:
    mixture: dict[str, Any] = {name: {0: 1.0} for name in RELAXED.choices}
    assert torch.allclose(net(X, mixture), net.classifier.bias.expand(6, 4))


def test_the_layout_of_the_pictures_does_not_matter(net: DartsNet) -> None:
    arch = relaxed(0)
    a, b = net(X, arch), net(X.contiguous(memory_format=torch.channels_last), arch)
    assert torch.equal(a, b)


def test_odd_sides() -> None:
    torch.manual_seed(0)
    odd = DartsNet((1, 7, 9), 3, channels=4, cells=3)
    x = torch.randn(4, 1, 7, 9)
    arch = SPACE.sample(np.random.default_rng(0))
    expected = odd(x, arch)
    assert (odd.extract(arch).train()(x) - expected).abs().max() <= 2e-5 * expected.abs().max()
    mixture = relaxed(1)
    fast = odd(x, mixture)
    odd.fast = False
    assert (odd(x, mixture) - fast).abs().max() <= 1e-4 * fast.abs().max()


def test_it_is_known_by_name() -> None:
    with torch.device("meta"):
        found = build("darts", (3, 32, 32), 10)
    assert isinstance(found, DartsNet) and len(found.cells) == 8 and found.space.size == SPACE.size
    assert [cell.kind for cell in found.cells].index("reduce") == 2


def test_second_derivatives_agree() -> None:
    """What the Hessian in the architecture parameters is made of (RobustDARTS), through the whole network."""
    found = []
    for fast in (True, False):
        net, policy = small(fast=fast).double(), Softmax(RELAXED).double()
        loss = nn.functional.cross_entropy(net(X.double(), policy.sample()), torch.arange(6) % 4)
        (grad,) = torch.autograd.grad(loss, policy.alpha, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), policy.alpha)[0])
    assert found[1].abs().max() > 0
    assert (found[0] - found[1]).abs().max() <= 1e-8 * found[1].abs().max()


@pytest.mark.parametrize(("shape", "more", "said"), [((3, 3, 32), {}, "3x32"), ((3, 32, 32), {"cells": 2}, "at least 3 cells")])
def test_mistakes_are_said(shape: tuple[int, int, int], more: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DartsNet(shape, 10, **more)


# -- what methods change in it --------------------------------------------------------------------------------------------------


def test_partial_channels_as_the_published_code_has_them() -> None:
    """One edge at a time: operations on the first quarter, the rest past them, then the shuffle; edge weights multiply both."""
    net = small().partial_channels(4)
    for cell in (net.cells[0], net.cells[1]):  # a normal cell and a reduction
        s0, s1 = torch.rand(2, 2, 4 * cell.part, 8, 8).sub(0.5).unbind(0)
        cell.preprocess0 = cell.preprocess1 = _Given()
        policy = Softmax(RELAXED, scale=1.0, edges=INCOMING)
        policy.beta.data.normal_()
        mixture = policy.sample()
        fast, plain = (cell(s0, s1, plan_of(mixture, cell.kind, s0), fast) for fast in (True, False))
        nodes = [s0, s1]
        for target in NODES:
            total = torch.zeros(())
            for source in range(target):
                row = mixture[edge_name(cell.kind, source, target)]
                assert isinstance(row, dict)
                edge_weight = torch.stack(list(row.values())).sum()
                x, rest = nodes[source][:, : cell.part], nodes[source][:, cell.part :]
                mixed = sum((w / edge_weight * cell.option(source, target, i)(x) for i, w in row.items()), start=torch.zeros(()))
                rest = nn.functional.max_pool2d(rest, 2, 2) if cell.stride(source) == 2 else rest
                joined = torch.cat([mixed, rest], 1)
                n, c, h, w = joined.shape
                shuffled = joined.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
                total = total + edge_weight * shuffled
            nodes.append(total)
        expected = torch.cat(nodes[2:], 1)
        for found in (fast, plain):
            assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


class _Given(nn.Module):
    """Lets a cell's inputs through."""

    def forward(self, x: Tensor, fast: bool) -> Tensor:
        return x


def test_partial_channels_keep_the_other_weights(net: DartsNet) -> None:
    partial = net.partial_channels(2)
    assert partial.cells[0].part == 2
    own, other = dict(net.named_parameters()), dict(partial.named_parameters())
    kept = [name for name in other if ".edges." not in name]
    assert len(kept) > 10 and all(torch.equal(own[name], other[name]) and own[name] is not other[name] for name in kept)
    assert net(X, relaxed(0)).shape == partial(X, relaxed(0)).shape
    with pytest.raises(UserError, match="partial channels"):
        partial.extract(arch_of("darts-v1"))


@pytest.mark.parametrize("fast", [True, False])
def test_skip_dropout_drops_identities_alone(net: DartsNet, fast: bool) -> None:
    dropping = net.skip_dropout()
    dropping.fast = fast
    cell = dropping.cells[0]
    s = torch.rand(8, 12, 8, 8)
    skips = {**relaxed(0), **{name: {3: torch.tensor(1.0)} for name in RELAXED.choices if name.endswith(("02", "12"))}}
    whole, dropped = (cell(s, s, plan_of(skips, "normal", s), fast, rate)[:, :4] for rate in (0.0, 0.5))
    parts = [cell.preprocess0(s, fast), cell.preprocess1(s, fast)]
    allowed = torch.stack([2 * a * parts[0] + 2 * b * parts[1] for a in (0, 1) for b in (0, 1)])
    assert ((allowed - dropped).abs().min(0).values < 1e-4).all() and (whole - dropped).abs().max() > 0.1
    convolutions = {name: {4: torch.tensor(1.0)} for name in RELAXED.choices}
    assert torch.equal(dropping(X, convolutions, 0.5), dropping(X, convolutions))
    assert torch.equal(net(X, skips, 0.5), net(X, skips))


@pytest.mark.parametrize("name", ["darts", "pc-darts", "p-darts", "gdas", "fair-darts", "drnas"])
def test_methods_search_it(name: str) -> None:
    from sartor.data import load
    from sartor.methods import METHODS

    torch.manual_seed(0)
    net = DartsNet((1, 8, 8), 10, channels=4, cells=3)
    result = METHODS[name](net, load("digits", limit=96), steps=3, batch=16, seed=0)
    assert result.arch in SPACE
    assert set(result.policy.names) == set(RELAXED.choices)
