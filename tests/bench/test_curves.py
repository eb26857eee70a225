"""Curves against their definition, evaluation by evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.bench.cases import Case, Group
from sartor.bench.curves import GAP, REGRET, chosen_accuracy, curve, evaluations_to_optimum, measure, true_front
from sartor.bench.results import Row
from sartor.evaluators.tabular import Mode

row_lists = st.lists(st.integers(0, 15624), min_size=1, max_size=25)


def row_of(rows: list[int], device: str | None = None, mode: Mode = "oracle", fidelities: tuple[float | None, ...] = ()) -> Row:
    return Row(Case("x", Group("nb201-cifar10", device, mode), 0, len(rows)), tuple(rows), fidelities)


@given(row_lists, st.sampled_from(["oracle", "realistic"]))
def test_regret_is_that_of_the_best_seen_so_far(rows: list[int], mode: Mode) -> None:
    row = row_of(rows, mode=mode)
    tabular = row.case.group.tabular()
    found = curve(row, tabular, len(rows))
    for step in range(1, len(rows) + 1):
        chosen = max(rows[:step], key=lambda index: tabular.seen[index])  # the first of equals
        assert found[step - 1] == pytest.approx(94.3733 - 100 * tabular.reported[chosen])


@given(row_lists, st.sampled_from(["oracle", "realistic"]))
def test_gap_is_that_of_everything_so_far(rows: list[int], mode: Mode) -> None:
    row = row_of(rows, "raspi4", mode)
    tabular = row.case.group.tabular()
    found = curve(row, tabular, len(rows))
    assert found == pytest.approx([tabular.gap(rows[:step]) for step in range(1, len(rows) + 1)], abs=1e-12)


def test_oracle_regret_falls_and_realistic_may_rise() -> None:
    rows = list(range(300))
    oracle, realistic = (
        curve(row_of(rows, mode=mode), Group("nb201-cifar10", None, mode).tabular(), 300) for mode in ("oracle", "realistic")
    )
    assert (np.diff(oracle) <= 0).all() and (np.diff(realistic) > 0).any()


def test_an_early_end_stays_level() -> None:
    row = row_of([5, 1])
    found = curve(row, row.case.group.tabular(), 5)
    assert (found[2:] == found[1]).all() and len(found) == 5
    assert np.isinf(curve(row_of([]), row.case.group.tabular(), 2)).all()


def test_low_fidelity_chooses_nothing() -> None:
    tabular = Group("nb201-cifar10", None, "oracle").tabular()
    row = row_of([6111, 5, 6111], fidelities=(0.1, None, 1.0))
    assert chosen_accuracy(row, tabular).tolist() == [-math.inf, tabular.reported[5], tabular.best]
    assert evaluations_to_optimum(row, tabular) == 3
    assert curve(row, tabular, 3).tolist()[0] == math.inf and curve(row, tabular, 3)[2] == 0
    # With what a search can see in realistic mode there is only one fidelity.
    assert evaluations_to_optimum(row_of([5, 6111], mode="realistic", fidelities=(0.1, 0.1)), Group("nb201-cifar10").tabular()) == 2


def test_with_limits_only_what_keeps_them_is_chosen() -> None:
    group = Group("nb201-cifar10", "raspi4", "oracle", ("latency_ms<=20",))
    tabular = group.tabular()
    kept = np.flatnonzero(tabular.feasible)
    second, best = kept[np.argsort(tabular.reported[kept])[-2:]]
    row = Row(Case("x", group, 0, 4), (6111, int(second), 9930, int(best)))
    assert not tabular.feasible[[6111, 9930]].any() and measure(group) is REGRET
    expected = [math.inf, 100 * (tabular.reported[best] - tabular.reported[second])]
    assert curve(row, tabular, 4) == pytest.approx([expected[0], expected[1], expected[1], 0.0])
    assert evaluations_to_optimum(row, tabular) == 4


def test_optimum_that_was_not_reached() -> None:
    row = row_of([1, 2, 3])
    assert evaluations_to_optimum(row, row.case.group.tabular()) == math.inf


def test_measure_of_a_group() -> None:
    assert measure(Group("nb201-cifar10")) is REGRET
    assert measure(Group("nb201-cifar10", "raspi4")) is GAP


def test_true_front_trades_off() -> None:
    front = true_front(Group("nb201-cifar10", "raspi4", "oracle").tabular())
    assert (np.diff(front[:, 0]) > 0).all() and (np.diff(front[:, 1]) < 0).all() and len(front) > 20
    assert front[0, 0] == pytest.approx(1 - 0.943733)
