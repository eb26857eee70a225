"""The fast mixed operation computes what the textbook one computes, forward and in every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sartor.layers.mixed import (
    Term,
    average_pool,
    channel_norm,
    from_phases,
    mixed_sum,
    pointwise_norms,
    to_phases,
)  # fmt: skip
from sartor.layers.primitives import NONE, PRIMITIVES, Candidate, Node, candidate, terms_of
from sartor.layers.products import as_maps, as_rows

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outcome(compute: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value, and the gradients of a random projection of it in all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = compute(*leaves)
    grads = torch.autograd.grad((value * drawn(*value.shape, seed=9, dtype=value.dtype)).sum(), leaves)
    return [value.detach(), *grads]


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, each relative to the largest value of its tensor."""
    assert [x.shape for x in found] == [x.shape for x in expected]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in zip(found, expected, strict=True))


def textbook_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, None, None, training=True, eps=1e-5)


@DTYPES
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_norm(dtype: torch.dtype, relu: bool, layout: torch.memory_format) -> None:
    z = (drawn(4, 6, 5, 7, dtype=dtype) + 0.7).contiguous(memory_format=layout)  # off centre: the mean takes part
    weight = drawn(9, 6, 1, 1, seed=1, dtype=dtype)

    def textbook(z: Tensor, weight: Tensor) -> Tensor:
        y = textbook_norm(F.conv2d(z, weight))
        return torch.relu(y) if relu else y

    fast = outcome(lambda z, weight: pointwise_norms([z], [weight], relu=relu)[0], (z, weight))
    assert worst(fast, outcome(textbook, (z, weight))) < TOLERANCE[dtype]


@DTYPES
def test_channel_norm(dtype: torch.dtype) -> None:
    x = 3.0 * drawn(4, 5, 6, 7, dtype=dtype) + 2.0
    assert worst(outcome(channel_norm, [x]), outcome(textbook_norm, [x])) < TOLERANCE[dtype]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_average_pool_leaves_padding_out(stride: int, size: tuple[int, int]) -> None:
    x = drawn(2, 3, *size)

    def textbook(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)

    assert worst(outcome(lambda x: average_pool(x, stride), [x]), outcome(textbook, [x])) < 1e-12


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_phases_are_a_permutation_and_turn_dilation_into_none(batch: int, channels: int, high: int, wide: int) -> None:
    x = drawn(batch, channels, 2 * high, 2 * wide)
    assert torch.equal(from_phases(to_phases(x)), x)
    assert torch.equal(as_maps(as_rows(x), x.shape), x)
    for kernel in (3, 5):
        weight = drawn(channels, 1, kernel, kernel, seed=1)
        dilated = F.conv2d(x, weight, None, 1, 2 * (kernel // 2), 2, channels)
        ordinary = F.conv2d(to_phases(x), weight, None, 1, kernel // 2, 1, channels)
        assert torch.allclose(from_phases(ordinary), dilated, atol=1e-12)


def candidates(channels: int, stride: int, edges: int, dtype: torch.dtype) -> list[list[Candidate]]:
    torch.manual_seed(3)
    return [[candidate(name, channels, stride).to(dtype) for name in PRIMITIVES] for _ in range(edges)]


def node_outcome(
    edges: list[list[Candidate]], sources: Sequence[Tensor], shares: Tensor, stride: int, support: Sequence[Sequence[int]], *, fast: bool
) -> list[Tensor]:
    parameters = [p for edge, options in zip(edges, support, strict=True) for i in options for p in edge[i].parameters()]

    def compute(shares: Tensor, *inputs: Tensor) -> Tensor:
        xs = inputs[: len(sources)]
        if fast:
            nodes = [Node(x, stride) for x in xs]
            taking_part = [(e, i) for e, options in enumerate(support) for i in options if i != NONE]
            terms = [term for term in terms_of([(edges[e][i], nodes[e]) for e, i in taking_part]) if term is not None]
            return mixed_sum(terms, torch.stack([shares[e, i] for e, i in taking_part]))
        return sum((shares[e, i] * edges[e][i](xs[e]) for e, options in enumerate(support) for i in options), start=torch.zeros(()))

    leaves = [x.detach().clone().requires_grad_() for x in (shares, *sources)]
    value = compute(*leaves)
    grads = torch.autograd.grad((value * drawn(*value.shape, seed=9, dtype=value.dtype)).sum(), [*leaves, *parameters])
    return [value.detach(), *grads]


@DTYPES
@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (1, 7), (2, 7)])
def test_a_node_of_all_candidates_of_two_edges(dtype: torch.dtype, stride: int, size: int) -> None:
    edges = candidates(6, stride, 2, dtype)
    sources = [drawn(4, 6, size, size, seed=seed, dtype=dtype) for seed in (4, 5)]
    shares = torch.softmax(drawn(2, 8, seed=6, dtype=dtype), 1)
    support = [range(8)] * 2
    fast, plain = (node_outcome(edges, sources, shares, stride, support, fast=fast) for fast in (True, False))
    assert len(fast) == 1 + 3 + 2 * (4 * 2 + 2 * 2 + (2 if stride == 2 else 0))
    assert worst(fast, plain) < TOLERANCE[dtype]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.sampled_from(range(1, 8)), min_size=1, max_size=3, unique=True), min_size=1, max_size=3), st.integers(1, 2))
