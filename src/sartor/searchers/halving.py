"""Successive halving, Hyperband and ASHA: many architectures at a low fidelity, a share 1/eta of them at the next.

Successive halving: Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943; Hyperband: Li et al. 2018, JMLR 18(185), algorithm 1,
https://arxiv.org/abs/1603.06560; ASHA: Li et al. 2020, MLSys, algorithm 2, https://arxiv.org/abs/1810.05934.

A proposal carries its fidelity, and `evaluate(arch, fidelity)` is called with it; the same architecture comes again at a higher fidelity.
Bracket and rung travel in `Proposal.meta`, so every promotion is derived from the finished trials.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.constraints import scores
from sartor.searchers.variation import ordered, whole
from sartor.trial import Proposal, Trial

Shape = tuple[int, int]  # of a bracket: architectures at its first rung, and which rung that is


def fidelities(minimum: float, maximum: float, eta: int) -> list[float]:
    """The rungs, lowest first: `maximum / eta^k` down to no less than `minimum`; the last is `maximum` exactly.

    Raises:
        UserError: unless 0 < minimum <= maximum and eta is a whole number of at least 2.
    """
    whole("halving", "eta", eta, 2)
    if not (0 < minimum <= maximum and math.isfinite(maximum)):
        raise UserError(f"halving: expected 0 < min_fidelity <= max_fidelity, got {minimum} and {maximum}")
    steps = math.floor(math.log(maximum / minimum, eta) + 1e-9)
    return [maximum / eta**k for k in range(steps, -1, -1)]


# -- brackets: successive halving and Hyperband ---------------------------------------------------------------------------


@dataclass
class _Brackets:
    """The trials of the bracket that runs, by rung."""

    visited: Visited
    number: int = 0
    rungs: dict[int, list[Trial]] = field(default_factory=dict)


class _Halving:
    """Runs one bracket after the other; `shape(i)` is that of the i-th.

    A rung waits for its last trial. Then its best `floor(n / eta)` go on: by constrained rank and crowding distance, with one objective
    simply the best. Trials that failed or lack a metric never go on.
    """

    def __init__(self, space: Space, goals: Goals, rungs: list[float], eta: int, shape: Callable[[int], Shape]) -> None:
        self._space, self._goals, self._fidelities, self._eta, self._shape = space, goals, rungs, eta, shape
        self._fold = Fold(lambda: _Brackets(Visited(space)), _record)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        mine = [p for p in pending if p.meta.get("bracket", -1) >= state.number]
        number = max([state.number, *(int(p.meta["bracket"]) for p in mine)])
        rungs = state.rungs if number == state.number else {}
        with state.visited.holding(pending):
            while True:
                size, first = self._shape(number)
                proposals, over = self._bracket(state.visited, rungs, mine, (number, size, first), n, rng)
                if proposals or not over:
                    return proposals
                if not rungs:
                    return []  # a bracket that could not draw a single architecture: the space is exhausted
                number, rungs = number + 1, {}

    def _bracket(
        self,
        visited: Visited,
        rungs: dict[int, list[Trial]],
        pending: list[Proposal],
        bracket: tuple[int, int, int],
        n: int,
        rng: np.random.Generator,
    ) -> tuple[list[Proposal], bool]:
        """Up to `n` proposals of the running rung, and whether the bracket is over."""
        number, size, first = bracket
        rung = max([first, *rungs, *(int(p.meta["rung"]) for p in pending)])
        while True:
            out = [p.arch for p in pending if p.meta["rung"] == rung]
            done = rungs.get(rung, [])
            if rung == first:
                archs = self._draws(visited, min(n, size - len(done) - len(out)), rng)
            else:
                taken = {*out, *(trial.arch for trial in done)}
                archs = [arch for arch in self._promoted(rungs.get(rung - 1, [])) if arch not in taken][:n]
            if archs or out:
                fidelity = self._fidelities[rung]
                return [Proposal(arch, fidelity, {"bracket": number, "rung": rung}) for arch in archs], False
            if rung + 1 == len(self._fidelities) or not self._promoted(done):
                return [], True
            rung += 1

    def _draws(self, visited: Visited, n: int, rng: np.random.Generator) -> list[Arch]:
        archs: list[Arch] = []
        while len(archs) < n and (arch := visited.draw(rng)) is not None:
            visited.add(arch)
            archs.append(arch)
        return archs

    def _promoted(self, trials: list[Trial]) -> list[Arch]:
        """The best `floor(n / eta)` of a finished rung."""
        sane = [trial for trial, v in zip(trials, self._goals.table(trials)[1], strict=True) if math.isfinite(v)]
        return [trial.arch for trial in ordered(self._goals, sane)[: len(trials) // self._eta]]


def _record(state: _Brackets, trial: Trial) -> None:
    state.visited.add(trial.arch)
    number = int(trial.meta.get("bracket", -1))
    if number > state.number:
        state.number, state.rungs = number, {}
    if number == state.number:
        state.rungs.setdefault(int(trial.meta["rung"]), []).append(trial)


class SuccessiveHalving(_Halving):
    """Brackets of `initial` architectures at the lowest fidelity, of which a share 1/eta goes on, rung by rung.

    Args:
        min_fidelity, max_fidelity: of the lowest and the highest rung, in the unit that `evaluate` understands.
        eta: one in `eta` goes on, to `eta` times the fidelity.
        initial: architectures at the lowest rung; None for as many as leave one at the highest.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        min_fidelity: float = 1 / 9,
        max_fidelity: float = 1.0,
        eta: int = 3,
        initial: int | None = None,
    ) -> None:
        rungs = fidelities(min_fidelity, max_fidelity, eta)
        size = eta ** (len(rungs) - 1) if initial is None else initial
        whole("halving", "initial", size, 1)
        super().__init__(space, goals, rungs, eta, lambda _: (size, 0))


