"""TinyNAS: the space whose feasible networks compute most is chosen, before any training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.hardware import trace
from sartor.spaces import build
from sartor.spaces.mcu import MULTIPLIERS, Row, choose_space, mcu, pick, sizes
from sartor.spaces.mobile import MobileNet


@given(st.sampled_from([8, 12, 16, 24, 32, 48, 64, 96, 128, 224]), st.sampled_from(MULTIPLIERS), st.integers(0, 2**31))
def test_every_space_of_the_grid_builds_and_keeps_to_widths_of_eight(size: int, multiplier: float, seed: int) -> None:
    with torch.device("meta"):
        net = MobileNet(mcu(size, multiplier), (3, size, size), 10)
        arch = net.space.sample(np.random.default_rng(seed))
        graph = trace(net.extract(arch).eval(), (3, size, size))
    assert all(op.out_shape[0] % 8 == 0 for op in graph if op.kind == "conv")
    assert not {op.kind for op in graph} & {"se", "resize"} and {op.act for op in graph} <= {"", "relu"}
    assert net.costs(arch)["macs"] == graph.macs
    assert min(graph.ops[-2].in_shape[1:]) >= (2 if size < 16 else 3)  # the last map is still a map


def test_picture_sizes() -> None:
    assert sizes(32) == (16, 24, 32) and sizes(8) == (8,) and sizes(28) == (16, 24, 28)
    assert sizes(96) == (48, 64, 80, 96)


def _row(multiplier: float, macs: list[float], share: float = 0.5) -> Row:
    return Row(multiplier, 32, share, float(np.mean(macs)), tuple(np.quantile(macs, np.linspace(0.05, 0.95, 19)).tolist()))


def test_the_dominating_distribution_is_picked_and_a_crossing_is_told() -> None:
    low, high, wide = _row(0.25, [1.0, 2.0, 3.0]), _row(0.5, [2.0, 3.0, 4.0]), _row(0.75, [0.5, 1.0, 9.0])
    chosen = pick([low, high])
    assert chosen.multiplier == 0.5 and chosen.dominates_all and "more at every level" in chosen.sentence()
    crossing = pick([low, high, wide])  # means 2, 3, 3.5
    assert crossing.multiplier == 0.75 and not crossing.dominates_all and "most on average" in crossing.sentence()
    assert not low.dominates(high) and not low.dominates(low) and high.dominates(Row(1.0, 32, 0.0, None))
    with pytest.raises(UserError, match=r"at best 1\.0%"):
        pick([Row(1.0, 32, 0.01, None)])


@given(st.lists(st.lists(st.floats(1, 100), min_size=3, max_size=10), min_size=2, max_size=6))
def test_what_dominates_all_is_always_picked(groups: list[list[float]]) -> None:
    rows = [_row(float(i), macs) for i, macs in enumerate(groups)]
    winners = [row for row in rows if all(row.dominates(other) for other in rows if other is not row)]
    chosen = pick(rows)
    if winners and max(r.mean_macs or 0 for r in rows) == winners[0].mean_macs:
        assert chosen.multiplier == winners[0].multiplier and chosen.dominates_all
    assert next(r for r in rows if r.multiplier == chosen.multiplier).mean_macs == max(r.mean_macs or 0 for r in rows)


def test_tighter_limits_choose_a_smaller_space() -> None:
    def within(peak: int, params: int):
        def feasible(net: MobileNet, arch: Arch) -> bool:
            costs = net.costs(arch)
            return costs["peak_bytes"] <= peak and costs["params"] <= params

        return feasible

    def choose(peak: int, params: int):
        return choose_space(3, 32, 10, within(peak, params), multipliers=(0.25, 0.75, 1.25), samples=60)

    roomy, tight = choose(10**9, 10**9), choose(40_000, 60_000)
    assert (roomy.multiplier, roomy.size) == (1.25, 32)
    by_place = {(r.multiplier, r.size): r for r in tight.rows}
    assert tight.multiplier < 1.25 and by_place[tight.multiplier, tight.size].mean_macs < max(r.mean_macs or 0 for r in roomy.rows)
    assert all(r.share == 1.0 for r in roomy.rows) and by_place[1.25, 32].share < 1.0
    assert choose(40_000, 60_000) == tight  # a function of its arguments
    with pytest.raises(UserError, match="relax a limit"):
        choose(10, 10)


def test_the_default_of_the_registry_is_multiplier_one() -> None:
    with torch.device("meta"):
        net = build("mcu", (1, 32, 32), 3)
    assert net.spec == mcu(32, 1.0)
