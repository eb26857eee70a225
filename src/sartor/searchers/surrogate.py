"""Gaussian-process models of every metric that the goals read, each on a scale on which a Gaussian is sensible.

Metrics become *losses*: positive numbers that are minimised (accuracy is turned into error, throughput into its inverse). A loss is
modelled as its logarithm, as the logarithm of its distance to the best (a scale that is finer the closer to it), or as the normal score of
its rank (Salinas, Shen & Perrone 2020, "A Quantile-Based Approach for Hyperparameter
Transfer Learning", section 4), in which neither the scale nor a heavy tail of bad architectures matters. Missing values and failures are
left out of a metric's model; that an architecture may fail is modelled by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sartor import pareto
from sartor.goals import Goals, Limit, metric_of
from sartor.searchers.constraints import Constrained
from sartor.searchers.gp import GP, Floats, Hyper, Kernel, Posterior, fit
from sartor.searchers.sums import Sum
from sartor.trial import Trial

Scale = Literal["log", "gap", "scores"]
WORKS = "works"  # the column that tells trials with all metrics (-1) from others (1)
_LEAST = 1e-4  # added to a loss before the logarithm, so that a perfect accuracy has one
_LEAST_WIDTH = 1e-3  # of what a sum of costs leaves: a per mille
_GAP = 0.3  # added to the distance to the best before the logarithm, in units of the median distance


def loss(metric: str, value: float) -> float:
    """A metric as a positive number to be minimised; NaN where it is missing or not finite."""
    about = metric_of(metric)
    if about.direction == "min":
        return float(value) if np.isfinite(value) else np.nan
    if about.unit == "fraction":
        return 1 - float(value) if np.isfinite(value) else np.nan
    return 1 / float(value) if np.isfinite(value) and value > 0 else np.nan


def bound_loss(limit: Limit, slack: float = 0.0) -> float:
    """The loss beyond which a limit's relative excess is above `slack`; +inf where no value's is."""
    found = loss(limit.metric, limit.bound * (1 + slack if limit.upper else 1 - slack))
    return float("inf") if np.isnan(found) else found


def metric_value(metric: str, value: float) -> float:
    """Inverse of :func:`loss`."""
    about = metric_of(metric)
    if about.direction == "min":
        return value
    return 1 - value if about.unit == "fraction" else 1 / value


def modelled(goals: Goals) -> dict[str, str]:
    """What the goals read: key of a trial's metrics (with its statistic) -> name in :data:`METRICS`."""
    return {**{name: name for name in goals.objectives}, **{limit.key: limit.metric for limit in goals.limits}}


def losses(goals: Goals, trials: Sequence[Trial]) -> dict[str, Floats]:
    """Losses `(n,)` of everything that the goals read, by its key; NaN where a trial has none."""
    metrics = modelled(goals)
    rows = [trial.metrics if trial.status == "complete" else {} for trial in trials]
    return {key: np.array([loss(metric, row.get(key, np.nan)) for row in rows], dtype=float) for key, metric in metrics.items()}


@dataclass(frozen=True)
class View:
    """What is modelled of goals: losses to minimise (`names`), and limits to keep with a probability.

    Goals whose limits are paid for (:mod:`sartor.searchers.constraints`) have none to keep: what they cost is in the objectives.
    """

    goals: Goals
    names: tuple[str, ...]
    limits: tuple[Limit, ...]

    @staticmethod
    def of(goals: Goals) -> View:
        form = goals.form if isinstance(goals, Constrained) else "hard"
        if form in ("hard", "progressive"):
            return View(goals, goals.objectives, goals.limits)
        extra = tuple(f"excess over {limit}" for limit in goals.limits) if form == "soft" else ()
        return View(goals, (*goals.objectives, *extra), ())

    def columns(self, trials: Sequence[Trial]) -> dict[str, Floats]:
        """Losses `(n,)` of the objectives by name, and of limited metrics by key; NaN where a trial has none."""
        found = losses(self.goals, trials)
        if self.limits == self.goals.limits:
            return found
        paid, _ = self.goals.table(trials)
        plain, _ = Goals(self.goals.objectives).table(trials)
        count = len(self.goals.objectives)
        with np.errstate(invalid="ignore"):
            added = paid[:, :count] - plain
        priced = {name: found[name] + np.where(np.isfinite(added[:, i]), added[:, i], np.nan) for i, name in enumerate(self.names[:count])}
        others = {name: np.where(np.isfinite(paid[:, i]), paid[:, i], np.nan) for i, name in enumerate(self.names) if i >= count}
        return {**priced, **others}


