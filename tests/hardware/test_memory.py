from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.hardware import Op, OpGraph, best_order, peak_bytes, trace, weight_bytes

from .nets import random_net


@st.composite
def graphs(draw: st.DrawFn) -> OpGraph:
    ops = []
    for index in range(draw(st.integers(1, 7))):
        sources = draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=2, unique=True))
        ops.append(Op("act", (1, 1, 1), (draw(st.integers(1, 50)), 1, 1), act="relu", inputs=tuple(sources)))
    return OpGraph(tuple(ops), (draw(st.integers(1, 50)), 1, 1))


def _simulate(graph: OpGraph, order: tuple[int, ...], size: int) -> int:
    """Peak by playing the order with a set of live tensors."""
    live, peak = {-1}, 0
    numel = lambda t: int(np.prod(graph.input_shape if t < 0 else graph.ops[t].out_shape)) * size  # noqa: E731
    peak = numel(-1)
    for place, index in enumerate(order):
        live.add(index)
        peak = max(peak, sum(map(numel, live)))
        later = {source for other in order[place + 1 :] for source in graph.sources(other)}
        read = {source for other in range(len(graph)) for source in graph.sources(other)}
        live = {tensor for tensor in live if tensor in later or (tensor not in read)}
    return peak


@given(graphs(), st.sampled_from([1, 4]))
def test_peak_equals_simulation(graph: OpGraph, size: int) -> None:
    assert peak_bytes(graph, size) == _simulate(graph, tuple(range(len(graph))), size)


@given(graphs())
def test_best_order_equals_brute_force(graph: OpGraph) -> None:
    schedule = best_order(graph)
    legal = [order for order in itertools.permutations(range(len(graph)))
             if all(s < 0 or order.index(s) < order.index(i) for i in order for s in graph.sources(i))]  # fmt: skip
    assert schedule.exact and schedule.order in legal
    assert schedule.peak_bytes == min(_simulate(graph, order, 1) for order in legal) == peak_bytes(graph, order=schedule.order)


def test_residual_keeps_its_shortcut_alive() -> None:
    shape = (4, 2, 2)
    ops = (Op("conv", shape, (8, 2, 2)), Op("conv", (8, 2, 2), shape), Op("add", shape, shape, inputs=(-1, 1)))
    graph = OpGraph(ops, shape)
    assert peak_bytes(graph) == 16 + 32 + 16  # the input waits for the addition while the wide tensor is read
    assert peak_bytes(graph, 4) == 4 * peak_bytes(graph)
    assert weight_bytes(graph) == 2 * 32 + 4 * 12


def test_search_limit_falls_back_to_the_given_order_and_says_so() -> None:
    graph = trace(*random_net(3))
    schedule = best_order(graph, states=1)
    assert not schedule.exact and schedule.order == tuple(range(len(graph))) and schedule.peak_bytes == peak_bytes(graph)


@pytest.mark.parametrize("seed", range(4))
def test_best_order_of_traced_nets_is_no_worse(seed: int) -> None:
    graph = trace(*random_net(seed))
    assert best_order(graph).peak_bytes <= peak_bytes(graph)