class Hyperband(_Halving):
    """Successive halving in turn from every rung: `ceil((s_max + 1) / (s + 1) · eta^s)` architectures for s = s_max … 0 (algorithm 1).

    Args:
        min_fidelity, max_fidelity, eta: as in :class:`SuccessiveHalving`.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(self, space: Space, goals: Goals, *, min_fidelity: float = 1 / 9, max_fidelity: float = 1.0, eta: int = 3) -> None:
        rungs = fidelities(min_fidelity, max_fidelity, eta)

        def shape(number: int) -> Shape:
            first = number % len(rungs)
            s = len(rungs) - 1 - first
            return -(-len(rungs) * eta**s // (s + 1)), first

        super().__init__(space, goals, rungs, eta, shape)


# -- ASHA ------------------------------------------------------------------------------------------------------------------

_Key = tuple[float, float, int]  # violation, first objective (minimised), trial number: best first


@dataclass
class _Rung:
    keys: list[_Key] = field(default_factory=list)  # all finished, sorted
    waiting: list[tuple[_Key, Arch]] = field(default_factory=list)  # those that were not promoted, sorted
    at: dict[Arch, _Key] = field(default_factory=dict)  # of the waiting


@dataclass
class _Ladder:
    visited: Visited
    rungs: list[_Rung]


class ASHA:
    """Asynchronous successive halving: an architecture goes on as soon as it is among the best 1/eta of its rung; nobody waits.

    The highest rung with such an architecture is served first; without any, a new one starts at the lowest (algorithm 2). Rungs are
    ordered by violation, then by the first objective. Trials that failed or lack a metric count, and never go on.

    Args:
        min_fidelity, max_fidelity, eta: as in :class:`SuccessiveHalving`.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(self, space: Space, goals: Goals, *, min_fidelity: float = 1 / 9, max_fidelity: float = 1.0, eta: int = 3) -> None:
        self._fidelities, self._eta, self._goals = fidelities(min_fidelity, max_fidelity, eta), eta, goals
        self._fold = Fold(lambda: _Ladder(Visited(space), [_Rung() for _ in self._fidelities]), self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        state = self._fold(history)
        going = {(p.arch, p.meta.get("rung")) for p in pending}
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            while len(proposals) < n:
                found = self._promotable(state.rungs, going)
                if found is None:
                    if (arch := state.visited.draw(rng)) is None:
                        break
                    state.visited.add(arch)
                    found = 0, arch
                rung, arch = found
                going.add((arch, rung))
                proposals.append(Proposal(arch, self._fidelities[rung], {"rung": rung}))
        return proposals

    def _promotable(self, rungs: list[_Rung], going: set[tuple[Arch, int | None]]) -> tuple[int, Arch] | None:
        """The rung to go to and who goes, from the highest rung down."""
        for k in range(len(rungs) - 2, -1, -1):
            quota = len(rungs[k].keys) // self._eta
            for key, arch in rungs[k].waiting:
                if not math.isfinite(key[0]) or bisect_left(rungs[k].keys, key) >= quota:
                    break
                if (arch, k + 1) not in going:
                    return k + 1, arch
        return None

    def _finish(self, state: _Ladder, trial: Trial) -> None:
        state.visited.add(trial.arch)
        if (k := trial.meta.get("rung")) is None or not 0 <= k < len(state.rungs):
            return  # another searcher's trial
        key = (*scores(self._goals, [trial])[0], trial.number)
        rung = state.rungs[k]
        insort(rung.keys, key)
        if trial.arch not in rung.at:
            insort(rung.waiting, (key, trial.arch), key=lambda item: item[0])
            rung.at[trial.arch] = key
        below = state.rungs[k - 1] if k > 0 else None
        if below is not None and (promoted := below.at.pop(trial.arch, None)) is not None:
            del below.waiting[bisect_left(below.waiting, promoted, key=lambda item: item[0])]
