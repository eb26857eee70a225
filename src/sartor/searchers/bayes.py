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
from sartor.goals import METRICS, Goals
from sartor.searchers import acquisition as acq
from sartor.searchers.base import Fold, Visited
from sartor.searchers.embedding import Embedding, Features
from sartor.searchers.gp import Floats, Hyper, Kernel, Tracked
from sartor.searchers.pool import Candidates, Pool
from sartor.searchers.surrogate import WORKS, Belief, Model, Scale, View, Warp, beliefs, best_and_latest, hyperparameters, loss, modelled
from sartor.trial import Proposal, Trial

_DRAWS = 32  # samples of the sampled acquisitions
_FIT_POINTS = 150  # hyperparameters are fitted to at most so many trials
_JOINT = 500  # candidates of a joint draw
_USUAL = 0.99  # share of the candidates' predicted objectives that the hypervolume's corner lies beyond


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


@dataclass(frozen=True)
class _Prospect:
    """What is known of the candidates, pending proposals believed, and the objectives reached so far on the models' scales.

    `usual`: what 99 % of the architectures are predicted to stay below in each objective, on the same scales; None where they are not
    known one and all.
    """

    candidates: Candidates
    belief: dict[str, Belief]
    levels: Floats
    usual: Floats | None = None


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
            feasible trials or, where the space is looked at as a whole, what 99 % of it are predicted to stay below.
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
        self._reference = None if given is None else np.array([loss(name, given[name]) for name in goals.objectives])
        self._embedding = Embedding(space, features)
        self._kernels = {costs: self._kernel(costs, linear=not single) for costs in (False, True)}
        self._pool = Pool(space, self._embedding, whole, pool)
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def _kernel(self, costs: bool, *, linear: bool) -> Kernel:
        """Of a quality, or of something that an architecture costs.

        One product over choices and features: sums of the two needed more evaluations on NAS-Bench-201 (CIFAR-10). On a front the extremes
        matter, which few trials are like; costs, and less so errors, are nearly sums over the parts, so linear effects reach them.
        """
        embedding = self._embedding
        choices, features = range(embedding.choices), range(embedding.choices, len(embedding.names))
        told = embedding.cost_features if costs and embedding.cost_features else [g for g in features if g not in embedding.cost_features]
        return Kernel(embedding.group, ((*choices, *told),), tuple(told or choices) if linear else ())

    def _kernel_of(self, key: str) -> Kernel:
        metric = modelled(self._goals).get(key)  # None: the excess over a limit, as an objective
        return self._kernels[key != WORKS and (metric is None or METRICS[metric].unit != "fraction")]

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
            state.hyper = {key: hyperparameters(rows, values, self._kernel_of(key), self._scale_of(key)) for key, values in columns.items()}
        return {key: found for key, found in state.hyper.items() if found is not None}

    def _models(self, state: _State) -> dict[str, Model] | None:
        """A model for every column with two values or more; None if the objectives have not."""
        hyper, rows = self._hyper(state), self._embedding.rows([trial.arch for trial in state.kept])
        models = {}
        for key, values in self._columns(state.kept).items():
            if key in hyper and np.isfinite(values).sum() >= 2:
                models[key] = Model.of(rows, values, self._kernel_of(key), hyper[key], self._scale_of(key))
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
            warp = Warp.of(values[known], self._scale_of(key))
            found[key] = Belief(process.posterior(warp(values[known])), warp)
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
        prospect = self._whole(state, waiting) if self._pool.is_whole else self._sampled(state, waiting, rng)
        if prospect is None:
            return []
        candidates, belief, levels = prospect.candidates, prospect.belief, prospect.levels
        if self._acquisition == "thompson":
            return self._thompson(prospect, n, rng)
        found: list[Arch] = []
        free = candidates.free.copy()
        while len(found) < n and free.any():
            scores = self._scores(levels, belief, rng, prospect.usual)
            chosen = int(rng.choice(np.flatnonzero(free & (scores == scores[free].max()))))
            free[chosen] = False
            found.append(candidates.archs[chosen])
            if len(found) < n:
                levels = self._believed(levels, belief, np.array([chosen]))
                belief = {key: one.believe(chosen) for key, one in belief.items()}
        return found

    def _whole(self, state: _State, waiting: Sequence[Arch]) -> _Prospect | None:
        """All architectures of a small space."""
        belief = self._everywhere(state)
        if belief is None:
            return None
        levels = self._levels(state, {key: one.warp for key, one in belief.items()})
        places = [self._pool.position[arch] for arch in waiting]
        if places:
            levels = self._believed(levels, belief, np.array(places))
        for place in places:
            belief = {key: one.believe(place) for key, one in belief.items()}
        usual = np.array([np.quantile(belief[name].mean, _USUAL) for name in self._view.names])
        return _Prospect(self._pool.unvisited(state.visited), belief, levels, usual)

    def _sampled(self, state: _State, waiting: Sequence[Arch], rng: np.random.Generator) -> _Prospect | None:
        """A pool of candidates from a large space."""
        models = self._models(state)
        if models is None:
            return None
        values, violations = self._goals.table(state.kept)
        parents = [state.kept[i].arch for i in pareto.survivors(values, 20, violations)]
        pending = self._embedding.rows(waiting)
        levels = self._levels(state, {key: model.warp for key, model in models.items()})
        if waiting:
            levels = self._believed(levels, beliefs(models, pending, pending[:0]), np.arange(len(waiting)))

        def promise(rows: Floats) -> Floats:
            return self._scores(levels, beliefs(models, rows, pending), rng)

        candidates = self._pool.candidates(state.visited, parents, promise, rng)
        return _Prospect(candidates, beliefs(models, candidates.rows, pending), levels) if candidates.archs else None

    def _levels(self, state: _State, warps: Mapping[str, Warp]) -> Floats:
        """Objectives `(k, objectives)` reached by feasible trials, on the scales of the models."""
        columns = self._view.columns(state.kept)
        feasible = self._goals.table(state.kept)[1] == 0
        return np.column_stack([warps[name](columns[name][feasible]) for name in self._view.names])

    def _believed(self, levels: Floats, belief: Mapping[str, Belief], chosen: NDArray[np.int64]) -> Floats:
        """`levels` and the means of the chosen that are more likely feasible than not; while nothing is feasible, nothing is added."""
        means = np.column_stack([belief[name].mean for name in self._view.names])[chosen]
        likely = self._log_feasible(belief)[chosen] > np.log(0.5)
        return np.vstack([levels, means[likely]]) if len(levels) else levels

    def _scores(self, levels: Floats, belief: Mapping[str, Belief], rng: np.random.Generator, usual: Floats | None = None) -> Floats:
        """The logarithm of the acquisition function `(m,)`; without a feasible trial, of the probability to be one."""
        log_feasible = self._log_feasible(belief)
        if not len(levels):
            return log_feasible
        if levels.shape[1] == 1:
            one = belief[self._view.names[0]]
            return acq.log_expected_improvement(one.mean, one.deviation, float(levels.min())) + log_feasible
        with np.errstate(divide="ignore"):
            return np.log(self._front_improvement(levels, belief, rng, usual)) + log_feasible

    def _front_improvement(self, levels: Floats, belief: Mapping[str, Belief], rng: np.random.Generator, usual: Floats | None) -> Floats:
        objectives = [belief[name] for name in self._view.names]
        mean = np.column_stack([one.logarithm(one.mean) for one in objectives])
        deviation = np.column_stack([one.warp.width * one.deviation for one in objectives])
        front, corner = self._front(levels, objectives, usual)  # in losses plus their offsets, which change no volume
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
                bound = float(one.warp(np.array([loss(limit.metric, limit.bound)]))[0])
                total += acq.log_probability_below(one.mean, one.deviation, bound)
        if WORKS in belief:
            one = belief[WORKS]
            middle = float(one.warp(np.array([np.sqrt(2.0)]))[0])
            total += acq.log_probability_below(one.mean, one.deviation, middle)
        return total

    def _thompson(self, prospect: _Prospect, n: int, rng: np.random.Generator) -> list[Arch]:
        """For each proposal one joint draw of every model, and what is best in it: the limits kept, the front improved most."""
        keep = self._shortlist(prospect, rng)
        belief = {key: one.take(keep) for key, one in prospect.belief.items()}
        draws = {key: one.posterior.draw(n, rng) for key, one in belief.items()}
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

    def _shortlist(self, prospect: _Prospect, rng: np.random.Generator) -> NDArray[np.int64]:
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
                bound = float(belief[limit.key].warp(np.array([loss(limit.metric, limit.bound)]))[0])
                total += np.maximum(draw[limit.key] - bound, 0.0)
        return total

    def _drawn_gain(self, prospect: _Prospect, draw: Mapping[str, Floats], belief: Mapping[str, Belief]) -> Floats:
        """Hypervolume that each drawn candidate adds to the front; of one or many objectives (or without a front) their negative mean."""
        objectives = [belief[name] for name in self._view.names]
        drawn = np.column_stack([draw[name] for name in self._view.names])
        levels = prospect.levels
        if len(levels) == 0 or not 2 <= len(objectives) <= 3:
            return -drawn.mean(axis=1)
        points = np.exp(np.column_stack([one.logarithm(drawn[:, i]) for i, one in enumerate(objectives)]))
        front, corner = self._front(levels, objectives, prospect.usual)
        return acq.sampled_hypervolume_improvement(points[None], front, corner)
