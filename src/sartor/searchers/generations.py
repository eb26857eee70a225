"""Breeding a generation at a time, for methods that differ in who survives and who mates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from sartor.arch import Arch, Space
from sartor.searchers.base import Fold, Visited
from sartor.searchers.variation import fraction, fresh, whole
from sartor.trial import Proposal, Trial

P = TypeVar("P")


@dataclass
class _State(Generic[P]):
    visited: Visited
    population: P
    generation: int = 0
    finished: defaultdict[int, list[Trial]] = field(default_factory=lambda: defaultdict(list))


class Generations(Generic[P]):
    """Generation 0 is drawn uniformly; every later one has `size` new children of the population that `select` made of all before.

    Generation and parents travel in `Proposal.meta`. A generation ends when its last trial has finished; trials that carry no
    generation count for the one that is running.

    Args:
        method: its name, for messages.
        start: the population before generation 0 has ended.
        select: `(population, finished trials of the generation, its number)` to the next population; a pure function.
        mates: `(population, generator)` to the two parents of a child.
        crossover_rate: share of children with two parents; the others are mutants of the first.
        mutation_rate: probability of each choice; None for one over the number of choices with more than one option.

    Raises:
        UserError: for a size below 2 and rates outside 0..1.
    """

    def __init__(
        self,
        method: str,
        space: Space,
        *,
        size: int,
        start: Callable[[], P],
        select: Callable[[P, list[Trial], int], P],
        mates: Callable[[P, np.random.Generator], tuple[Trial, Trial]],
        crossover_rate: float,
        mutation_rate: float | None,
    ) -> None:
        whole(method, "population", size, 2)
        fraction(method, "crossover_rate", crossover_rate)
        fraction(method, "mutation_rate", mutation_rate)
        self._space, self._size, self._select, self._mates = space, size, select, mates
        free = sum(len(options) > 1 for options in space.allowed.values())
        self._crossover_rate = crossover_rate
        self._mutation_rate = mutation_rate if mutation_rate is not None else 1 / max(1, free)
        self._untouched = (1 - self._mutation_rate) ** free  # probability that no choice mutates
        self._fold: Fold[_State[P]] = Fold(lambda: _State(Visited(space), start()), self._finish)

    def population(self, history: Sequence[Trial]) -> P:
        """The population that breeds after `history`."""
        return self._fold(history).population

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        out = sum(_generation(p, state.generation) == state.generation for p in pending)
        slots = self._size - len(state.finished[state.generation]) - out
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            while len(proposals) < min(n, slots):
                proposal = self._draw(state, rng) if state.generation == 0 else self._child(state, rng)
                if proposal is None:
                    break
                state.visited.add(proposal.arch)
                proposals.append(proposal)
        return proposals

    def _finish(self, state: _State[P], trial: Trial) -> None:
        state.visited.add(trial.arch)
        state.finished[_generation(trial, state.generation)].append(trial)
        while len(state.finished[state.generation]) >= self._size:
            state.population = self._select(state.population, state.finished.pop(state.generation), state.generation)
            state.generation += 1

    def _draw(self, state: _State[P], rng: np.random.Generator) -> Proposal | None:
        arch = state.visited.draw(rng)
        return None if arch is None else Proposal(arch, meta={"generation": state.generation})

    def _child(self, state: _State[P], rng: np.random.Generator) -> Proposal | None:
        mother, father = self._mates(state.population, rng)
        parents = [mother, father] if rng.random() < self._crossover_rate else [mother]
        child: Arch = self._space.crossover(mother.arch, father.arch, rng) if len(parents) == 2 else mother.arch
        if len(parents) == 1 or rng.random() >= self._untouched:
            child = self._space.mutate(child, rng, rate=self._mutation_rate)
        new = fresh(self._space, state.visited, child, rng, rate=self._mutation_rate)
        if new is None:
            return None
        return Proposal(new, meta={"generation": state.generation, "parents": [parent.number for parent in parents]})


def _generation(item: Trial | Proposal, running: int) -> int:
    """The generation an item counts for: its own, or the running one if that has passed or it carries none."""
    return max(int(item.meta.get("generation", 0)), running)
