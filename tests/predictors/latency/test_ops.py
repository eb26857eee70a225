from __future__ import annotations

import numpy as np
import pytest

from sartor.errors import UserError
from sartor.hardware.cost import Factor, cost
from sartor.hardware.graph import Op, OpGraph
from sartor.predictors.latency.features import moved_values
from sartor.predictors.latency.ops import fit_ops, op_features


def roofline(op: Op) -> float:
    """A device: ms of work or of traffic, whichever is more, and a fixed cost; depthwise kernels are slow."""
    rate = 2e6 if op.groups > 1 else 2e7
    return max(op.macs / rate, moved_values(op) / 2e6) + 0.004


def convs(count: int, seed: int) -> list[Op]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        size, channels, out = int(rng.choice([4, 7, 8, 14, 16, 28, 32])), 8 * int(rng.integers(1, 33)), 8 * int(rng.integers(1, 33))
        kernel, style = int(rng.choice([3, 5])), int(rng.integers(3))
        if style == 0:
            found.append(Op("conv", (channels, size, size), (out, size, size)))
        elif style == 1:
            found.append(Op("conv", (channels, size, size), (out, size, size), kernel=kernel))
        else:
            found.append(Op("conv", (channels, size, size), (channels, size, size), kernel=kernel, groups=channels))
    return found


def noisy(ops: list[Op], seed: int = 0) -> np.ndarray:
    return np.array([roofline(op) for op in ops]) * np.exp(0.02 * np.random.default_rng(seed).standard_normal(len(ops)))


def test_unseen_ops_of_a_roofline() -> None:
    train, new = convs(200, 0), convs(300, 1)
    model = fit_ops(train, noisy(train))
    truth = np.array([roofline(op) for op in new])
    mean, deviation = model.op_latency(new)
    hits = np.abs(mean / truth - 1) <= 0.1
    assert hits.mean() > 0.9
    assert deviation[~hits].mean() > 1.5 * deviation[hits].mean()  # it knows where it is wrong
    x, log = op_features(train), np.log(noisy(train))
    line = np.linalg.lstsq(np.column_stack([np.ones(200), x]), log, rcond=None)[0]
    straight = np.exp(np.column_stack([np.ones(300), op_features(new)]) @ line)
    assert (np.abs(straight / truth - 1) <= 0.1).mean() < hits.mean() - 0.2  # a power law does not do


def test_it_prices_networks_and_learns_what_the_sum_misses() -> None:
    train = convs(200, 0)
    model = fit_ops(train, noisy(train))
    graphs = [
        OpGraph(tuple(Op(o.kind, o.in_shape, o.out_shape, o.kernel, o.stride, o.groups, inputs=(-1,)) for o in convs(8, s)), (8, 4, 4))
        for s in range(60)
    ]
    sums = model.predict(graphs)
    assert sums[0] == pytest.approx(sum(model.price(op) for op in graphs[0]))
    whole = 0.7 * sums + 0.3  # overlap, and the cost of a call
    calibrated = model.calibrated(graphs[:20], whole[:20])
    assert calibrated.predict(graphs[20:]) == pytest.approx(whole[20:], rel=0.05)
    factors = [Factor((), lambda _, op=op: (op,)) for op in graphs[0]]
    assert cost(factors, model.price, {}) == pytest.approx(sums[0])


def test_kinds_that_were_not_measured_are_refused() -> None:
    train = [op for op in convs(60, 0) if op.groups == 1]
    model = fit_ops(train, noisy(train))
    with pytest.raises(UserError, match="depthwise"):
        model.price(Op("conv", (8, 4, 4), (8, 4, 4), kernel=3, groups=8))
    with pytest.raises(UserError, match="at least 5 measured ops"):
        fit_ops([*train, Op("add", (8, 4, 4), (8, 4, 4))], np.ones(len(train) + 1))
    with pytest.raises(UserError, match="positive"):
        fit_ops(train, np.zeros(len(train)))
    with pytest.raises(UserError, match="one latency for each"):
        fit_ops(train, np.ones(3))


def test_ops_that_are_all_alike_have_one_latency() -> None:
    ops = [Op("add", (8, 4, 4), (8, 4, 4))] * 12
    assert fit_ops(ops, np.full(12, 0.5)).price(ops[0]) == pytest.approx(0.5)
