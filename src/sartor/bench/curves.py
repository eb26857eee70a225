"""How good a run was after each of its evaluations. Everything is computed from the evaluated rows and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sartor import pareto
from sartor.bench.cases import Group
from sartor.bench.results import Row
from sartor.evaluators.tabular import Tabular


@dataclass(frozen=True)
class Measure:
    """What a group is judged by; less is better."""

    name: str
    unit: str
    description: str


REGRET = Measure("regret", "points", "best test accuracy of the table, within the limits, minus that of the chosen architecture")
GAP = Measure("hypervolume gap", "", "1 - HV / HV(true front), error and latency, of the front found")


def measure(group: Group) -> Measure:
    """The hypervolume gap where a front is searched, regret elsewhere."""
    return GAP if group.front else REGRET


def curve(row: Row, tabular: Tabular, budget: int) -> np.ndarray:
    """The group's measure after 1, ..., `budget` evaluations `(budget,)`: infinite before there is a choice, level after an early end.

    An evaluation of low fidelity counts as one, too.
    """
    found = _gaps(row, tabular) if row.case.group.front else 100 * (tabular.best - chosen_accuracy(row, tabular))
    found = found[:budget]
    last = found[-1] if len(found) else math.inf
    return np.concatenate([found, np.full(budget - len(found), last)])


def _full(row: Row, tabular: Tabular) -> np.ndarray:
    """Which evaluations were of full fidelity: in realistic mode all are, as the 12 epochs are all that the search can see."""
    if tabular.mode == "realistic" or not row.fidelities:
        return np.ones(len(row.rows), dtype=bool)
    return np.array([fidelity is None or fidelity >= 1 for fidelity in row.fidelities])


def chosen_accuracy(row: Row, tabular: Tabular) -> np.ndarray:
    """Reported accuracy `(n,)` of the one that one would choose after each evaluation: the best by what was seen within the limits.

    -inf before the first such evaluation of full fidelity.
    """
    rows = np.asarray(row.rows, dtype=int)
    seen = np.where(_full(row, tabular) & tabular.feasible[rows], tabular.seen[rows], -math.inf)
    best = np.maximum.accumulate(seen)
    # The first to reach a value stays chosen: its position is where the running maximum last rose.
    rose = np.concatenate([[True], best[1:] > best[:-1]])[: len(rows)]
    chosen = np.maximum.accumulate(np.where(rose, np.arange(len(rows)), 0))
    return np.where(np.isfinite(best), tabular.reported[rows[chosen]], -math.inf)


def evaluations_to_optimum(row: Row, tabular: Tabular) -> float:
    """Number of the evaluation at which the chosen architecture first has the best reported accuracy; infinite if it never has."""
    hits = np.flatnonzero(chosen_accuracy(row, tabular) == tabular.best)
    return float(hits[0] + 1) if len(hits) else math.inf


def _gaps(row: Row, tabular: Tabular) -> np.ndarray:
    points = tabular.seen_points
    front: list[int] = []
    gaps, gap = [], 1.0
    for number, full in zip(row.rows, _full(row, tabular), strict=True):
        if full and _extends(points[front], points[number]):
            front = [*(n for n in front if not (points[number] <= points[n]).all()), number]
            gap = tabular.gap(front)
        gaps.append(gap)
    return np.array(gaps)


def _extends(front: np.ndarray, point: np.ndarray) -> bool:
    """Whether no point of the front is at least as good as `point` in every objective."""
    return bool(np.isfinite(point).all() and not (front <= point).all(axis=1).any())


def curves(rows: Sequence[Row], budget: int) -> np.ndarray:
    """One curve a row `(rows, budget)`; all rows are of one group."""
    tabular = rows[0].case.group.tabular()
    return np.stack([curve(row, tabular, budget) for row in rows])


def true_front(tabular: Tabular) -> np.ndarray:
    """Reported (error, latency_ms) of the true front `(n, 2)`, by rising error."""
    points = tabular.points[pareto.front(tabular.points)]
    return points[np.argsort(points[:, 0])]
