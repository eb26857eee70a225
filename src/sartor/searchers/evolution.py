"""Regularised evolution: Real, Aggarwal, Huang & Le 2019, "Regularized Evolution for Image Classifier Architecture Search", AAAI,
https://arxiv.org/abs/1802.01548 (algorithm 1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sartor.arch import Space
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.variation import fresh, whole, winner
from sartor.trial import Proposal, Trial


@dataclass
class _State:
    visited: Visited
    population: deque[Trial]


class RegularizedEvolution:
    """Ageing evolution: the population is the last P finished trials, so the oldest dies, not the worst.

    The first P architectures are uniform draws. Then, for each proposal, `sample` members are drawn with replacement, the best of them
    is the parent, and the child differs in `mutations` choices. A child that was seen before mutates on until it is new. With several
    objectives the best is a non-dominated one, drawn at random; infeasible and failed trials lose, but age like all others.

    Args:
        population: P; the paper's AmoebaNet has 100.
        sample: S, members a tournament; the paper's AmoebaNet has 25. If S exceeds P, the strongest selection is meant.
        mutations: choices that a child changes; the paper changes one.

    Raises:
        UserError: for settings below 1.
    """

    def __init__(self, space: Space, goals: Goals, *, population: int = 100, sample: int = 25, mutations: int = 1) -> None:
        for name, value in (("population", population), ("sample", sample), ("mutations", mutations)):
            whole("evolution", name, value, 1)
        self._space, self._goals = space, goals
        self._size, self._sample, self._mutations = population, sample, mutations
        self._fold = Fold(lambda: _State(Visited(space), deque(maxlen=population)), _age)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        started = len(history) + len(pending)
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            while len(proposals) < n:
                random = not state.population or started + len(proposals) < self._size
                proposal = self._draw(state, rng) if random else self._child(state, rng)
                if proposal is None:
                    break
                state.visited.add(proposal.arch)
                proposals.append(proposal)
        return proposals

    def _draw(self, state: _State, rng: np.random.Generator) -> Proposal | None:
        arch = state.visited.draw(rng)
        return None if arch is None else Proposal(arch)

    def _child(self, state: _State, rng: np.random.Generator) -> Proposal | None:
        sample = [state.population[int(i)] for i in rng.integers(len(state.population), size=self._sample)]
        parent = winner(self._goals, sample, rng)
        child = fresh(self._space, state.visited, self._space.mutate(parent.arch, rng, n=self._mutations), rng)
        return None if child is None else Proposal(child, meta={"parent": parent.number})


def _age(state: _State, trial: Trial) -> None:
    state.visited.add(trial.arch)
    state.population.append(trial)  # the deque drops the oldest
