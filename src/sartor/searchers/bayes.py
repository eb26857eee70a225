"""Bayesian optimisation with Gaussian processes on architectures.

One objective: expected improvement (Jones, Schonlau & Welch 1998). Two: exact expected hypervolume improvement; three: sampled; more: the
expected improvement of random Chebyshev scalarisations (Knowles 2006, ParEGO). Limits: times the probability of feasibility (Gardner et al.
2014). Or Thompson sampling: a joint draw of all objectives for every proposal. Batches and pending proposals: believed at their means
(Ginsbourger et al. 2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers import acquisition as acq
from sartor.searchers.base import Fold, Visited
from sartor.searchers.embedding import Embedding, Features
from sartor.searchers.gp import Floats, Hyper, Kernel
from sartor.searchers.pool import Candidates, Pool
from sartor.searchers.surrogate import WORKS, Belief, Model, Scale, View, beliefs, best_and_latest, hyperparameters, loss, shifted
from sartor.trial import Proposal, Trial

_DRAWS = 32  # samples of the sampled acquisitions
_FIT_POINTS = 150  # hyperparameters are fitted to at most so many trials
_JOINT = 500  # candidates of a joint draw


@dataclass
class _State:
    """What the finished trials amount to: those to learn from, and those that the hyperparameters are fitted to."""

    visited: Visited
    finished: int = 0
    kept: list[Trial] = field(default_factory=list)
    fitted_at: int = 0
    fit_on: list[Trial] = field(default_factory=list)
    hyper: dict[str, Hyper | None] | None = None


class BayesianOptimisation:
    """Gaussian processes and an acquisition function; see the module.

    Trials are learnt from as they finish; with more than twice `memory`, the best half of `memory` and the latest stay. Hyperparameters
    are fitted again whenever the history has grown by a tenth. Failures are learnt as such, and avoided. No trial is feasible yet: the
    candidate that most probably is.

    Args:
        acquisition: "improvement" or "thompson".
        initial: uniform draws before the first model.
        whole: spaces of at most so many architectures are looked at as a whole; in larger ones `pool` candidates are mutants of the best
            trials, uniform draws, and mutants of the best of these.
        memory: how many trials the models are conditioned on, at least (at most twice as many).
        scale: of a single objective's model, "scores" or "log"; several objectives are modelled by their logarithms.
        reference: metric -> value: the corner of the hypervolume, in the metrics' own units; by default a tenth
            beyond the worst of the feasible trials.
        features: structural features of architectures for the kernel; by default those of the space (a method `features`), if it has them.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        acquisition: Literal["improvement", "thompson"] = "improvement",
        initial: int = 5,
        whole: int = 20_000,
        pool: int = 1000,
        memory: int = 200,
        scale: Scale = "scores",
        reference: Mapping[str, float] | None = None,
        features: Features | None = None,
    ) -> None:
        if acquisition not in ("improvement", "thompson"):
            raise UserError(f"bayes: acquisition must be 'improvement' or 'thompson', got '{acquisition}'")
        if scale not in ("scores", "log"):
            raise UserError(f"bayes: scale must be 'scores' or 'log', got '{scale}'")
        for name, value, least in (("initial", initial, 2), ("whole", whole, 0), ("pool", pool, 10), ("memory", memory, 10)):
            if value < least:
                raise UserError(f"bayes: {name} must be at least {least}, got {value}")
        missing = [name for name in goals.objectives if reference is not None and name not in reference]
        if missing:
            raise UserError(f"bayes: the reference point lacks the objective '{missing[0]}'; give a value for each objective")
        self._space, self._goals, self._acquisition, self._view = space, goals, acquisition, View.of(goals)
        self._initial, self._memory = initial, memory
        self._scale: Scale = scale if len(self._view.names) == 1 else "log"
        given = reference if reference is not None and self._view.names == goals.objectives else None
        self._reference = None if given is None else np.array([loss(name, given[name]) for name in goals.objectives])
        self._embedding = Embedding(space, features)
        # one product over choices and features: sums of the two needed more evaluations on NAS-Bench-201 (CIFAR-10)
        self._kernel = Kernel(self._embedding.group, (tuple(range(len(self._embedding.names))),))
        self._pool = Pool(space, self._embedding, whole, pool)
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        waiting = [proposal.arch for proposal in pending if proposal.arch in self._space]
        asked: list[Arch] = []
        with state.visited.holding(pending):
            while len(asked) < n and state.finished + len(pending) + len(asked) < self._initial:
                if (arch := state.visited.draw(rng)) is None:
                    break
                state.visited.add(arch)
                asked.append(arch)
            if len(asked) < n:
                chosen = self._model_based(state, waiting + asked, n - len(asked), rng)
                for arch in chosen:
                    state.visited.add(arch)
                asked += chosen
            while len(asked) < n and (arch := state.visited.draw(rng)) is not None:
                state.visited.add(arch)
                asked.append(arch)
        return [Proposal(arch) for arch in asked]

    # -- the history ------------------------------------------------------------------------------------------------------

    def _finish(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        state.finished += 1
        if trial.arch in self._space:
            state.kept.append(trial)
        if len(state.kept) > 2 * self._memory:
            state.kept = best_and_latest(self._goals, state.kept, self._memory)
        if state.finished >= 1.1 * state.fitted_at:
            state.fitted_at, state.fit_on, state.hyper = state.finished, list(state.kept), None

    def _models(self, state: _State) -> dict[str, Model] | None:
        """A model for every column with two values or more; None if the objectives have not."""
        if state.hyper is None:
            trials = best_and_latest(self._goals, state.fit_on, _FIT_POINTS)
            rows = self._embedding.rows([trial.arch for trial in trials])
            columns = self._columns(trials)
            state.hyper = {key: hyperparameters(rows, values, self._kernel, self._scale_of(key)) for key, values in columns.items()}
        if any(state.hyper.get(name) is None for name in self._view.names):
            return None
        rows = self._embedding.rows([trial.arch for trial in state.kept])
        models = {}
        for key, values in self._columns(state.kept).items():
            hyper = state.hyper.get(key)
            if hyper is not None and np.isfinite(values).sum() >= 2:
                models[key] = Model.of(rows, values, self._kernel, hyper, self._scale_of(key))
        return models if all(name in models for name in self._view.names) else None

    def _columns(self, trials: Sequence[Trial]) -> dict[str, Floats]:
        columns = self._view.columns(trials)
        fails = ~np.isfinite(np.array(list(columns.values()))).all(axis=0)
        # as a loss on the log scale: 1 works, 2 fails
        return {**columns, WORKS: np.where(fails, 2.0, 1.0)} if fails.any() else columns

    def _scale_of(self, key: str) -> Scale:
        return self._scale if key in self._view.names else "log"

    # -- the proposals ----------------------------------------------------------------------------------------------------

    def _model_based(self, state: _State, waiting: list[Arch], n: int, rng: np.random.Generator) -> list[Arch]:
        models = self._models(state)
        if models is None:
            return []
        values, violations = self._goals.table(state.kept)
        parents = [state.kept[i].arch for i in pareto.survivors(values, 20, violations)]
        pending = self._embedding.rows(waiting)
        levels = self._levels(state, models, pending)

        def promise(rows: Floats) -> Floats:
            return self._scores(levels, beliefs(models, rows, pending), rng)

        candidates = self._pool.candidates(state.visited, parents, promise, rng)
        if not candidates.archs:
            return []
        if self._acquisition == "thompson":
            return self._thompson(levels, models, candidates, pending, n, rng)
        belief = beliefs(models, candidates.rows, pending)
        found: list[Arch] = []
        free = np.ones(len(candidates.archs), dtype=bool)
        while len(found) < n and free.any():
            scores = np.where(free, self._scores(levels, belief, rng), -np.inf)
            chosen = int(rng.choice(np.flatnonzero(scores == scores.max())))
            free[chosen] = False
            found.append(candidates.archs[chosen])
            if len(found) < n:
                levels = self._believed(levels, belief, np.array([chosen]))
                belief = {key: one.believe(chosen) for key, one in belief.items()}
        return found

    def _levels(self, state: _State, models: Mapping[str, Model], pending: Floats) -> Floats:
        """Objectives `(k, objectives)` reached by feasible trials, and believed of pending proposals, on the scales of the models."""
        columns = self._view.columns(state.kept)
        feasible = self._goals.table(state.kept)[1] == 0
        levels = np.column_stack([models[name].warp(columns[name][feasible]) for name in self._view.names])
        return self._believed(levels, beliefs(models, pending, pending[:0]), np.arange(len(pending))) if len(pending) else levels

    def _believed(self, levels: Floats, belief: Mapping[str, Belief], chosen: NDArray[np.int64]) -> Floats:
        """`levels` and the means of the chosen that are more likely feasible than not; while nothing is feasible, nothing is added."""
        means = np.column_stack([belief[name].mean for name in self._view.names])[chosen]
        likely = self._log_feasible(belief)[chosen] > np.log(0.5)
        return np.vstack([levels, means[likely]]) if len(levels) else levels

    def _scores(self, levels: Floats, belief: Mapping[str, Belief], rng: np.random.Generator) -> Floats:
        """The logarithm of the acquisition function `(m,)`; without a feasible trial, of the probability to be one."""
        log_feasible = self._log_feasible(belief)
        if not len(levels):
            return log_feasible
        if levels.shape[1] == 1:
            one = belief[self._view.names[0]]
            return acq.log_expected_improvement(one.mean, one.deviation, float(levels.min())) + log_feasible
        with np.errstate(divide="ignore"):
            return np.log(self._front_improvement(levels, belief, rng)) + log_feasible

    def _front_improvement(self, levels: Floats, belief: Mapping[str, Belief], rng: np.random.Generator) -> Floats:
        objectives = [belief[name] for name in self._view.names]
        mean = np.column_stack([one.logarithm(one.mean) for one in objectives])
        deviation = np.column_stack([one.warp.width * one.deviation for one in objectives])
        front, corner = self._front(levels, objectives)
        if len(objectives) == 2:
            return acq.expected_hypervolume_improvement(mean, deviation, front, corner, logarithmic=(True, True))
        samples = np.exp(mean + deviation * rng.standard_normal((_DRAWS, 1, len(objectives))))
        if len(objectives) == 3:
            return acq.sampled_hypervolume_improvement(samples, front, corner)
        weights = rng.dirichlet(np.ones(len(objectives)))
        low, span = front.min(axis=0), np.maximum(np.ptp(front, axis=0), 1e-12)
        best = acq.chebyshev((front - low) / span, weights).min()
        return np.maximum(best - acq.chebyshev((samples - low) / span, weights), 0.0).mean(0)

    def _front(self, levels: Floats, objectives: Sequence[Belief]) -> tuple[Floats, Floats]:
        """The front of `levels` as losses `(k, objectives)`, and the corner up to which its hypervolume counts."""
        reached = np.exp(np.column_stack([one.logarithm(levels[:, i]) for i, one in enumerate(objectives)]))
        front = reached[pareto.front(reached)]
        if self._reference is not None:
            return front, shifted(self._reference)
        worst = reached.max(axis=0)  # of all trials, not of the front: a front that began short must be worth prolonging
        return front, worst + 0.1 * np.maximum(worst - front.min(axis=0), 0.1 * worst)

    def _log_feasible(self, belief: Mapping[str, Belief]) -> Floats:
        """Logarithm of the probability that every limit is kept and nothing fails, taken as independent."""
        total = np.zeros(len(next(iter(belief.values())).mean))
        for limit in self._view.limits:
            if limit.key in belief:
                one = belief[limit.key]
                bound = float(one.warp(np.array([loss(limit.metric, limit.bound)]))[0])
                total += acq.log_probability_below(one.mean, one.deviation, bound)
        if WORKS in belief:
            one = belief[WORKS]
            middle = float(one.warp(np.array([np.sqrt(2.0)]))[0])
            total += acq.log_probability_below(one.mean, one.deviation, middle)
        return total

    def _thompson(
        self, levels: Floats, models: Mapping[str, Model], candidates: Candidates, pending: Floats, n: int, rng: np.random.Generator
    ) -> list[Arch]:
        """For each proposal one joint draw of every model, and what is best in it: the limits kept, the front improved most."""
        keep = self._shortlist(models, candidates, pending, rng)
        belief = beliefs(models, candidates.rows[keep], pending)
        draws = {key: one.posterior.draw(n, rng) for key, one in belief.items()}
        free = np.ones(len(keep), dtype=bool)
        found: list[Arch] = []
        for k in range(min(n, len(keep))):
            excess = self._drawn_excess({key: draw[k] for key, draw in draws.items()}, belief)
            gain = self._drawn_gain(levels, {key: draw[k] for key, draw in draws.items()}, belief)
            ranked = np.lexsort((rng.random(len(keep)), -gain, excess, ~free))
            chosen = int(ranked[0])
            free[chosen] = False
            found.append(candidates.archs[keep[chosen]])
        return found

    def _shortlist(
        self, models: Mapping[str, Model], candidates: Candidates, pending: Floats, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """At most `_JOINT` candidates: those with the lowest optimistic bounds of each objective, and uniform draws."""
        count = len(candidates.archs)
        if count <= _JOINT:
            return np.arange(count)
        share = _JOINT // 2 // len(self._view.names)
        chosen: set[int] = set()
        for name in self._view.names:
            one = Belief.of(models[name], candidates.rows, pending)
            chosen.update(int(i) for i in np.argsort(one.mean - 2 * one.deviation, kind="stable")[:share])
        others = rng.permutation(count)
        chosen.update(int(i) for i in others[: _JOINT - len(chosen)])
        return np.array(sorted(chosen), dtype=np.int64)

    def _drawn_excess(self, draw: Mapping[str, Floats], belief: Mapping[str, Belief]) -> Floats:
        total = np.zeros(len(next(iter(draw.values()))))
        for limit in self._view.limits:
            if limit.key in draw:
                bound = float(belief[limit.key].warp(np.array([loss(limit.metric, limit.bound)]))[0])
                total += np.maximum(draw[limit.key] - bound, 0.0)
        return total

    def _drawn_gain(self, levels: Floats, draw: Mapping[str, Floats], belief: Mapping[str, Belief]) -> Floats:
        """Hypervolume that each drawn candidate adds to the front; of one or many objectives (or without a front) their negative mean."""
        objectives = [belief[name] for name in self._view.names]
        drawn = np.column_stack([draw[name] for name in self._view.names])
        if len(levels) == 0 or not 2 <= len(objectives) <= 3:
            return -drawn.mean(axis=1)
        points = np.exp(np.column_stack([one.logarithm(drawn[:, i]) for i, one in enumerate(objectives)]))
        front, corner = self._front(levels, objectives)
        return acq.sampled_hypervolume_improvement(points[None], front, corner)
