"""Searching a trained supernet: by a strategy (OFA), and from a coarse grid to fine mutations (BigNAS); SPOS: :mod:`.top_k`."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.evaluators.supernet import SupernetEvaluator
from sartor.goals import Goals, Limit
from sartor.recipes.splits import TrainingData
from sartor.recipes.trajectory import Snapshot
from sartor.searchers.base import Searcher
from sartor.trial import Trial

Evaluate = Callable[[Arch], Mapping[str, float]]


class Figure(Protocol):
    """What is known of an architecture without training, by the name of its metric: a :class:`sartor.recipes.cost_term.Cost`, or less."""

    @property
    def name(self) -> str: ...

    def __call__(self, arch: Arch, /) -> Any: ...


OnTrial = Callable[[Trial], None]


@dataclass(frozen=True)
class OneShotResult:
    """What a search with a trained supernet came to: :class:`sartor.recipes.bilevel.SearchResult` without a policy, with trials.

    Attributes:
        arch: the most accurate architecture within the limits, by shared weights.
        metrics: of it.
        trials: everything that was evaluated, in order.
        net: with the trained shared weights.
        steps, seconds: of training; `seconds` has the exploration too.
    """

    arch: Arch
    metrics: Mapping[str, float]
    trials: tuple[Trial, ...]
    steps: int
    seconds: float
    net: nn.Module
    stopped: str | None = None
    trajectory: tuple[Snapshot, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Exploration:
    """An evaluator with its history: what was evaluated is not evaluated again, and the deadline is kept.

    Args:
        history: trials of an interrupted search, which it goes on from.
        seconds: after which nothing new is evaluated; None for no deadline.
        spent: seconds of it that are over; by default those in which the history was evaluated.
    """

    evaluate: Evaluate
    goals: Goals
    seconds: float | None = None
    on_trial: OnTrial | None = None
    history: Sequence[Trial] = ()
    spent: float | None = None
    trials: list[Trial] = field(init=False)

    def __post_init__(self) -> None:
        self.trials = list(self.history)
        self._known = {trial.arch: trial for trial in self.trials}
        spent = math.fsum(trial.seconds for trial in self.trials) if self.spent is None else self.spent
        self._start = time.perf_counter() - spent

    @property
    def over(self) -> bool:
        return self.seconds is not None and time.perf_counter() - self._start >= self.seconds

    def __call__(self, arch: Arch, meta: Mapping[str, object] | None = None) -> Trial:
        """The trial of `arch`, from the history if it is there."""
        if arch in self._known:
            return self._known[arch]
        start = time.perf_counter()
        metrics = dict(self.evaluate(arch))
        trial = Trial(len(self.trials), arch, metrics, seconds=time.perf_counter() - start, meta=dict(meta or {}))
        self.trials.append(trial)
        self._known[arch] = trial
        if self.on_trial is not None:
            self.on_trial(trial)
        return trial

    def knows(self, arch: Arch) -> bool:
        """Whether it was evaluated."""
        return arch in self._known

    def best(self) -> Trial:
        """The best trial within the limits by the first objective; where none is within, the one with the least violation.

        Raises:
            UserError: if nothing was evaluated.
        """
        if not self.trials:
            raise UserError("nothing was evaluated; give the exploration more evaluations or seconds")
        return min(self.trials, key=lambda t: (self.goals.violation(t.metrics), float(self.goals.values(t.metrics)[0])))


_TRIES = 200  # for a mutant that is new


def evolve(explore: Exploration, searcher: Searcher, budget: int, *, batch: int = 1, seed: int = 0, least: int = 1) -> Trial:
    """Let a searcher propose until `budget` trials are evaluated, it has nothing left, or the deadline has passed.

    The generator of every proposal follows from the seed and the number of trials, as in :func:`sartor.run.search`: with a `batch` of
    one, an interrupted search goes on from its history as if it had not been. The deadline waits for `least` trials.
    """
    while len(explore.trials) < budget and not (explore.over and len(explore.trials) >= least):
        rng = np.random.default_rng((seed, len(explore.trials)))
        proposals = searcher.ask(explore.trials, (), min(batch, budget - len(explore.trials)), rng)
        before = len(explore.trials)
        for proposal in proposals:
            explore(proposal.arch, proposal.meta)
        if len(explore.trials) == before:
            break
    return explore.best()


def coarse_to_fine(explore: Exploration, space: Space, *, coarse: int, fine: int, rate: float = 0.1, seed: int = 0) -> Trial:
    """A grid in which all choices of a kind take the same relative size, then mutations of its best point.

    Yu et al. 2020, "BigNAS: Scaling up neural architecture search with big single-stage models", section 3.2: coarse skeletons first
    (depth, width, kernel and resolution, each alike over the network), then variations of the best one within the limits.

    Args:
        coarse: most points of the grid; a larger grid is thinned out at random.
        fine: mutations, each choice changed with probability `rate`, of whatever is best so far. One follows from the seed and the trials
            before it: with a history the search goes on as if it had not been interrupted. It ends early where nothing new turns up.
    """
    grid = _grid(space, coarse, np.random.default_rng((seed, 6)))
    for arch in grid:
        if explore.over and explore.trials:
            break
        explore(arch)
    while len(explore.trials) < len(grid) + fine and not explore.over:
        rng, best = np.random.default_rng((seed, 6, len(explore.trials))), explore.best().arch
        mutants = (space.mutate(best, rng, rate=rate) for _ in range(_TRIES))
        arch = next((mutant for mutant in mutants if not explore.knows(mutant)), best)
        if explore.knows(arch):
            break
        explore(arch)
    return explore.best()


def _grid(space: Space, most: int, rng: np.random.Generator) -> list[Arch]:
    """Architectures in which all choices whose names end alike have the same relative size."""
    kinds: dict[str, list[str]] = {}
    for name, allowed in space.allowed.items():
        if len(allowed) > 1:
            kinds.setdefault(name.rpartition(".")[2], []).append(name)
    levels = [range(max(len(space.allowed[name]) for name in names)) for names in kinds.values()]
    total = int(np.prod([len(level) for level in levels], dtype=np.float64)) if levels else 1
    if total <= most:
        points = list(itertools.product(*levels))
    else:
        ends = [tuple(level[0] for level in levels), tuple(level[-1] for level in levels)]
        points = [*ends, *(tuple(int(rng.integers(len(level))) for level in levels) for _ in range(max(0, most - 2)))]
    found = []
    for point in points:
        values = {name: allowed[0] for name, allowed in space.allowed.items()}
        for (_, names), level, options in zip(kinds.items(), point, levels, strict=True):
            share = level / max(1, len(options) - 1)
            values.update({name: space.allowed[name][round(share * (len(space.allowed[name]) - 1))] for name in names})
        found.append(space.canonical(values))
    return list(dict.fromkeys(found))


def sub_net_metrics(
    net: nn.Module, data: TrainingData, costs: Sequence[Figure] = (), *, images: int | None = 1000, seed: int = 0
) -> Evaluate:
    """Accuracy of a sub-net with calibrated batch normalisation, its parameters and multiply-accumulates, and the given costs."""
    evaluator = SupernetEvaluator(net, data, images=images, seed=seed)  # type: ignore[arg-type]  # checked by the recipe that trained it

    def evaluate(arch: Arch) -> dict[str, float]:
        return {**evaluator(arch), **{cost.name: float(cost(arch)) for cost in costs}}

    return evaluate


def check_limits(limits: Sequence[Limit], costs: Sequence[Figure]) -> None:
    """Refuse limits on what nothing measures.

    Raises:
        UserError: naming the metric.
    """
    known = {"accuracy", "top5", "params", "macs", *(cost.name for cost in costs)}
    missing = next((limit.key for limit in limits if limit.key not in known), None)
    if missing is not None:
        raise UserError(
            f"a limit on {missing} needs its cost: give costs=[Cost(...)] named '{missing}' (known: {', '.join(sorted(known))})"
        )


__all__ = ["Exploration", "Figure", "OneShotResult", "check_limits", "coarse_to_fine", "evolve", "sub_net_metrics"]
