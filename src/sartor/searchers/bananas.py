"""BANANAS: White, Neiswanger & Savani 2021, "BANANAS: Bayesian Optimization with Neural Architectures for Neural Architecture Search",
AAAI.

An ensemble of small networks predicts every metric (section 4, five members); candidates are mutants of the best architectures; and
independent Thompson sampling (section 5: one draw a candidate, from a Gaussian with the ensemble's mean and deviation) chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.predictors.ensemble import MLPEnsemble, fit_mlp
from sartor.searchers.base import Fold, Visited
from sartor.searchers.constraints import slack
from sartor.searchers.embedding import Embedding, Features
from sartor.searchers.gp import Floats
from sartor.searchers.surrogate import View, Warp, best_and_latest, bound_loss
from sartor.trial import Proposal, Trial


@dataclass
class _State:
    """What the finished trials amount to, and the models of the last round."""

    visited: Visited
    finished: int = 0
    kept: list[Trial] = field(default_factory=list)
    learnt: list[Trial] = field(default_factory=list)  # what the ensembles of this round are trained on
    round: int = -1
    models: dict[str, tuple[MLPEnsemble, Warp]] | None = None


class Bananas:
    """Predictor ensemble, mutated incumbents and independent Thompson sampling; see the module.

    The paper's path encoding is used where the space offers it as structural features. With several objectives each has an ensemble, and
    the draws are ranked by dominance and crowding; limits are kept feasibility first, on the draws.

    Args:
        initial: uniform draws before the first ensemble.
        round: trials between two trainings (the paper's k).
        members: networks in an ensemble (the paper's M).
        steps: of training.
        parents: the best so many are mutated.
        pool: mutants to choose from.
        memory: trials to learn from; with more than twice as many, the best half and the latest stay.
        features: structural features of architectures; by default those of the space, if it has them.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        initial: int = 10,
        round: int = 10,
        members: int = 5,
        steps: int = 250,
        parents: int = 10,
        pool: int = 200,
        memory: int = 250,
        features: Features | None = None,
    ) -> None:
        settings = {"initial": (initial, 2), "round": (round, 1), "members": (members, 2), "steps": (steps, 1)}
        for name, (value, least) in {**settings, "parents": (parents, 1), "pool": (pool, 2), "memory": (memory, 10)}.items():
            if value < least:
                raise UserError(f"bananas: {name} must be at least {least}, got {value}")
        self._space, self._goals, self._view = space, goals, View.of(goals)
        self._initial, self._round, self._members, self._steps = initial, round, members, steps
        self._parents, self._pool, self._memory = parents, pool, memory
        self._embedding = Embedding(space, features)
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        models = self._train(state) if state.round >= 0 else {}
        usable = all(name in models for name in self._view.names)
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            if usable and n > 0:
                parents = [state.kept[i].arch for i in _best(self._goals, state.kept, self._parents)]
                candidates = self._mutants(state.visited, parents, max(self._pool, 2 * n), rng)
                rows = self._embedding.rows(candidates)
                for i in self._choose(models, rows, slack(self._goals, state.kept), n, rng):
                    state.visited.add(candidates[i])
                    proposals.append(Proposal(candidates[i]))
            while len(proposals) < n and (arch := state.visited.draw(rng)) is not None:
                state.visited.add(arch)
                proposals.append(Proposal(arch))
        return proposals

    def _finish(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        state.finished += 1
        if trial.arch in self._space:
            state.kept.append(trial)
        if len(state.kept) > 2 * self._memory:
            state.kept = best_and_latest(self._goals, state.kept, self._memory)
        if state.finished >= self._initial and (state.finished - self._initial) % self._round == 0:
            state.round, state.learnt, state.models = (state.finished - self._initial) // self._round, list(state.kept), None

    def _train(self, state: _State) -> dict[str, tuple[MLPEnsemble, Warp]]:
        """An ensemble for every metric with two different values or more, on logarithms of losses."""
        if state.models is None:
            rows = self._embedding.rows([trial.arch for trial in state.learnt])
            state.models = {}
            for i, (key, values) in enumerate(self._view.columns(state.learnt).items()):
                known = np.isfinite(values)
                if known.sum() >= 2:
                    warp = Warp.of(values[known], "log")
                    seed = 1000 * state.round + i  # the models of a round are the same whenever they are trained
                    ensemble = fit_mlp(rows[known], warp(values[known]), seed=seed, members=self._members, steps=self._steps)
                    state.models[key] = ensemble, warp
        return state.models

    def _mutants(self, visited: Visited, parents: Sequence[Arch], count: int, rng: np.random.Generator) -> list[Arch]:
        """Unvisited mutants of the parents in turn, with one mutation or (where a neighbourhood is visited) more."""
        found: dict[Arch, None] = {}
        for i in range(count):
            arch = self._space.mutate(parents[i % len(parents)], rng, n=1 + int(rng.integers(2)))
            if arch not in visited:
                found[arch] = None
        return list(found)

    def _choose(
        self, models: dict[str, tuple[MLPEnsemble, Warp]], rows: Floats, slack: float, n: int, rng: np.random.Generator
    ) -> list[int]:
        """The best `n` candidates by one independent draw each; a relative excess of `slack` over a limit is excused."""
        if not len(rows):
            return []
        draws = {}
        for key, (ensemble, _) in models.items():
            mean, deviation = ensemble.predict(rows)
            draws[key] = mean + deviation * rng.standard_normal(len(rows))
        excess = np.zeros(len(rows))
        for limit in self._view.limits:
            if limit.key in models:
                bound = float(models[limit.key][1](np.array([bound_loss(limit, slack)]))[0])
                excess += np.maximum(draws[limit.key] - bound, 0.0)
        values = np.column_stack([draws[name] for name in self._view.names])
        return [int(i) for i in pareto.survivors(values, n, excess)]


def _best(goals: Goals, trials: Sequence[Trial], count: int) -> list[int]:
    values, violations = goals.table(trials)
    return [int(i) for i in pareto.survivors(values, count, violations)]
