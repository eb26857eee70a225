"""What a proposal promises, given what the models believe of the candidates: the acquisition functions of Bayesian optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor import pareto
from sartor.arch import Arch
from sartor.searchers import acquisition as acq
from sartor.searchers.gp import Floats
from sartor.searchers.pool import Candidates
from sartor.searchers.surrogate import WORKS, Belief, View, bound_loss

_DRAWS = 32  # samples of the sampled acquisitions
_JOINT = 500  # candidates of a joint draw
_USUAL = 0.99  # share of the candidates' predicted objectives that the hypervolume's corner lies beyond


@dataclass(frozen=True)
class Prospect:
    """What is known of the candidates, pending proposals believed, and the objectives reached so far on the models' scales.

    `usual`: what the hypervolume's corner lies beyond, on the same scales (see :meth:`Promise.usual`); None where the
    architectures are not known one and all.
    """

    candidates: Candidates
    belief: dict[str, Belief]
    levels: Floats
    usual: Floats | None = None


class Promise:
    """Args:
    reference: the corner of the hypervolume `(objectives,)` as losses; None to take it from what is believed.
    slack: relative excess over a limit that is excused (:func:`sartor.searchers.constraints.slack`).
    """

    def __init__(self, view: View, reference: Floats | None = None, slack: float = 0.0) -> None:
        self._view, self._reference, self._slack = view, reference, slack

    def eased(self, slack: float) -> Promise:
        """The same with another excess excused."""
        return Promise(self._view, self._reference, slack)

    def scores(
        self,
        levels: Floats,
        belief: Mapping[str, Belief],
        rng: np.random.Generator,
        usual: Floats | None = None,
        free: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """The logarithm of the acquisition function `(m,)`, up to a constant; without a feasible trial, of the probability to be one.

        With `free` (m,) only the highest of the free ones is wanted: the others may be too low.
        """
        log_feasible = self._log_feasible(belief)
        if not len(levels):
            return log_feasible
        if levels.shape[1] == 1:
            one = belief[self._view.names[0]]
            return acq.log_expected_improvement(one.mean, one.deviation, float(levels.min())) + log_feasible
        with np.errstate(divide="ignore"):
            if levels.shape[1] > 2 or free is None:
                return np.log(self._front_improvement(levels, belief, rng, usual)) + log_feasible
            shares = np.where(free, np.exp(log_feasible - log_feasible[free].max()), 0.0)
            return np.log(self._front_improvement(levels, belief, rng, usual, shares))

    def believed(self, levels: Floats, belief: Mapping[str, Belief], chosen: NDArray[np.int64]) -> Floats:
        """`levels` and the means of the chosen that are more likely feasible than not; while nothing is feasible, nothing is added."""
        means = np.column_stack([belief[name].mean for name in self._view.names])[chosen]
        likely = self._log_feasible(belief)[chosen] > np.log(0.5)
        return np.vstack([levels, means[likely]]) if len(levels) else levels

    def thompson(self, prospect: Prospect, n: int, rng: np.random.Generator) -> list[Arch]:
        """For each proposal one joint draw of every model, and what is best in it: the limits kept, the front improved most."""
        keep = self._shortlist(prospect, rng)
        belief = {key: one.take(keep) for key, one in prospect.belief.items()}
        draws = {key: one.draw(n, rng) for key, one in belief.items()}
        free = np.ones(len(keep), dtype=bool)
        found: list[Arch] = []
        for k in range(min(n, len(keep))):
            excess = self._drawn_excess({key: draw[k] for key, draw in draws.items()}, belief)
            gain = self._drawn_gain(prospect, {key: draw[k] for key, draw in draws.items()}, belief)
            ranked = np.lexsort((rng.random(len(keep)), -gain, excess, ~free))
            chosen = int(ranked[0])
            free[chosen] = False
            found.append(prospect.candidates.archs[keep[chosen]])
        return found

    def usual(self, belief: Mapping[str, Belief]) -> Floats:
        """Where the corner of the hypervolume may begin `(objectives,)`, with a belief of every architecture of the space.

        Beyond what 99 % of those that are predicted to work stay below, and beyond the ends of the front as they are predicted: an extreme
        of one objective that lies outside in another would never be tried.
        """
        means = np.column_stack([belief[name].mean for name in self._view.names])
        if WORKS in belief:
            works = belief[WORKS].mean < self._middle(belief[WORKS])  # more likely than not
            means = means[works] if works.any() else means
        ends = means[means.argmin(axis=0)]
        return np.maximum(np.quantile(means, _USUAL, axis=0), ends.max(axis=0))

    def _front_improvement(
        self, levels: Floats, belief: Mapping[str, Belief], rng: np.random.Generator, usual: Floats | None, shares: Floats | None = None
    ) -> Floats:
        """Expected improvement of the front `(m,)`; with `shares`, as :func:`acq.leading_hypervolume_improvement` has it."""
        objectives = [belief[name] for name in self._view.names]
        mean = np.column_stack([one.logarithm(one.mean) for one in objectives])
        deviation = np.column_stack([one.warp.width * one.deviation for one in objectives])
        front, corner = self._front(levels, objectives, usual)  # in losses plus their offsets, which change no volume
        if shares is not None:
            return acq.leading_hypervolume_improvement(mean, deviation, front, corner, shares, logarithmic=(True, True))
        if len(objectives) == 2:
            return acq.expected_hypervolume_improvement(mean, deviation, front, corner, logarithmic=(True, True))
        samples = np.exp(mean + deviation * rng.standard_normal((_DRAWS, 1, len(objectives))))
        if len(objectives) == 3:
            return acq.sampled_hypervolume_improvement(samples, front, corner)
        weights = rng.dirichlet(np.ones(len(objectives)))
        low, span = front.min(axis=0), np.maximum(np.ptp(front, axis=0), 1e-12)
        best = acq.chebyshev((front - low) / span, weights).min()
        return np.maximum(best - acq.chebyshev((samples - low) / span, weights), 0.0).mean(0)

    def _front(self, levels: Floats, objectives: Sequence[Belief], usual: Floats | None) -> tuple[Floats, Floats]:
        """The front of `levels` as losses plus offsets `(k, objectives)`, and the corner up to which its hypervolume counts."""
        reached = np.exp(np.column_stack([one.logarithm(levels[:, i]) for i, one in enumerate(objectives)]))
        front = reached[pareto.front(reached)]
        if self._reference is not None:
            return front, self._reference + np.array([one.warp.offset for one in objectives])
        # Beyond the front: one that began short must be worth prolonging.
        if usual is None:
            worst = reached.max(axis=0)
            return front, worst + 0.1 * np.maximum(worst - front.min(axis=0), 0.1 * worst)
        # The worst trial so far would let chance decide how much one end is worth beside the other.
        far, worst, span = (
            np.exp([one.logarithm(u) for one, u in zip(objectives, usual, strict=True)]),
            front.max(axis=0),
            np.ptp(front, axis=0),
        )
        return front, np.maximum(far, worst + 0.1 * np.maximum(span, 0.01 * worst))

    def _log_feasible(self, belief: Mapping[str, Belief]) -> Floats:
        """Logarithm of the probability that every limit is kept and nothing fails, taken as independent."""
        total = np.zeros(len(next(iter(belief.values())).mean))
        for limit in self._view.limits:
            if limit.key in belief:
                one = belief[limit.key]
                bound = float(one.warp(np.array([bound_loss(limit, self._slack)]))[0])
                total += acq.log_probability_below(one.mean, one.deviation, bound)
        return total + self._log_works(belief[WORKS]) if WORKS in belief else total

    @staticmethod
    def _log_works(one: Belief) -> Floats:
        """Logarithm of the probability of having all metrics."""
        return acq.log_probability_below(one.mean, one.deviation, Promise._middle(one))

    @staticmethod
    def _middle(one: Belief) -> float:
        """Between working and not, as a model of it has it."""
        return float(one.warp(np.array([np.sqrt(2.0)]))[0])

    def _shortlist(self, prospect: Prospect, rng: np.random.Generator) -> NDArray[np.int64]:
        """At most `_JOINT` free candidates: those with the lowest optimistic bounds of each objective, and uniform draws."""
        free = np.flatnonzero(prospect.candidates.free)
        if len(free) <= _JOINT:
            return free
        share = _JOINT // 2 // len(self._view.names)
        chosen: set[int] = set()
        for name in self._view.names:
            one = prospect.belief[name]
            order = np.argsort((one.mean - 2 * one.deviation)[free], kind="stable")[:share]
            chosen.update(int(i) for i in free[order])
        others = rng.permutation(free)
        chosen.update(int(i) for i in others[: _JOINT - len(chosen)])
        return np.array(sorted(chosen), dtype=np.int64)

    def _drawn_excess(self, draw: Mapping[str, Floats], belief: Mapping[str, Belief]) -> Floats:
        total = np.zeros(len(next(iter(draw.values()))))
        for limit in self._view.limits:
            if limit.key in draw:
                bound = float(belief[limit.key].warp(np.array([bound_loss(limit, self._slack)]))[0])
                total += np.maximum(draw[limit.key] - bound, 0.0)
        return total

    def _drawn_gain(self, prospect: Prospect, draw: Mapping[str, Floats], belief: Mapping[str, Belief]) -> Floats:
        """Hypervolume that each drawn candidate adds to the front; of one or many objectives (or without a front) their negative mean."""
        objectives = [belief[name] for name in self._view.names]
        drawn = np.column_stack([draw[name] for name in self._view.names])
        levels = prospect.levels
        if len(levels) == 0 or not 2 <= len(objectives) <= 3:
            return -drawn.mean(axis=1)
        points = np.exp(np.column_stack([one.logarithm(drawn[:, i]) for i, one in enumerate(objectives)]))
        front, corner = self._front(levels, objectives, prospect.usual)
        return acq.sampled_hypervolume_improvement(points[None], front, corner)
