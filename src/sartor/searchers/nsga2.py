"""NSGA-II: Deb, Pratap, Agarwal & Meyarivan 2002, "A Fast and Elitist Multiobjective Genetic Algorithm", IEEE TEVC 6(2), 182-197.

The generation and the parents of an offspring travel in `Proposal.meta`, so every population is recomputed from the finished trials.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.trial import Proposal, Trial

_WALK = 8  # mutations that a duplicate offspring may walk on before it is drawn anew: small spaces near their front are all visited


@dataclass
class _State:
    """What the finished trials amount to: the population of the last complete generation, and the trials of the running one."""

    visited: Visited
    generation: int = 0
    population: list[Trial] = field(default_factory=list)
    rank: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    crowding: np.ndarray = field(default_factory=lambda: np.zeros(0))
    finished: defaultdict[int, list[Trial]] = field(default_factory=lambda: defaultdict(list))


class NSGA2:
    """Non-dominated sorting, crowding distance, binary tournament and constrained domination, a generation at a time.

    Generation 0 is `initial` and, up to `population`, uniform draws. Every later generation has `population` offspring of the best
    `population` among all before: tournament, uniform crossover, mutation of each choice with `mutation_rate`. Duplicates mutate on
    until they are new, and are never proposed. The next generation starts when the last trial of this one has finished; failed trials
    count, and lose to all others. Trials that carry no generation (another searcher's) count for the one that is running.

    Args:
        population: size of the population, and offspring a generation; at least 2.
        crossover_rate: share of offspring with two parents; the others are mutants of one. Deb et al. section IV use 0.9.
        mutation_rate: probability of each choice; None for one over the number of choices with more than one option (section IV).
        initial: architectures to evaluate first; if they are more than `population`, generation 0 is as large as they are many.

    Raises:
        UserError: for settings out of range, and an initial architecture that is not of this space.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        population: int = 50,
        crossover_rate: float = 0.9,
        mutation_rate: float | None = None,
        initial: Iterable[Arch] = (),
    ) -> None:
        if population < 2:
            raise UserError(f"nsga2: population must be at least 2, got {population}")
        for name, rate in (("crossover_rate", crossover_rate), ("mutation_rate", mutation_rate)):
            if rate is not None and not 0 <= rate <= 1:
                raise UserError(f"nsga2: {name} must lie in 0..1, got {rate}")
        self._initial = list(dict.fromkeys(initial))
        for arch in self._initial:
            if arch not in space:
                raise UserError(f"nsga2: initial architecture {dict(arch)} is not in the space; spell it with Space.canonical")
        self._space, self._goals = space, goals
        self._population, self._crossover_rate = population, crossover_rate
        free = sum(len(options) > 1 for options in space.allowed.values())
        self._mutation_rate = mutation_rate if mutation_rate is not None else 1 / max(1, free)
        self._untouched = (1 - self._mutation_rate) ** free  # probability that no choice mutates
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        out = sum(_generation(p, state) == state.generation for p in pending)
        open_slots = self._size(state.generation) - len(state.finished[state.generation]) - out
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            while len(proposals) < min(n, open_slots):
                proposal = self._first(state, rng) if state.generation == 0 else self._offspring(state, rng)
                if proposal is None:
                    break
                state.visited.add(proposal.arch)
                proposals.append(proposal)
        return proposals

    def _size(self, generation: int) -> int:
        return max(self._population, len(self._initial)) if generation == 0 else self._population

    def _finish(self, state: _State, trial: Trial) -> None:
        """Add a finished trial; at the end of a generation, choose the next population (Deb et al. section III-C)."""
        state.visited.add(trial.arch)
        state.finished[_generation(trial, state)].append(trial)
        while len(state.finished[state.generation]) >= self._size(state.generation):
            merged = state.population + state.finished.pop(state.generation)
            values, violations = self._goals.table(merged)
            rank = pareto.ranks(values, violations)
            crowding = pareto.crowding(values, rank)
            kept = pareto.crowded_order(rank, crowding)[: self._population]
            state.population = [merged[i] for i in kept]
            state.rank, state.crowding = rank[kept], crowding[kept]
            state.generation += 1

    def _first(self, state: _State, rng: np.random.Generator) -> Proposal | None:
        arch = next((arch for arch in self._initial if arch not in state.visited), None)
        if arch is None:
            arch = state.visited.draw(rng)
        return None if arch is None else Proposal(arch, meta={"generation": 0})

    def _offspring(self, state: _State, rng: np.random.Generator) -> Proposal | None:
        mother, father = (self._tournament(state, rng) for _ in range(2))
        parents = [mother, father] if rng.random() < self._crossover_rate else [mother]
        child: Arch | None = self._space.crossover(mother.arch, father.arch, rng) if len(parents) == 2 else mother.arch
        for step in range(_WALK):
            if child is not None and (step or len(parents) == 1 or rng.random() >= self._untouched):
                child = self._space.mutate(child, rng, rate=self._mutation_rate)
            if child not in state.visited:
                break
        else:
            child, parents = state.visited.draw(rng), []
        if child is None:
            return None
        return Proposal(child, meta={"generation": state.generation, "parents": [parent.number for parent in parents]})

    def _tournament(self, state: _State, rng: np.random.Generator) -> Trial:
        """The better of two: lower rank, then larger crowding distance (Deb et al. section III-B, crowded-comparison operator)."""
        a, b = (int(i) for i in rng.integers(len(state.population), size=2))
        better_b = (state.rank[b], -state.crowding[b]) < (state.rank[a], -state.crowding[a])
        return state.population[b if better_b else a]


def _generation(item: Trial | Proposal, state: _State) -> int:
    """The generation an item counts for: its own, or the running one if that has passed or it carries none."""
    return max(int(item.meta.get("generation", 0)), state.generation)
