"""Grid search: every architecture once, in mixed-radix order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sartor.arch import Space
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.trial import Proposal, Trial


@dataclass
class _State:
    visited: Visited
    first: int = 0  # all numbers below are visited


class GridSearch:
    """Enumerates the canonical architectures by their number (:meth:`Space.at`): the last choice varies fastest, none is left out or
    repeated, and a choice that is switched off multiplies nothing. No goal and no seed changes the order."""

    def __init__(self, space: Space, goals: Goals) -> None:
        del goals
        self._space = space
        self._fold = Fold(lambda: _State(Visited(space)), self._visit)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            number = state.first
            while len(proposals) < n and number < self._space.size:
                arch = self._space.at(number)
                if state.visited.add(arch):
                    proposals.append(Proposal(arch))
                number += 1
        return proposals

    def _visit(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        while state.first < self._space.size and self._space.at(state.first) in state.visited:
            state.first += 1
