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
from sartor.goals import Goals, metric_of
from sartor.searchers.base import Fold, Visited
from sartor.searchers.constraints import slack
from sartor.searchers.embedding import Embedding, Features
from sartor.searchers.gp import Floats, Hyper, Kernel, Tracked
from sartor.searchers.pool import Pool
from sartor.searchers.promise import Promise, Prospect
from sartor.searchers.surrogate import (
    WORKS,
    Belief,
    Model,
    Scale,
    Targets,
    View,
    Warp,
    beliefs,
    best_and_latest,
    hyperparameters,
    loss,
    modelled,
)
from sartor.trial import Proposal, Trial

_FIT_POINTS = 150  # hyperparameters are fitted to at most so many trials


@dataclass
class _State:
    """What the finished trials amount to: those to learn from, and those that the hyperparameters are fitted to."""

    visited: Visited
    finished: int = 0
    kept: list[Trial] = field(default_factory=list)
    fitted_at: int = 0
    fit_on: list[Trial] = field(default_factory=list)
    hyper: dict[str, Hyper | None] | None = None
    base: int = 0  # so many of `kept` were there when the processes that are kept up were begun
    tracked: dict[str, Tracked] = field(default_factory=dict)

    def begin(self) -> None:
        """The processes are begun anew, on what is kept now."""
        self.base, self.tracked = len(self.kept), {}


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
        scale: on which objectives are modelled: "log", "gap" (the logarithm of the distance to the best so far) or, of a single objective
            only, "scores" of ranks. None: "scores" of one objective; of several, "gap" for fractions (errors) and "log" for the others.
        reference: metric -> value: the corner of the hypervolume, in the metrics' own units; by default a tenth beyond the worst of the
            feasible trials or, where the space is looked at as a whole, beyond what 99 % of what works is predicted to stay below and
            beyond the predicted extremes.
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
        scale: Scale | None = None,
        reference: Mapping[str, float] | None = None,
        features: Features | None = None,
    ) -> None:
        if acquisition not in ("improvement", "thompson"):
            raise UserError(f"bayes: acquisition must be 'improvement' or 'thompson', got '{acquisition}'")
        if scale not in (None, "log", "gap", "scores") or (scale == "scores" and len(View.of(goals).names) > 1):
            raise UserError(f"bayes: scale must be 'log', 'gap' or, of a single objective, 'scores'; got '{scale}'")
        for name, value, least in (("initial", initial, 2), ("whole", whole, 0), ("pool", pool, 10), ("memory", memory, 10)):
            if value < least:
                raise UserError(f"bayes: {name} must be at least {least}, got {value}")
        missing = [name for name in goals.objectives if reference is not None and name not in reference]
        if missing:
            raise UserError(f"bayes: the reference point lacks the objective '{missing[0]}'; give a value for each objective")
        self._space, self._goals, self._acquisition, self._view = space, goals, acquisition, View.of(goals)
        self._initial, self._memory = initial, memory
        single = len(self._view.names) == 1
        self._scale = scale
        given = reference if reference is not None and self._view.names == goals.objectives else None
        corner = None if given is None else np.array([loss(name, given[name]) for name in goals.objectives])
        self._promise = Promise(self._view, corner)
        self._embedding = Embedding(space, features)
        self._kernels = {costs: self._kernel(costs, linear=not single) for costs in (False, True)}
        self._pool = Pool(space, self._embedding, whole, pool)
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def _kernel(self, costs: bool, *, linear: bool) -> Kernel:
        """Of a quality, or of something that an architecture costs.

        One product over choices and features: sums of the two needed more evaluations on NAS-Bench-201 (CIFAR-10). On a front the extremes
        matter, which few trials are like; costs, and less so errors, are nearly sums over the parts, so linear effects reach them. Where a
        sum of costs is the mean, the process is of what is executed alone: architectures that execute the same differ by how a measurement
        came out, and a process that also saw their choices took this for effects and went through the twins of the cheapest one by one.
        """
        embedding = self._embedding
        if costs and embedding.cost_sums and embedding.executed:
            return Kernel(embedding.group, (embedding.executed,))
        choices, features = range(embedding.choices), range(embedding.choices, len(embedding.names))
        told = embedding.cost_features if costs and embedding.cost_features else [g for g in features if g not in embedding.cost_features]
        return Kernel(embedding.group, ((*choices, *told),), tuple(told or choices) if linear else ())

    def _kernel_of(self, key: str) -> Kernel:
        metric = modelled(self._goals).get(key)  # None: the excess over a limit, as an objective
        return self._kernels[key != WORKS and (metric is None or metric_of(metric).unit != "fraction")]

    def _readings(self, key: str) -> tuple[NDArray[np.int64], ...]:
        """Columns whose costs add up, for what is a cost on the scale of logarithms."""
        is_cost = key != WORKS and self._kernel_of(key) is self._kernels[True]
        return self._embedding.cost_sums if is_cost and self._scale_of(key) == "log" else ()

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
            state.begin()
        if state.finished >= 1.1 * state.fitted_at:
            state.fitted_at, state.fit_on, state.hyper = state.finished, list(state.kept), None
            state.begin()

    def _hyper(self, state: _State) -> dict[str, Hyper]:
        """Hyperparameters of every column that had two values or more when they were last fitted."""
        if state.hyper is None:
            trials = best_and_latest(self._goals, state.fit_on, _FIT_POINTS)
            rows = self._embedding.rows([trial.arch for trial in trials])
            columns = self._columns(trials)
            state.hyper = {
                key: hyperparameters(rows, values, self._kernel_of(key), self._scale_of(key), self._readings(key))
                for key, values in columns.items()
            }
        return {key: found for key, found in state.hyper.items() if found is not None}

    def _models(self, state: _State) -> dict[str, Model] | None:
        """A model for every column with two values or more; None if the objectives have not."""
        hyper, rows = self._hyper(state), self._embedding.rows([trial.arch for trial in state.kept])
        models = {}
        for key, values in self._columns(state.kept).items():
            if key in hyper and np.isfinite(values).sum() >= 2:
                models[key] = Model.of(rows, values, self._kernel_of(key), hyper[key], self._scale_of(key), self._readings(key))
        return models if all(name in models for name in self._view.names) else None

    def _everywhere(self, state: _State) -> dict[str, Belief] | None:
        """As :meth:`_models`, at every architecture of a small space; kept up from trial to trial."""
        hyper, everything = self._hyper(state), self._pool.everything
        rows = everything.rows[[self._pool.position[trial.arch] for trial in state.kept]]
        found = {}
        for key, values in self._columns(state.kept).items():
            known = np.flatnonzero(np.isfinite(values))
            if key not in hyper or len(known) < 2:
                continue
            process = state.tracked.get(key)
            if process is None:
                first = known[known < state.base]
                process = state.tracked[key] = Tracked(everything.rows, rows[first], self._kernel_of(key), hyper[key])
            for i in known[process.count :]:
                process.add(rows[i])
            targets = Targets.of(rows[known], values[known], self._scale_of(key), self._readings(key))
            found[key] = Belief(process.posterior(targets.values), targets.warp, targets.base(everything.rows))
        return found if all(name in found for name in self._view.names) else None

    def _columns(self, trials: Sequence[Trial]) -> dict[str, Floats]:
        columns = self._view.columns(trials)
        fails = ~np.isfinite(np.array(list(columns.values()))).all(axis=0)
        # as a loss on the log scale: 1 works, 2 fails
        return {**columns, WORKS: np.where(fails, 2.0, 1.0)} if fails.any() else columns

    def _scale_of(self, key: str) -> Scale:
        """Costs are ratios to a natural zero; of an error it is not known how far down it can go."""
        if key not in self._view.names:
            return "log"
        if self._scale is not None:
            return self._scale
        if len(self._view.names) == 1:
            return "scores"
        return "gap" if self._kernel_of(key) is self._kernels[False] else "log"

    # -- the proposals ----------------------------------------------------------------------------------------------------

    def _model_based(self, state: _State, waiting: list[Arch], n: int, rng: np.random.Generator) -> list[Arch]:
        promise = self._promise.eased(slack(self._goals, state.kept))
        prospect = self._whole(state, waiting, promise) if self._pool.is_whole else self._sampled(state, waiting, promise, rng)
        if prospect is None:
            return []
        candidates, belief, levels = prospect.candidates, prospect.belief, prospect.levels
        if self._acquisition == "thompson":
            return promise.thompson(prospect, n, rng)
        found: list[Arch] = []
        free = candidates.free.copy()
        while len(found) < n and free.any():
            scores = promise.scores(levels, belief, rng, prospect.usual, free)
            chosen = int(rng.choice(np.flatnonzero(free & (scores == scores[free].max()))))
            free[chosen] = False
            found.append(candidates.archs[chosen])
            if len(found) < n:
                levels = promise.believed(levels, belief, np.array([chosen]))
                belief = {key: one.believe(chosen) for key, one in belief.items()}
        return found

    def _whole(self, state: _State, waiting: Sequence[Arch], promise: Promise) -> Prospect | None:
        """All architectures of a small space."""
        belief = self._everywhere(state)
        if belief is None:
            return None
        levels = self._levels(state, {key: one.warp for key, one in belief.items()})
        places = [self._pool.position[arch] for arch in waiting]
        if places:
            levels = promise.believed(levels, belief, np.array(places))
        for place in places:
            belief = {key: one.believe(place) for key, one in belief.items()}
        return Prospect(self._pool.unvisited(state.visited), belief, levels, promise.usual(belief))

    def _sampled(self, state: _State, waiting: Sequence[Arch], promise: Promise, rng: np.random.Generator) -> Prospect | None:
        """A pool of candidates from a large space."""
        models = self._models(state)
        if models is None:
            return None
        values, violations = self._goals.table(state.kept)
        parents = [state.kept[i].arch for i in pareto.survivors(values, 20, violations)]
        pending = self._embedding.rows(waiting)
        levels = self._levels(state, {key: model.warp for key, model in models.items()})
        if waiting:
            levels = promise.believed(levels, beliefs(models, pending, pending[:0]), np.arange(len(waiting)))

        def promised(rows: Floats) -> Floats:
            return promise.scores(levels, beliefs(models, rows, pending), rng)

        candidates = self._pool.candidates(state.visited, parents, promised, rng)
        return Prospect(candidates, beliefs(models, candidates.rows, pending), levels) if candidates.archs else None

    def _levels(self, state: _State, warps: Mapping[str, Warp]) -> Floats:
        """Objectives `(k, objectives)` reached by feasible trials, on the scales of the models."""
        columns = self._view.columns(state.kept)
        feasible = self._goals.table(state.kept)[1] == 0
        return np.column_stack([warps[name](columns[name][feasible]) for name in self._view.names])
