"""Architectures within limits by exchanging choices: a good one without a proof, where costs are no sums of small tables.

A learned cost (:meth:`sartor.recipes.cost_term.Cost.learned`) proposes exchanges by its tables, and decides by its true value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.cost_term import Cost
from sartor.recipes.elimination import Elimination, Potential

Accept = Callable[[Arch], bool]
_FEW = 24  # exchanges of a choice that a learned cost is asked about in truth


@dataclass(frozen=True)
class Bound:
    """``at_least <= cost(arch) <= at_most``, in the cost's own unit."""

    cost: Cost
    at_most: float = math.inf
    at_least: float = -math.inf

    def holds(self, arch: Mapping[str, int]) -> bool:
        return self.at_least <= float(self.cost(arch)) <= self.at_most


@dataclass(frozen=True)
class Projection:
    """An architecture within the limits.

    Attributes:
        log_prob: its log-probability.
        limit: no architecture within the limits has a larger log-probability than this.
        exact: whether the architecture is proven to be the most probable one.
        costs: its costs, by name.
        ranked: architectures that were looked at.
    """

    arch: Arch
    log_prob: float
    limit: float
    exact: bool
    costs: dict[str, float]
    ranked: int


class Problem:
    """The search of one projection: what is sought, and the best architecture so far."""

    def __init__(self, space: Space, scores: dict[str, dict[int, float]], bounds: list[Bound], accept: Accept | None) -> None:
        self.space, self.scores, self.bounds, self.accept = space, scores, bounds, accept
        #: (cost, sign, bound): a side is kept where sign * (cost - bound) <= 0
        self.sides = [(b.cost, 1.0, b.at_most) for b in bounds if b.at_most < math.inf]
        self.sides += [(b.cost, -1.0, b.at_least) for b in bounds if b.at_least > -math.inf]
        self.learned = any(b.cost.fit is not None for b in bounds)
        self.best: tuple[float, Arch] | None = None
        self.looked = 0

    # -- architectures ------------------------------------------------------------------------------------------------

    def score(self, arch: Mapping[str, int]) -> float:
        on = self.space.active(arch)
        return sum(self.scores[name][arch[name]] for name in self.scores if name in on)

    def excess(self, arch: Mapping[str, int]) -> float:
        """Sum of relative violations."""
        return sum(max(0.0, sign * (float(cost(arch)) - bound)) / unit(bound) for cost, sign, bound in self.sides)

    def estimated(self, near: Arch) -> Callable[[Arch], float]:
        """:meth:`excess` next to `near`: the true costs there, and what the tables say of the difference."""
        offsets = [float(cost(near)) - float(cost.estimate(near)) for cost, _, _ in self.sides]

        def excess(arch: Arch) -> float:
            sides = zip(self.sides, offsets, strict=True)
            return sum(max(0.0, sign * (float(cost.estimate(arch)) + o - bound)) / unit(bound) for (cost, sign, bound), o in sides)

        return excess

    def consider(self, arch: Arch) -> bool:
        """Whether `arch` is within all limits; the best one is remembered."""
        self.looked += 1
        if not all(bound.holds(arch) for bound in self.bounds) or (self.accept is not None and not self.accept(arch)):
            return False
        score = self.score(arch)
        if self.best is None or score > self.best[0]:
            self.best = score, arch
        return True

    def result(self, limit: float, *, exact: bool) -> Projection:
        if self.best is None:
            raise UserError(f"no architecture among {self.looked} within the limits on {self._names()} was accepted; relax the limits")
        score, arch = self.best
        costs = {bound.cost.name: float(bound.cost(arch)) for bound in self.bounds}
        return Projection(arch, score, max(limit, score), exact, costs, self.looked)

    def _names(self) -> str:
        return ", ".join(dict.fromkeys(bound.cost.name for bound in self.bounds)) or "nothing"

    def likely(self) -> list[Potential]:
        return [Potential((name,), _column(self.space, name, row)) for name, row in self.scores.items()]

    def exchanged(self) -> Projection:
        """A good architecture within the limits, without a proof."""
        plan = Elimination(self.space, [self.likely()], silent=frozenset({0}))
        start = plan.arch(plan.complete(plan.solve([1.0]), {}, len(plan.order) - 1))
        limit = self.score(start)
        rng = np.random.default_rng(0)
        # A floor is a wish, and looking for what fills it with a cost that is learned takes seconds an attempt.
        floored = any(sign < 0 for _, sign, _ in self.sides)
        for attempt in range(2 if self.learned and floored else 8):
            arch = self._repaired(start if attempt == 0 else self.space.sample(rng))
            if self.consider(arch) or self.excess(arch) <= 0:  # what is not accepted may have neighbours that are
                self._exchange(arch)
            if self.best is not None and (self.learned or self.best[0] >= limit - 1e-9):
                break  # a true cost takes long, and nothing is better than the best
        if self.best is None:
            least = self._repaired(start)
            figures = ", ".join(f"{b.cost.name} {float(b.cost(least)):.6g} {b.cost.unit}".rstrip() for b in self.bounds)
            raise UserError(f"no architecture within the limits on {self._names()} was found; the nearest has {figures}: relax the limits")
        return self.result(limit, exact=self.best[0] >= limit - 1e-9)

    def _repaired(self, arch: Arch) -> Arch:
        """Exchange single choices for the most of the violation that a unit of score buys, until nothing lessens it."""
        left = self.excess(arch)
        while left > 0:
            held, near = self.score(arch), self.space.neighbours(arch)

            def worth(excess: float, a: Arch, left: float = left, held: float = held) -> float:
                return (left - excess) / max(held - self.score(a), 1e-9)

            if self.learned:
                guess = self.estimated(arch)
                near = sorted(near, key=lambda a: -worth(guess(a), a))[:_FEW]
            after, best = max(((self.excess(a), a) for a in near), key=lambda pair: worth(*pair), default=(left, arch))
            if after >= left:
                break
            left, arch = after, best
        return arch

    def _exchange(self, arch: Arch) -> None:
        """Improve an architecture within the limits by exchanging one choice, then two, as long as the score rises."""
        improved = True
        while improved:
            improved = False
            before = self.best[0] if self.best is not None else -math.inf
            guess = self.estimated(arch) if self.learned else None
            for neighbour in self.space.neighbours(arch):
                self._try(neighbour, guess)
            if self.best is not None and self.best[0] <= before:
                single = self.space.neighbours(arch)
                ranked = sorted(single, key=self.score, reverse=True)[:12]  # a second choice makes up for what the first one costs
                for first in ranked:
                    for second in self.space.neighbours(first):
                        self._try(second, guess)
            if self.best is not None and self.best[0] > before:
                arch, improved = self.best[1], True

    def _try(self, arch: Arch, guess: Callable[[Arch], float] | None) -> None:
        """Consider an architecture that is better than the best; a learned cost is asked only where its model says that limits are kept."""
        if (self.best is None or self.score(arch) > self.best[0]) and (guess is None or guess(arch) <= 0):
            self.consider(arch)


def _column(space: Space, name: str, row: Mapping[int, float]) -> np.ndarray:
    values = np.zeros(len(space.choices[name]))
    for index, score in row.items():
        values[index] = score
    return values


def unit(bound: float) -> float:
    """Excesses are counted relative to the bound, so that multipliers of different costs are alike in size."""
    return max(abs(bound), 1e-12)


__all__ = ["Accept", "Bound", "Problem", "Projection", "unit"]