def best_and_latest(goals: Goals, trials: Sequence[Trial], count: int) -> list[Trial]:
    """At most `count` trials in their order: the best half of `count` by constrained dominance, and the latest of the others."""
    if len(trials) <= count:
        return list(trials)
    values, violations = goals.table(trials)
    best = {int(i) for i in pareto.survivors(values, count // 2, violations)}
    latest = [i for i in range(len(trials)) if i not in best][len(best) - count :]
    return [trials[i] for i in sorted([*best, *latest])]


@dataclass(frozen=True)
class Warp:
    """A monotone map of losses onto the scale of a model, on which the training targets have mean 0 and deviation 1.

    Unless it is of scores, it is the standardised logarithm of the loss plus `offset`. With a prior mean it is what that leaves of the
    targets that has mean 0 and deviation 1.
    """

    scale: Scale
    knots: Floats
    heights: Floats
    shift: float
    width: float
    offset: float = _LEAST

    @staticmethod
    def of(values: Floats, scale: Scale, base: Floats | None = None) -> Warp:
        """To `values` (n,); `base` (n,) is the logarithm of what a sum of costs makes of them."""
        from scipy.special import ndtri
        from scipy.stats import rankdata

        knots, heights = np.zeros(0), np.zeros(0)
        if scale == "scores":
            scores = ndtri((rankdata(values) - 0.5) / len(values))
            knots, first = np.unique(values, return_index=True)
            heights = scores[first]
        offset = _LEAST
        if scale == "gap":
            best = float(values.min())
            offset = _GAP * max(float(np.median(values)) - best, 1e-3 * abs(best), 1e-9) - best
        raw = _raw(values, scale, knots, heights, offset)
        if base is not None:
            left = raw - base
            return Warp(scale, knots, heights, float(left.mean()), max(float(left.std()), _LEAST_WIDTH), offset)
        return Warp(scale, knots, heights, float(raw.mean()), float(raw.std()) or 1.0, offset)

    def __call__(self, values: Floats) -> Floats:
        return (_raw(values, self.scale, self.knots, self.heights, self.offset) - self.shift) / self.width

    def inverse(self, heights: Floats) -> Floats:
        """Losses (above zero) of which these are the heights."""
        raw = self.shift + self.width * heights
        return np.interp(raw, self.heights, self.knots) if self.scale == "scores" else np.maximum(np.exp(raw) - self.offset, 1e-12)


def _raw(values: Floats, scale: Scale, knots: Floats, heights: Floats, offset: float) -> Floats:
    return np.interp(values, knots, heights) if scale == "scores" else np.log(np.maximum(values + offset, 1e-12))


@dataclass(frozen=True)
class Targets:
    """What a process is conditioned on: losses on the scale of their warp, less the prior mean there, a sum of costs if there is one."""

    warp: Warp
    sum: Sum | None
    values: Floats

    @staticmethod
    def of(rows: Floats, values: Floats, scale: Scale, readings: Sequence[NDArray[np.int64]] = ()) -> Targets:
        """Of finite losses `(n,)` at embedded `rows`; `readings` as :meth:`Sum.of` takes them, none for a constant mean."""
        if not readings:
            warp = Warp.of(values, scale)
            return Targets(warp, None, warp(values))
        costs = Sum.of(rows, np.maximum(values, _LEAST), readings)
        base = costs.logarithm(rows)
        warp = Warp.of(values, scale, base)
        return Targets(warp, costs, warp(values) - base / warp.width)

    def base(self, rows: Floats) -> Floats:
        """The prior mean `(m,)` at `rows`, standardised."""
        return np.zeros(len(rows)) if self.sum is None else self.sum.logarithm(rows) / self.warp.width


@dataclass(frozen=True)
class Model:
    """A process for one column, on the scale of its warp."""

    gp: GP
    targets: Targets

    @property
    def warp(self) -> Warp:
        return self.targets.warp

    @staticmethod
    def of(rows: Floats, values: Floats, kernel: Kernel, hyper: Hyper, scale: Scale, readings: Sequence[NDArray[np.int64]] = ()) -> Model:
        known = np.isfinite(values)
        targets = Targets.of(rows[known], values[known], scale, readings)
        return Model(GP.condition(rows[known], targets.values, kernel, hyper), targets)


def hyperparameters(rows: Floats, values: Floats, kernel: Kernel, scale: Scale, readings: Sequence[NDArray[np.int64]] = ()) -> Hyper | None:
    """Fitted to the finite values; None where there are fewer than two."""
    known = np.isfinite(values)
    if known.sum() < 2:
        return None
    return fit(rows[known], Targets.of(rows[known], values[known], scale, readings).values, kernel)


@dataclass(frozen=True)
class Belief:
    """What a model says about candidates, standardised: mean and deviation `(m,)`; `base` (m,) is the process's prior mean."""

    posterior: Posterior
    warp: Warp
    base: Floats

    @staticmethod
    def of(model: Model, rows: Floats, pending: Floats) -> Belief:
        return Belief(model.gp.believe(pending).posterior(rows), model.warp, model.targets.base(rows))

    @property
    def mean(self) -> Floats:
        return self.posterior.mean + self.base

    @property
    def deviation(self) -> Floats:
        """Of the latent function: adding the noise made the search wait for lucky twins of what it knew."""
        return np.sqrt(self.posterior.variance)

    def take(self, positions: NDArray[np.int64]) -> Belief:
        """At some of the candidates."""
        return Belief(self.posterior.take(positions), self.warp, self.base[positions])

    def believe(self, i: int) -> Belief:
        return Belief(self.posterior.believe(i), self.warp, self.base)

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws `(count, m)`."""
        return self.posterior.draw(count, rng) + self.base

    def logarithm(self, levels: Floats) -> Floats:
        """Logarithm of the loss plus the warp's offset at these values of the model's scale, which must not be that of scores."""
        return self.warp.shift + self.warp.width * levels


def beliefs(models: Mapping[str, Model], rows: Floats, pending: Floats) -> dict[str, Belief]:
    return {key: Belief.of(model, rows, pending) for key, model in models.items()}
