from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.hardware import Op, OpGraph, best_order, peak_bytes, trace, weight_bytes
from sartor.hardware.memory import ELEMENTWISE, NEVER, TINYENGINE, timeline

from .nets import random_net

KINDS = ("act", "add", "conv", "se", "depthwise")


@st.composite
def graphs(draw: st.DrawFn, most: int = 8) -> OpGraph:
    """DAGs in which every rule can apply: few different sizes, so that operands often fit."""
    sizes = st.sampled_from([(4, 1, 1), (4, 2, 2), (2, 2, 4), (8, 3, 3), (5, 3, 1)])
    shapes = {-1: draw(sizes)}
    ops = []
    for index in range(draw(st.integers(1, most))):
        sources = tuple(draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=3, unique=True)))
        kind, shape = draw(st.sampled_from(KINDS)), draw(sizes)
        if kind == "depthwise":
            kind, channels = "conv", shapes[sources[0]][0]
            shape = (channels, *shape[1:])
            ops.append(Op("conv", shapes[sources[0]], shape, kernel=3, groups=channels, inputs=sources))
        else:
            ops.append(Op(kind, shapes[sources[0]], shape, inputs=sources, hidden=1, act="relu" if kind == "act" else ""))
        shapes[index] = shape
    return OpGraph(tuple(ops), shapes[-1])


rules = st.sampled_from([NEVER, ELEMENTWISE, TINYENGINE, frozenset({"depthwise"})])


def _numel(graph: OpGraph, tensor: int) -> int:
    return int(np.prod(graph.input_shape if tensor < 0 else graph.ops[tensor].out_shape))


def _cost(graph: OpGraph, live: frozenset[int], done: frozenset[int], index: int, in_place: frozenset[str]) -> tuple[int, frozenset[int]]:
    """Bytes alive while `index` runs, and the tensors alive after it, by the rules as the module states them."""
    op, total = graph.ops[index], sum(_numel(graph, t) for t in live)
    readers = {t: [i for i in range(len(graph)) if t in graph.sources(i)] for t in live | {index}}
    dying = [t for t in set(graph.sources(index)) if all(i == index or i in done for i in readers[t])]
    own, needed = _numel(graph, index), total + _numel(graph, index)
    if op.kind in in_place and op.kind != "conv" and any(_numel(graph, t) == own for t in dying):
        needed = total + (op.out_shape[0] if op.kind == "se" else 0)
    summing = op.kind == "conv" and len(op.inputs) > 1
    if summing and "sum" in in_place and any(_numel(graph, t) == own for t in dying if t != op.inputs[0]):
        needed = total
    depthwise = op.kind == "conv" and op.groups == op.in_shape[0] == op.out_shape[0] and not summing
    if depthwise and "depthwise" in in_place and any(_numel(graph, t) >= own for t in dying):
        needed = total + op.out_shape[1] * op.out_shape[2]
    return needed, (live | {index}) - set(dying)


def _simulate(graph: OpGraph, order: tuple[int, ...], in_place: frozenset[str] = NEVER) -> int:
    """Peak by playing the order with a set of live tensors."""
    live, peak = frozenset({-1}), _numel(graph, -1)
    for place, index in enumerate(order):
        needed, live = _cost(graph, live, frozenset(order[:place]), index, in_place)
        peak = max(peak, needed)
    return peak


def _brute_force(graph: OpGraph, in_place: frozenset[str]) -> int:
    """Smallest peak over every legal order, by trying them all; only orders that are worse already are cut short."""
    best = [10**9]

    def visit(order: tuple[int, ...], live: frozenset[int], peak: int) -> None:
        if peak >= best[0]:
            return
        if len(order) == len(graph):
            best[0] = peak
            return
        done = frozenset(order)
        for index in range(len(graph)):
            if index not in done and all(s < 0 or s in done for s in graph.sources(index)):
                needed, after = _cost(graph, live, done, index, in_place)
                visit((*order, index), after, max(peak, needed))

    visit((), frozenset({-1}), _numel(graph, -1))
    return best[0]


@given(graphs(), st.sampled_from([1, 4]))
def test_peak_equals_simulation(graph: OpGraph, size: int) -> None:
    assert peak_bytes(graph, size) == size * _simulate(graph, tuple(range(len(graph))))


@given(graphs(), rules)
@settings(max_examples=100, deadline=None)
def test_best_order_equals_brute_force_and_is_never_above_the_naive_order(graph: OpGraph, in_place: frozenset[str]) -> None:
    schedule = best_order(graph, in_place=in_place)
    assert schedule.exact and sorted(schedule.order) == list(range(len(graph)))
    assert all(s < 0 or schedule.order.index(s) < schedule.order.index(i) for i in range(len(graph)) for s in graph.sources(i))
    assert schedule.peak_bytes == _brute_force(graph, in_place) == _simulate(graph, schedule.order, in_place)
    assert schedule.peak_bytes <= peak_bytes(graph, in_place=in_place) <= peak_bytes(graph)


@given(graphs(), rules, st.randoms(use_true_random=False))
def test_memory_over_time_is_the_simulation_step_by_step(graph: OpGraph, in_place: frozenset[str], random: Random) -> None:
    order: list[int] = []
    while len(order) < len(graph):
        ready = [i for i in range(len(graph)) if i not in order and all(s < 0 or s in order for s in graph.sources(i))]
        order.append(random.choice(ready))
    moments, live = timeline(graph, order=order, in_place=in_place), frozenset({-1})
    for place, (index, moment) in enumerate(zip(order, moments, strict=True)):
        needed, after = _cost(graph, live, frozenset(order[:place]), index, in_place)
        assert (moment.op, moment.bytes) == (index, needed) and {t for t, _ in moment.tensors} == live | {index}
        live = after
    assert max(_numel(graph, -1), *(m.bytes for m in moments)) == peak_bytes(graph, order=order, in_place=in_place)


