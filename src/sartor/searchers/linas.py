"""LINAS: Cummings et al. 2022, "A Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities", algorithm 1.

A generation at a time: cheap predictors are trained on everything evaluated so far, NSGA-II searches on the predictors alone, and the best
of what it found (its predicted front first) that was not yet evaluated is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.constraints import at_present
from sartor.searchers.embedding import Embedding, Features
from sartor.searchers.nsga2 import NSGA2
from sartor.searchers.surrogate import Warp, best_and_latest, losses, metric_value, modelled
from sartor.trial import Proposal, Trial

if TYPE_CHECKING:  # scipy is not needed to list the searchers
    from sartor.predictors.kernel import KernelModel

PREDICTORS = ("ridge", "ridge_pairs", "gp")


@dataclass
class _State:
    """What the finished trials amount to; `plan` is the running generation's, once it was made."""

    visited: Visited
    generation: int = 0
    learnt: list[Trial] = field(default_factory=list)  # of the generations before
    running: list[Trial] = field(default_factory=list)
    seed: int | None = None  # of the running generation's plan, from its trials
    plan: tuple[int, list[Arch]] | None = None  # (seed, architectures, best first)


class Linas:
    """Predictors and NSGA-II on them, in turn; see the module.

    Generation 0 is uniform draws. The seed of a generation's plan travels in `Proposal.meta`, so that the plan can be made again. With one
    objective the inner search is an elitist genetic algorithm. Limits hold in the inner search, on predicted metrics.

    Args:
        population: evaluations a generation.
        inner_population, inner_generations: of NSGA-II on the predictors.
        predictor: one of `ridge` (the choices), `ridge_pairs` (and their pairs), `gp`.
        memory: the predictors learn from at most so many trials: the best half and the latest.
        features: structural features of architectures; by default those of the space, if it has them.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        population: int = 20,
        inner_population: int = 50,
        inner_generations: int = 20,
        predictor: str = "ridge_pairs",
        memory: int = 500,
        features: Features | None = None,
    ) -> None:
        sizes = {"population": (population, 2), "inner_population": (inner_population, 2), "inner_generations": (inner_generations, 1)}
        for name, (value, least) in {**sizes, "memory": (memory, 10)}.items():
            if value < least:
                raise UserError(f"linas: {name} must be at least {least}, got {value}")
        if predictor not in PREDICTORS:
            raise UserError(f"linas: unknown predictor '{predictor}'; known: {', '.join(PREDICTORS)}")
        self._space, self._goals, self._predictor = space, goals, predictor
        self._population, self._memory = population, memory
        self._inner = (inner_population, inner_generations)
        self._embedding = Embedding(space, features)
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        g = state.generation
        waiting = [proposal for proposal in pending if _generation(proposal, state) == g]
        room = min(n, self._population - len(state.running) - len(waiting))
        seed = state.seed
        if seed is None:
            seed = next((int(p.meta["seed"]) for p in waiting if p.meta.get("generation") == g and "seed" in p.meta), None)
        if seed is None:
            seed = int(rng.integers(2**31))
        planned = iter(self._plan(state, seed) if g > 0 and room > 0 else [])
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            while len(proposals) < room:
                arch = next((arch for arch in planned if arch not in state.visited), None) or state.visited.draw(rng)
                if arch is None:
                    break
                state.visited.add(arch)
                proposals.append(Proposal(arch, meta={"generation": g, "seed": seed}))
        return proposals

    def _finish(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        if state.seed is None and trial.meta.get("generation") == state.generation and "seed" in trial.meta:
            state.seed = int(trial.meta["seed"])
        state.running.append(trial)
        if len(state.running) < self._population:
            return
        state.learnt += [one for one in state.running if one.arch in self._space]
        if len(state.learnt) > 2 * self._memory:
            state.learnt = best_and_latest(self._goals, state.learnt, self._memory)
        state.generation, state.running, state.plan, state.seed = state.generation + 1, [], None, None

    # -- the plan of a generation -------------------------------------------------------------------------------------------

    def _plan(self, state: _State, seed: int) -> list[Arch]:
        """Unvisited architectures that the inner search found, best first."""
        if state.plan is None or state.plan[0] != seed:
            state.plan = seed, self._search(best_and_latest(self._goals, state.learnt, self._memory), seed)
        return state.plan[1]

    def _search(self, trials: list[Trial], seed: int) -> list[Arch]:
        models = self._train(trials)
        if any(name not in models for name in self._goals.objectives):
            return []
        population, generations = self._inner
        goals = at_present(self._goals, trials)  # the inner search's own trial numbers are no time
        values, violations = goals.table(trials)
        start = [trials[i].arch for i in pareto.survivors(values, population, violations)]
        inner = NSGA2(self._space, goals, population=max(population, len(set(start))), initial=start)
        found: list[Trial] = []
        rng = np.random.default_rng(seed)
        for _ in range(generations + 1):
            asked = inner.ask(found, [], population, rng)
            if not asked:
                break
            found += self._predicted(models, asked, len(found))
        known = {trial.arch for trial in trials}
        new = [trial for trial in found if trial.arch not in known]
        values, violations = goals.table(new)
        return [new[i].arch for i in pareto.survivors(values, 4 * self._population, violations)]

    def _train(self, trials: list[Trial]) -> dict[str, tuple[KernelModel, Warp]]:
        from sartor.predictors.kernel import fit_kernel

        rows = self._embedding.rows([trial.arch for trial in trials])
        models = {}
        for key, values in losses(self._goals, trials).items():
            known = np.isfinite(values)
            if known.sum() >= 2:
                warp = Warp.of(values[known], "log")
                models[key] = fit_kernel(self._predictor, rows[known], warp(values[known])), warp
        return models

    def _predicted(self, models: dict[str, tuple[KernelModel, Warp]], asked: Sequence[Proposal], first: int) -> list[Trial]:
        """Trials as they would be if the predictors were right."""
        rows = self._embedding.rows([proposal.arch for proposal in asked])
        names = modelled(self._goals)
        # What is equal but for rounding is equal: the order of near equals must not depend on the processor's kernels.
        columns = {key: significant(warp.inverse(model.predict(rows)[0])) for key, (model, warp) in models.items()}
        metrics = [{key: metric_value(names[key], float(column[i])) for key, column in columns.items()} for i in range(len(asked))]
        return [Trial(first + i, one.arch, metrics[i], meta=one.meta) for i, one in enumerate(asked)]


def significant(values: np.ndarray, bits: int = 30) -> np.ndarray:
    """`values` rounded to so many significant bits; 30 are nine digits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


def _generation(item: Trial | Proposal, state: _State) -> int:
    """The generation an item counts for: its own, or the running one if that has passed or it carries none."""
    return max(int(item.meta.get("generation", 0)), state.generation)