def test_any_support(support: list[list[int]], stride: int) -> None:
    """Candidates that were dropped or not drawn are not computed; a share may be zero or negative."""
    edges = candidates(4, stride, len(support), torch.float64)
    sources = [drawn(3, 4, 4, 6, seed=seed) for seed in range(len(support))]
    shares = drawn(len(support), 8, seed=6)
    shares[0, support[0][0]] = 0.0
    fast, plain = (node_outcome(edges, sources, shares, stride, support, fast=fast) for fast in (True, False))
    assert worst(fast, plain) < 1e-9


def test_gradients_that_nobody_asks_for_are_not_computed() -> None:
    z, weight, shares = drawn(2, 4, 4, 4).requires_grad_(), drawn(4, 4, 1, 1, seed=1), torch.tensor([0.5], dtype=torch.float64)
    mixed_sum([Term(z, weight)], shares).sum().backward()
    assert z.grad is not None and weight.grad is None and shares.grad is None


def test_a_constant_map_is_normalised_to_zero() -> None:
    """Variance zero: the textbook form divides by sqrt(eps), and so does this."""
    z = torch.ones(2, 3, 4, 4)
    assert pointwise_norms([z], [drawn(3, 3, 1, 1, dtype=torch.float32)])[0].abs().max() < 1e-3


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives(stride: int) -> None:
    """The gradient of the squared length of the gradient in the shares, through two nodes in a row."""
    edges, shares = candidates(4, stride, 2, torch.float64), torch.softmax(drawn(2, 8, seed=6), 1)
    again = candidates(4, 1, 1, torch.float64)[0]
    x = drawn(3, 4, 8, 8)
    found = []
    for fast in (True, False):
        alpha, source = shares.clone().requires_grad_(), x.clone().requires_grad_()
        if fast:
            node = Node(source, stride)
            terms = terms_of([(edges[e][i], node) for e in range(2) for i in range(1, 8)])
            weights = torch.stack([alpha[e, i] for e in range(2) for i in range(1, 8)])
            inner = Node(mixed_sum([t for t in terms if t is not None], weights), 1)
            out = mixed_sum([t for t in terms_of([(again[i], inner) for i in range(1, 8)]) if t is not None], alpha[0, 1:])
        else:
            middle = sum((alpha[e, i] * edges[e][i](source) for e in range(2) for i in range(1, 8)), start=torch.zeros(()))
            out = sum((alpha[0, i] * again[i](middle) for i in range(1, 8)), start=torch.zeros(()))
        loss = (out.square() * drawn(*out.shape, seed=9)).sum()
        grads = torch.autograd.grad(loss, [alpha, source], create_graph=True)
        second = torch.autograd.grad(grads[0].square().sum() + grads[1].square().sum(), [alpha, source])
        found.append([loss.detach(), *(g.detach() for g in grads), *second])
    assert worst(*found) < 1e-9