def test_residual_keeps_its_shortcut_alive() -> None:
    shape = (4, 2, 2)
    ops = (Op("conv", shape, (8, 2, 2)), Op("conv", (8, 2, 2), shape), Op("add", shape, shape, inputs=(-1, 1)))
    graph = OpGraph(ops, shape)
    assert peak_bytes(graph) == 16 + 32 + 16  # the input waits for the addition while the wide tensor is read
    assert peak_bytes(graph, 4) == 4 * peak_bytes(graph)
    assert weight_bytes(graph) == 2 * 32 + 4 * 12


def test_each_rule_saves_what_it_says() -> None:
    shape = (6, 4, 4)
    n = 6 * 16

    def peak(op: Op, *rules: str) -> int:
        return peak_bytes(OpGraph((op,), shape), in_place=frozenset(rules))

    act, add, se = Op("act", shape, shape, act="relu"), Op("add", shape, shape, inputs=(-1,)), Op("se", shape, shape, hidden=2)
    assert (peak(act), peak(act, "act"), peak(act, "add")) == (2 * n, n, 2 * n)
    assert (peak(add), peak(add, "add")) == (2 * n, n)
    assert (peak(se), peak(se, "se")) == (2 * n, n + 6)
    same, halved = (Op("conv", shape, (6, s, s), kernel=3, stride=4 // s, groups=6) for s in (4, 2))
    assert (peak(same), peak(same, "depthwise")) == (2 * n, n + 16)  # N + 1 channels instead of 2 N
    assert (peak(halved), peak(halved, "depthwise")) == (n + 24, n + 4)
    dense = Op("conv", shape, shape, kernel=3)
    assert peak(dense, *TINYENGINE) == 2 * n  # every output reads every channel
    kept = OpGraph((act, Op("add", shape, shape, inputs=(-1, 0))), shape)
    assert peak_bytes(kept, in_place={"act"}) == 3 * n  # the addition still reads what the activation would overwrite
    assert peak_bytes(kept, in_place={"act", "add"}) == 2 * n


def test_external_tensors_cost_nothing_and_are_not_written_over() -> None:
    shape = (2, 2, 2)
    graph = OpGraph((Op("act", shape, shape, act="relu"), Op("act", shape, shape, act="relu")), shape)
    assert peak_bytes(graph, in_place=ELEMENTWISE) == 8
    assert peak_bytes(graph, in_place=ELEMENTWISE, external={-1}) == 8  # the first result takes place of its own
    assert peak_bytes(graph, in_place=ELEMENTWISE, external={-1, 1}) == 8
    assert peak_bytes(graph, external={-1}) == 16


def _cell(width: int, chains: int, length: int) -> OpGraph:
    """Two inputs, many chains of separable convolutions between them and an addition tree: the shape of a searched cell."""
    small, wide = (width, 8, 8), (4 * width, 8, 8)
    ops = [Op("conv", small, small)]
    ends = []
    for chain in range(chains):
        last = 0
        for step in range(length):
            shape = wide if step == chain % length and step < length - 1 else small
            ops.append(Op("conv", ops[last].out_shape, shape, inputs=(last,)))
            last = len(ops) - 1
        ends.append(last)
    while len(ends) > 1:
        ops.append(Op("add", small, small, inputs=(ends.pop(0), ends.pop(0))))
        ends.append(len(ops) - 1)
    return OpGraph(tuple(ops), small)


def test_cells_of_practical_size_are_solved_exactly_and_reordering_pays() -> None:
    graph = _cell(8, chains=8, length=4)
    stacked = OpGraph(
        tuple(replace(op, inputs=tuple(s + n * len(graph) for s in graph.sources(i))) for n in range(5) for i, op in enumerate(graph)),
        graph.input_shape,
    )
    schedule = best_order(stacked)
    assert len(stacked) == 200 and schedule.exact
    worst = sorted(range(len(graph)), key=lambda i: (graph.ops[i].kind == "add", (i - 1) % 4 if i else -1))  # breadth first
    assert schedule.peak_bytes == best_order(graph).peak_bytes < peak_bytes(graph, order=worst)
    assert schedule.peak_bytes <= peak_bytes(stacked)


def _bytecodes(work: Callable[[], object]) -> int:
    """Bytecode instructions that Python runs for `work`: a count, so that a busy machine changes nothing."""
    count = 0

    def tracer(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("look", [best_order, peak_bytes, timeline])
def test_work_on_a_chain_grows_with_its_length(look: Callable[[OpGraph], object]) -> None:
    shape = (4, 8, 8)
    short, long = (OpGraph((Op("conv", shape, shape),) * length, shape) for length in (300, 600))
    assert _bytecodes(lambda: look(long)) < 2.3 * _bytecodes(lambda: look(short))


def test_search_limit_falls_back_to_a_known_order_and_says_so() -> None:
    graph = _cell(3, chains=7, length=5)
    full, cut = best_order(graph), best_order(graph, states=0)
    assert full.exact and not cut.exact
    assert full.peak_bytes < cut.peak_bytes <= peak_bytes(graph)
    assert cut.peak_bytes == peak_bytes(graph, order=cut.order)


@pytest.mark.parametrize("seed", range(4))
def test_best_order_of_traced_nets_is_no_worse(seed: int) -> None:
    graph = trace(*random_net(seed))
    schedule = best_order(graph, in_place=TINYENGINE)
    assert schedule.exact and schedule.peak_bytes <= peak_bytes(graph, in_place=TINYENGINE)
