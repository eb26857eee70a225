"""Local search: White, Nolen & Savani 2021, "Exploring the Loss Landscape in Neural Architecture Search", UAI,
https://arxiv.org/abs/2005.02960 (algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.variation import dominates, ordered
from sartor.trial import Proposal, Trial


@dataclass
class _State:
    """Where the climb stands: `open` are the neighbours of `at` that no finished trial knows."""

    visited: Visited
    known: dict[Arch, Trial] = field(default_factory=dict)
    climb: int = 0
    at: Trial | None = None
    neighbours: list[Arch] = field(default_factory=list)
    open: dict[Arch, None] = field(default_factory=dict)


class LocalSearch:
    """Hill climbing over :meth:`Space.neighbours`, with a new uniform start at every local optimum.

    A neighbour is better if it dominates the current architecture in the constrained sense; with one objective and no limit: if it is
    strictly less. What any earlier trial knows is not evaluated again, so a climb may run through visited ground at no cost.

    Args:
        improvement: "first" moves as soon as a finished neighbour is better, and tries them in random order; "best" (steepest) evaluates
            all neighbours and moves to the best (White et al. 2021, algorithm 1).

    Raises:
        UserError: for another `improvement`.
    """

    def __init__(self, space: Space, goals: Goals, *, improvement: Literal["first", "best"] = "first") -> None:
        if improvement not in ("first", "best"):
            raise UserError(f"local: improvement must be 'first' or 'best', got {improvement!r}")
        self._space, self._goals, self._first = space, goals, improvement == "first"
        self._fold = Fold(lambda: _State(Visited(space)), self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        """Neighbours, or one start; [] while all that the next step needs is pending."""
        state = self._fold(history)
        if state.at is None:
            if any(p.meta.get("climb") == state.climb for p in pending):
                return []  # the next start is on its way
            with state.visited.holding(pending):
                arch = state.visited.draw(rng)
            return [] if arch is None else [Proposal(arch, meta={"climb": state.climb, "from": None})]
        busy = {p.arch for p in pending}
        todo = [arch for arch in state.open if arch not in busy]
        picked = rng.permutation(len(todo))[:n]
        return [Proposal(todo[int(i)], meta={"climb": state.climb, "from": state.at.number}) for i in picked]

    def _finish(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        state.known[trial.arch] = trial
        state.open.pop(trial.arch, None)
        if state.at is None:
            # A late neighbour of a climb that is over starts no new one: that would search the same hill again.
            if trial.meta.get("climb", state.climb) == state.climb and trial.arch in self._space:
                self._climb(state, trial)
        elif (self._first and dominates(self._goals, trial, state.at) and trial.arch in state.neighbours) or not state.open:
            self._climb(state, state.at)

    def _climb(self, state: _State, at: Trial) -> None:
        """Move as far as finished trials tell, up to a point that has open neighbours, or past a local optimum."""
        while True:
            state.at, state.neighbours = at, self._space.neighbours(at.arch)
            state.open = {arch: None for arch in state.neighbours if arch not in state.known}
            better = [
                trial
                for arch in state.neighbours
                if (self._first or not state.open) and (trial := state.known.get(arch)) is not None and dominates(self._goals, trial, at)
            ]
            if better:
                at = better[0] if self._first else ordered(self._goals, better)[0]
                continue
            if not state.open:
                state.at, state.climb = None, state.climb + 1
            return
