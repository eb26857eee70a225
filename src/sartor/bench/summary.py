"""Figures of a comparison: medians with quartiles, ranks over tasks, and whether the differences could be chance.

Blocks of the tests are (task, device, seed): the same for every strategy. Friedman's test asks whether all strategies are alike (Demsar
2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, section 3.2.2); Wilcoxon's signed-rank test, two-sided, asks
it of the best and each other (section 3.1.3), with Holm's correction for the number of strategies (section 3.2.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartor.bench.cases import Case, Group
from sartor.bench.curves import chosen_accuracy, curves, evaluations_to_optimum, measure
from sartor.bench.results import Row

STEPS = (10, 25, 50, 100, 200, 300, 400, 800, 1600, 3200, 6400, 12800)


@dataclass(frozen=True)
class Comparison:
    """Curves `(seeds, budget)` of every strategy in every group, and the rows that they come from; the seeds are those that all have."""

    budget: int
    strategies: tuple[str, ...]
    curves: Mapping[Group, Mapping[str, np.ndarray]]
    rows: Mapping[Group, Mapping[str, tuple[Row, ...]]]

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(self.curves)

    def ranks(self) -> np.ndarray:
        """Mean rank after each evaluation `(strategies, budget)`: 1 is best, ties share theirs, every group weighs the same."""
        from scipy.stats import rankdata

        found = [rankdata(np.stack([curves[s] for s in self.strategies]), axis=0).mean(axis=1) for curves in self.curves.values()]
        return np.mean(found, axis=0)  # type: ignore[no-any-return]

    def blocks(self) -> np.ndarray:
        """The measure at the end, `(strategies, blocks)`."""
        return np.stack([np.concatenate([curves[s][:, -1] for curves in self.curves.values()]) for s in self.strategies])


def compare(cases: Sequence[Case], rows: Sequence[Row]) -> Comparison:
    """Arrange rows for comparison; a seed that a strategy lacks in a group is left out of that group.

    Strategies without any row, and groups without a seed that is left, are not compared.
    """
    found = {row.case: row for row in rows}
    budget = max(case.budget for case in cases)
    strategies = tuple(dict.fromkeys(case.strategy for case in cases if case in found))
    seeds: dict[Group, dict[int, dict[str, Row]]] = {}
    for case in cases:
        if case in found:
            seeds.setdefault(case.group, {}).setdefault(case.seed, {})[case.strategy] = found[case]
    kept: dict[Group, dict[str, tuple[Row, ...]]] = {}
    for group, by_seed in seeds.items():
        complete = [row for row in by_seed.values() if len(row) == len(strategies)]
        if complete:
            kept[group] = {s: tuple(row[s] for row in complete) for s in strategies}
    drawn = {group: {s: curves(list(rows), budget) for s, rows in of.items()} for group, of in kept.items()}
    return Comparison(budget, strategies, drawn, kept)


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain numbers, for JSON; what is infinite or undefined is None."""
    return {
        "budget": comparison.budget,
        "groups": [_group(comparison, group) for group in comparison.groups],
        **_over_groups(comparison),
    }


def _over_groups(comparison: Comparison) -> dict[str, Any]:
    if not comparison.groups:
        return {"ranks": {}, "tests": None}
    final = comparison.ranks()[:, -1]
    order = np.argsort(final, kind="stable")
    ranks = {comparison.strategies[i]: round(float(final[i]), 3) for i in order}
    return {"ranks": ranks, "tests": significance(comparison.blocks(), comparison.strategies, int(order[0]))}


def _group(comparison: Comparison, group: Group) -> dict[str, Any]:
    judged = measure(group)
    steps = [*(step for step in STEPS if step < comparison.budget), comparison.budget]
    strategies = {s: _strategy(comparison, group, s, steps) for s in comparison.strategies}
    seeds = len(next(iter(comparison.rows[group].values())))
    head = {
        "task": group.task,
        "device": group.device,
        "mode": group.mode,
        "limits": list(group.limits),
        "seeds": seeds,
        "measure": judged.name,
    }
    return {**head, "unit": judged.unit, "steps": steps, "strategies": strategies}


def _strategy(comparison: Comparison, group: Group, strategy: str, steps: Sequence[int]) -> dict[str, Any]:
    drawn, rows = comparison.curves[group][strategy], comparison.rows[group][strategy]
    low, middle, high = np.quantile(drawn[:, np.array(steps) - 1], [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
    found: dict[str, Any] = {
        "median": [_plain(v) for v in middle],
        "quartiles": [[_plain(a), _plain(b)] for a, b in zip(low, high, strict=True)],
        "seconds": _plain(float(np.median([row.seconds for row in rows]))),
        "evaluations": _plain(float(np.median([len(row.rows) for row in rows]))),
    }
    if not group.front:
        tabular = group.tabular()
        accuracy = 100 * np.array([chosen_accuracy(row, tabular)[-1] if row.rows else -math.inf for row in rows])
        reached = np.array([evaluations_to_optimum(row, tabular) for row in rows])
        found["test_accuracy"] = {"mean": _plain(float(accuracy.mean())), "sd": _plain(_spread(accuracy)), "unit": "percent"}
        found["optimum"] = {
            "median_evaluations": _plain(float(np.quantile(reached, 0.5, method="inverted_cdf"))),
            "mean_evaluations": _plain(float(reached.mean())),
            "reached": _plain(float(np.isfinite(reached).mean())),
        }
    return found


def _spread(values: np.ndarray) -> float:
    """Standard deviation; undefined for a single seed."""
    return float(values.std(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else math.nan


def _plain(value: float) -> float | None:
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def significance(blocks: np.ndarray, strategies: Sequence[str], best: int) -> dict[str, Any] | None:
    """p-values over `blocks` `(strategies, blocks)`; None with one strategy or fewer than five blocks, which show nothing."""
    if len(strategies) < 2 or blocks.shape[1] < 5:
        return None
    from scipy.stats import friedmanchisquare

    friedman = None
    if len(strategies) > 2 and (blocks != blocks[0]).any():
        friedman = _plain(float(friedmanchisquare(*blocks).pvalue))
    others = [i for i in range(len(strategies)) if i != best]
    corrected = holm([wilcoxon(blocks[best], blocks[i]) for i in others])
    pairs = {strategies[i]: _plain(p) for i, p in zip(others, corrected, strict=True)}
    return {"blocks": int(blocks.shape[1]), "friedman_p": friedman, "best": strategies[best], "wilcoxon_holm_p": pairs}


def wilcoxon(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test over pairs, Pratt's treatment of ties; 1 where all pairs are equal.

    Infinite is what never chose anything: it differs from a finite value by more than any two finite ones do, and from another by nothing.
    Pairs of it cannot be left out, or a strategy would be judged by the few seeds in which it found something.
    """
    from scipy.stats import wilcoxon as signed_rank

    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, a - b)
    finite = np.isfinite(difference)
    most = 1.0 + 2 * np.abs(difference[finite]).max(initial=0.0)
    difference = np.where(finite, difference, np.sign(difference) * most)
    if not difference.any():
        return 1.0
    return float(signed_rank(difference, zero_method="pratt", method="approx").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values."""
    order = np.argsort(p_values, kind="stable")
    scaled = [min(1.0, (len(p_values) - rank) * p_values[i]) for rank, i in enumerate(order)]
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted.tolist()  # type: ignore[no-any-return]
