"""Medians, ranks and tests of significance, against definitions and tables."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.bench.cases import Case, Group, grid
from sartor.bench.results import Row
from sartor.bench.runner import run_case
from sartor.bench.summary import Comparison, compare, holm, significance, summarise, wilcoxon

GROUP = Group("nb201-cifar10", None, "oracle")


def comparison_of(curves: dict[str, list[list[float]]], groups: tuple[Group, ...] = (GROUP,)) -> Comparison:
    arrays = {strategy: np.array(values, dtype=float) for strategy, values in curves.items()}
    budget = next(iter(arrays.values())).shape[1]
    return Comparison(budget, tuple(curves), dict.fromkeys(groups, arrays), {group: {} for group in groups})


def test_ranks_share_ties() -> None:
    found = comparison_of({"a": [[3, 1], [3, 1]], "b": [[3, 2], [1, 1]], "c": [[4, 3], [2, 0]]}).ranks()
    assert found.tolist() == [[2.25, 1.75], [1.25, 2.25], [2.5, 2.0]]
    assert (found.sum(axis=0) == 6).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_steps_down(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert max(adjusted) <= 1 and adjusted[int(np.argmin(p_values))] == min(1.0, len(p_values) * min(p_values))
    for (p, q), (r, s) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert q == s if p == r else (q <= s) == (p < r) or q == s


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_wilcoxon_by_hand() -> None:
    """Ten positive differences of distinct size: W = 0, z = -27.5 / sqrt(96.25)."""
    a = np.arange(10) * 1.0
    expected = math.erfc(27.5 / math.sqrt(96.25) / math.sqrt(2))
    assert wilcoxon(a, a + np.arange(1, 11)) == pytest.approx(expected)
    assert wilcoxon(a, a) == 1.0


def test_a_strategy_that_mostly_chose_nothing_is_judged_by_that() -> None:
    """An infinite regret is the largest difference there is: ten of them among ties, and ten of either sign beside finite pairs."""
    inf, best = math.inf, np.arange(20) * 1.0
    expected = wilcoxon(best, best + np.where(best < 10, 100.0, 0.0))
    assert wilcoxon(best, np.where(best < 10, inf, best)) == pytest.approx(expected) and expected < 0.01
    assert wilcoxon(np.full(8, inf), np.full(8, inf)) == 1.0
    mixed = wilcoxon(np.array([inf, 2, 3, 5, inf, 9]), np.array([1, inf, 4, 5, inf, 6]))
    assert mixed == pytest.approx(wilcoxon(np.array([101.0, 2, 3, 5, 5, 9]), np.array([1.0, 102, 4, 5, 5, 6])))


def test_tests_find_a_difference_and_only_that() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 40))
    found = significance(noise + np.array([[0.0], [3.0], [0.0]]), ("a", "b", "c"), 0)
    assert found is not None and found["best"] == "a" and found["blocks"] == 40
    assert found["friedman_p"] < 1e-6 and found["wilcoxon_holm_p"]["b"] < 1e-5 and found["wilcoxon_holm_p"]["c"] > 0.05
    alike = significance(np.ones((3, 6)), ("a", "b", "c"), 0)
    assert alike is not None and alike["friedman_p"] is None and alike["wilcoxon_holm_p"] == {"b": 1.0, "c": 1.0}
    assert significance(noise[:, :4], ("a", "b", "c"), 0) is None and significance(noise[:1], ("a",), 0) is None


CASES = grid(["random", "nsga2:population=4"], ["nb201-cifar10"], [None, "raspi4"], seeds=6, budget=30, mode="oracle")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [run_case(case) for case in CASES]


def test_a_seed_that_one_strategy_lacks_counts_for_none(rows: list[Row]) -> None:
    lacking = [row for row in rows if (row.case.strategy, row.case.group, row.case.seed) != ("random", GROUP, 2)]
    comparison = compare(CASES, lacking)
    other = Group("nb201-cifar10", "raspi4", "oracle")
    assert comparison.curves[GROUP]["nsga2:population=4"].shape == (5, 30)
    assert comparison.curves[other]["random"].shape == (6, 30)
    assert comparison.blocks().shape == (2, 11)
    assert compare(CASES, [row for row in rows if row.case.group == other]).groups == (other,)


def test_summary_says_what_the_rows_say(rows: list[Row]) -> None:
    summary = json.loads(json.dumps(summarise(compare(CASES, rows)), allow_nan=False))
    single, double = summary["groups"]
    assert (single["task"], single["device"], single["mode"], single["seeds"]) == ("nb201-cifar10", None, "oracle", 6)
    assert single["steps"] == double["steps"] == [10, 25, 30]
    tabular = GROUP.tabular()
    best = [100 * tabular.reported[list(row.rows)].max() for row in rows if row.case.group == GROUP and row.case.strategy == "random"]
    found = single["strategies"]["random"]
    assert found["test_accuracy"]["mean"] == pytest.approx(np.mean(best), rel=1e-5)
    assert found["test_accuracy"]["sd"] == pytest.approx(np.std(best, ddof=1), rel=1e-4)
    regrets = sorted(94.3733 - accuracy for accuracy in best)
    assert found["median"][-1] == pytest.approx(regrets[2], abs=1e-4)
    assert found["quartiles"][-1] == pytest.approx([regrets[1], regrets[4]], abs=1e-4)
    assert found["optimum"] == {"median_evaluations": None, "mean_evaluations": None, "reached": 0.0}
    assert double["measure"] == "hypervolume gap" and "test_accuracy" not in double["strategies"]["random"]
    assert sum(summary["ranks"].values()) == pytest.approx(3) and list(summary["ranks"].values()) == sorted(summary["ranks"].values())
    assert summary["tests"]["blocks"] == 12


def test_optimum_in_the_summary() -> None:
    case = Case("random", GROUP, 0, 4)
    summary = summarise(compare([case], [Row(case, (1, 2, 6111, 4))]))
    found = summary["groups"][0]["strategies"]["random"]
    assert found["optimum"] == {"median_evaluations": 3.0, "mean_evaluations": 3.0, "reached": 1.0}
    assert found["test_accuracy"]["sd"] is None and summary["tests"] is None


def test_nothing_to_summarise() -> None:
    assert summarise(compare(CASES, [])) == {"budget": 30, "groups": [], "ranks": {}, "tests": None}
