"""Five ways to treat limits, as goals that every searcher takes in place of plain ones.

A searcher compares trials by :meth:`Goals.table` alone, so the form of a constraint is a property of the goals, not of the searcher:
`make_searcher("evolution", space, constrained(goals, "penalty", weight=10))`. What a search reports at its end goes by the plain goals.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from sartor.errors import UserError
from sartor.goals import Goals, hinge, penalty, soft_objectives, tightened
from sartor.trial import Trial

Form = Literal["hard", "penalty", "hinge", "soft", "progressive"]


@dataclass(frozen=True)
class Constrained(Goals):
    """Goals whose limits are kept in one of these forms; `g` is the relative excess over a limit.

    hard: feasible before infeasible, less violation before more (Deb et al. 2002, section VI-A). What plain goals do.
    penalty: every objective becomes `f + weight * sum(max(0, g)^2)`; nothing is infeasible that has all metrics.
    hinge: every objective becomes `f + weight * sum(max(0, g))`.
    soft: `max(0, g)` of each limit is a further objective; methods with one figure of merit add `weight` times their sum.
    progressive: hard, but a relative excess up to `eps_t = initial * exp(-t / tau)` is still feasible. The time t is the largest trial
        number among those that are compared, hence a function of the history; a method that keeps a score for good judges a trial by
        the limit of its own time, and what is only predicted is held against the limit of the time of the prediction.

    Args:
        weight: of penalty, hinge and soft; above zero.
        initial: eps_0 of progressive, a relative excess (1 = twice the bound at first); above zero.
        tau: trials in which eps falls to a third (1/e); above zero.

    Raises:
        UserError: for an unknown form, and a setting that is not above zero.
    """

    form: Form = "hard"
    weight: float = 1.0
    initial: float = 1.0
    tau: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise UserError(f"unknown form of constraint '{self.form}'; known: {', '.join(get_args(Form))}")
        for name in ("weight", "initial", "tau"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise UserError(f"constraint form '{self.form}': {name} must be a finite number above zero, got {value}")

    def excesses(self, metrics: Mapping[str, float]) -> np.ndarray:
        """Relative excess over every limit `(k,)`: 0 or less where it is kept, +inf where the metric is missing."""
        return np.array([limit.excess(metrics) for limit in self.limits], dtype=float)

    def values(self, metrics: Mapping[str, float]) -> np.ndarray:
        """Objectives, minimised: `(m,)`, in the soft form `(m + k,)`."""
        plain, g = super().values(metrics), self.excesses(metrics)
        if self.form in ("penalty", "hinge"):
            added = (penalty if self.form == "penalty" else hinge)(0.0, g, self.weight)
            return plain + added
        return soft_objectives(plain[None], g[None])[0] if self.form == "soft" else plain

    def violation(self, metrics: Mapping[str, float]) -> float:
        """As of plain goals; in the forms that let objectives pay for an excess, 0, or +inf where a metric is missing."""
        return self._violation(metrics, 0.0)

    def _violation(self, metrics: Mapping[str, float], slack: float) -> float:
        if self.missing(metrics):
            return math.inf
        if self.form in ("hard", "progressive"):
            return float(np.maximum(0.0, self.excesses(metrics) - slack).sum())
        return 0.0

    def table(self, trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
        """Objectives `(n, m)` (soft: `(n, m + k)`), minimised, and violations `(n,)`; failed trials are +inf in both."""
        rows = [trial.metrics if trial.status == "complete" else {} for trial in trials]
        width = len(self.objectives) + (len(self.limits) if self.form == "soft" else 0)
        values = np.array([self.values(row) for row in rows]).reshape(len(rows), width)
        excused = slack(self, trials)
        return values, np.array([self._violation(row, excused) for row in rows], dtype=float)


def constrained(goals: Goals, form: Form, *, weight: float = 1.0, initial: float = 1.0, tau: float = 100.0) -> Constrained:
    """`goals` with their limits in another form; see :class:`Constrained`.

    Raises:
        UserError: as :class:`Constrained`.
    """
    return Constrained(goals.objectives, goals.limits, form, weight, initial, tau)


def slack(goals: Goals, trials: Sequence[Trial]) -> float:
    """The relative excess over a limit that is excused when these trials are known: eps_t of progressive limits, 0 of all others."""
    if not isinstance(goals, Constrained) or goals.form != "progressive":
        return 0.0
    return tightened(goals.initial, 0.0, max((trial.number for trial in trials), default=0), goals.tau)


def at_present(goals: Goals, trials: Sequence[Trial]) -> Goals:
    """Goals that excuse now and for good what `goals` excuse when these trials are known: for a search within a step of the search."""
    excused = slack(goals, trials)
    return replace(goals, initial=excused, tau=sys.float_info.max) if isinstance(goals, Constrained) and excused > 0 else goals


def deductions(goals: Goals, trials: Sequence[Trial]) -> np.ndarray:
    """What a figure of merit of a searcher's own (a fitness, a reward) loses by the softer forms `(n,)`: `weight * sum(max(0, g))`, or
    of the squares in the penalty form. Zero for plain goals and the hard forms, which tell by the violation."""
    if not isinstance(goals, Constrained) or goals.form not in ("penalty", "hinge", "soft"):
        return np.zeros(len(trials))
    form = penalty if goals.form == "penalty" else hinge
    return np.array([form(0.0, goals.excesses(trial.metrics), goals.weight) for trial in trials], dtype=float)


def scores(goals: Goals, trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Keys that order trials, best first, for methods with one figure of merit: (violation, first objective, minimised)."""
    values, violations = goals.table(trials)
    first = values[:, 0].copy()
    if isinstance(goals, Constrained) and goals.form == "soft":
        first += deductions(goals, trials)
    return list(zip(violations.tolist(), first.tolist(), strict=True))
