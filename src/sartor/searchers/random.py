"""Random search: Li & Talwalkar 2019, "Random Search and Reproducibility for Neural Architecture Search", https://arxiv.org/abs/1902.07638"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sartor.arch import Space
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.trial import Proposal, Trial


class RandomSearch:
    """Uniform over *architectures* (conditional choices do not bias it), without repeats, until the space is exhausted."""

    def __init__(self, space: Space, goals: Goals) -> None:
        del goals  # every searcher is made from the same two; this one follows no goal
        self._fold = Fold(lambda: Visited(space), _visit)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        visited = self._fold(history)
        proposals: list[Proposal] = []
        with visited.holding(pending):
            while len(proposals) < n and (arch := visited.draw(rng)) is not None:
                visited.add(arch)
                proposals.append(Proposal(arch))
        return proposals


def _visit(visited: Visited, trial: Trial) -> None:
    visited.add(trial.arch)
