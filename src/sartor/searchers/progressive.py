"""Growing architectures block by block from a beam of the best so far: what PNAS and DPP-Net share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Arch, Label, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.memory import Memory, forecast
from sartor.searchers.variation import parents_first, whole
from sartor.trial import Proposal, Trial

Order = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.int_]]  # values (n, m), violations (n,) -> positions, best first
_MOST_OPTIONS = 1000  # of one block
_NEUTRAL = ("skip_connect", "skip", "identity")  # labels of what changes nothing


@dataclass
class _State:
    visited: Visited
    memory: Memory
    known: dict[Arch, Trial] = field(default_factory=dict)
    stage: int = -1  # -1: before the first
    family: list[Arch] = field(default_factory=list)  # all that the running stage may breed from, in the end
    open: dict[Arch, None] = field(default_factory=dict)  # chosen for the running stage, and not finished
    draws: int = 0  # uniform draws to finish before the next pass
    seed: int = 0  # of the latest trial: what the next stage draws by


class Progressive:
    """Beam search over blocks of choices, guided by a predictor that is trained anew for each stage.

    Stage b gives every member of the beam all options of block b; choices of later blocks keep their `base` option. Of the children that
    nobody has seen, the `beam` that look best to the predictor are evaluated; the best `beam` of all known children are the next beam.
    After the last block, further passes revise block after block in the same way; a pass that finds nothing new is followed by `beam`
    uniform draws.

    Where children look alike to the predictor, chance decides: its seed travels in `Proposal.meta`.

    Args:
        order: ranks objectives and violations, those predicted of children as well as those measured of the next beam.
        beam: members of the beam, and evaluations a stage.
        blocks: names of the choices of each block, grown in this order; None for one block a choice, parents before those they switch.
            Choices that no block names stay as `base` says until the uniform draws.
        base: label of the choices that have not grown yet; where it names none, a skip connection if the choice has one, else its first
            allowed option. A neutral option (a skip, the smallest depth) makes small architectures of early stages meaningful.

    Raises:
        UserError: for settings out of range, unknown or doubled choices, and blocks of more than 1000 combinations.
    """

    def __init__(
        self,
        method: str,
        space: Space,
        goals: Goals,
        order: Order,
        *,
        beam: int,
        blocks: Sequence[Sequence[str]] | None,
        base: Mapping[str, Label] | None,
    ) -> None:
        whole(method, "beam", beam, 1)
        named = [[name] for name in parents_first(space)] if blocks is None else [list(block) for block in blocks]
        flat = list(itertools.chain.from_iterable(named))
        if unknown := [name for name in flat if name not in space.choices]:
            raise UserError(f"{method}: a block names '{unknown[0]}', which is no choice; choices: {', '.join(space.choices)}")
        if doubled := [name for name in flat if flat.count(name) > 1]:
            raise UserError(f"{method}: choice '{doubled[0]}' is in more than one block")
        if not flat or any(math.prod(len(space.allowed[name]) for name in block) > _MOST_OPTIONS for block in named):
            raise UserError(f"{method}: every block must have 1 to {_MOST_OPTIONS} combinations; split the larger ones")
        self._base = {name: _neutral(space, name) for name in space.choices}
        for name, label in (base or {}).items():
            self._base[name] = space.option(name, label)
        self._root = space.canonical(self._base)  # says so if a base option is not allowed
        # A block without a decision would be a stage that evaluates one architecture again and again.
        self._blocks = [block for block in named if any(len(space.allowed[name]) > 1 for name in block)] or [flat]
        self._space, self._goals, self._order, self._beam = space, goals, order, beam
        self._fold = Fold(self._start, self._finish)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        """Members of the running stage; [] while the last of them are pending."""
        state = self._fold(history)
        busy = {p.arch for p in pending}
        if not state.draws:
            todo = [arch for arch in state.open if arch not in busy]
            picked = rng.permutation(len(todo))[:n]
            meta = {"stage": state.stage, "seed": int(rng.integers(2**31))}
            return [Proposal(todo[int(i)], meta=meta) for i in picked]
        proposals: list[Proposal] = []
        with state.visited.holding(pending):
            while len(proposals) < min(n, state.draws - len(pending)) and (arch := state.visited.draw(rng)) is not None:
                state.visited.add(arch)
                proposals.append(Proposal(arch, meta={"stage": state.stage}))
        return proposals

    def _start(self) -> _State:
        state = _State(Visited(self._space), Memory(self._goals))
        self._advance(state)
        return state

    def _finish(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        if trial.arch in self._space:
            state.known[trial.arch] = trial
            state.memory.add(trial)
        state.open.pop(trial.arch, None)
        state.seed = int(trial.meta.get("seed", state.seed))
        state.draws = max(0, state.draws - 1)
        if not state.open and not state.draws:
            self._advance(state)

    def _advance(self, state: _State) -> None:
        """To the next stage that has something new to evaluate; after a whole pass without any, to uniform draws."""
        for _ in self._blocks:
            parents = self._best(state)
            state.stage += 1
            state.family = list(dict.fromkeys(child for parent in parents for child in self._children(parent, state.stage)))
            unseen = [arch for arch in state.family if arch not in state.known]
            if unseen:
                # Candidates that look alike to the predictor (all of them, at first) are in an order of no meaning.
                unseen = [unseen[int(i)] for i in np.random.default_rng((state.stage, state.seed)).permutation(len(unseen))]
                if len(unseen) > self._beam:
                    unseen = [unseen[i] for i in self._order(*forecast(self._space, self._goals, state.memory.trials())(unseen))]
                state.open = dict.fromkeys(unseen[: self._beam])
                return
        state.draws = self._beam
        state.family = [trial.arch for trial in state.memory.trials()]  # the next pass may start from what the draws find

    def _best(self, state: _State) -> list[Arch]:
        """The beam: the best of the stage that has ended."""
        trials = [state.known[arch] for arch in dict.fromkeys(state.family) if arch in state.known]
        if not trials:
            return [self._root]
        return [trials[i].arch for i in self._order(*self._goals.table(trials))[: self._beam]]

    def _children(self, parent: Arch, stage: int) -> list[Arch]:
        on = self._space.active(parent)
        values = {**self._base, **{name: parent[name] for name in on}}
        block = self._blocks[stage % len(self._blocks)]
        options = itertools.product(*(self._space.allowed[name] for name in block))
        return [self._space.canonical({**values, **dict(zip(block, picked, strict=True))}) for picked in options]


def _neutral(space: Space, name: str) -> int:
    """The option of a choice that has not grown: a skip if it has one, else its first. With `none` in its place, a cell carries nothing
    until its last edge has grown."""
    labels = {space.choices[name][i]: i for i in reversed(space.allowed[name]) if isinstance(space.choices[name][i], str)}
    return next((labels[label] for label in _NEUTRAL if label in labels), space.allowed[name][0])
