"""What a searcher that predicts learns from: the best and the latest trials, a bounded number, and a regression on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Arch, Space
from sartor.goals import Goals
from sartor.searchers.constraints import Constrained, slack
from sartor.searchers.variation import ordered
from sartor.trial import Trial

Floats = NDArray[np.float64]


class Memory:
    """At most `size` of the best and `size` of the latest trials; O(1) amortised for each that is added."""

    def __init__(self, goals: Goals, size: int = 96) -> None:
        self._goals, self._size = goals, size
        self._elite: list[Trial] = []
        self._latest: deque[Trial] = deque(maxlen=size)

    def add(self, trial: Trial) -> None:
        if len(self._latest) == self._size:
            self._elite.append(self._latest[0])
            if len(self._elite) >= 2 * self._size:
                self._elite = ordered(self._goals, self._elite)[: self._size]
        self._latest.append(trial)

    def __len__(self) -> int:
        return len(self._elite) + len(self._latest)

    def trials(self) -> list[Trial]:
        """Those kept, in the order in which they finished."""
        return sorted([*self._elite, *self._latest], key=lambda trial: trial.number)

    def best(self, n: int) -> list[Trial]:
        """The `n` best of those kept, best first."""
        return ordered(self._goals, self.trials())[:n]


def fitted(space: Space, archs: Sequence[Arch], targets: Floats) -> Callable[[Sequence[Arch]], Floats]:
    """A predictor of `targets` `(n,)`: a Gaussian process of choices and their pairs, its noise by marginal likelihood.

    Constant where there are fewer than two targets or all are alike.
    """
    from sartor.predictors.kernel import fit_kernel  # imports SciPy

    if len(targets) < 2 or np.ptp(targets) == 0:
        constant = float(targets.mean()) if len(targets) else 0.0
        return lambda candidates: np.full(len(candidates), constant)
    spread = float(targets.std())
    model = fit_kernel("ridge_pairs", space.encode(archs).astype(float), (targets - targets.mean()) / spread)

    def predict(candidates: Sequence[Arch]) -> Floats:
        return targets.mean() + spread * model.predict(space.encode(candidates).astype(float))[0]

    return predict


def forecast(space: Space, goals: Goals, trials: Sequence[Trial]) -> Callable[[Sequence[Arch]], tuple[Floats, Floats]]:
    """A predictor of what :meth:`Goals.table` will say: objectives `(n, m)` and violations `(n,)`.

    Each objective and each limit's relative excess has a regression of its own; the signed excess is smooth where the violation, cut off
    at 0, is not. Trials that failed or lack a metric teach nothing.
    """
    values, violations = goals.table(trials)
    sane = np.isfinite(values).all(axis=1) & np.isfinite(violations)
    taught = [trial for trial, ok in zip(trials, sane, strict=True) if ok]
    archs = [trial.arch for trial in taught]
    # In the forms in which objectives pay for an excess, the objectives hold it already.
    limits = () if isinstance(goals, Constrained) and goals.form not in ("hard", "progressive") else goals.limits
    excused = slack(goals, trials)
    models = [fitted(space, archs, column) for column in values[sane].T]
    excesses = [fitted(space, archs, np.array([limit.excess(trial.metrics) for trial in taught], dtype=float)) for limit in limits]

    def predict(candidates: Sequence[Arch]) -> tuple[Floats, Floats]:
        columns = np.array([model(candidates) for model in models]).reshape(values.shape[1], len(candidates)).T
        over = np.array([np.maximum(0.0, model(candidates) - excused) for model in excesses]).reshape(len(limits), len(candidates))
        return columns, over.sum(axis=0)

    return predict
