"""The most probable architecture within limits: what makes a limit given to a gradient method a limit on the derived network.

Maximise ``log P(arch)`` subject to bounds on costs that are sums of tables. The Lagrangian dual is solved exactly (cutting planes over
bucket elimination); its gap is closed by ranking architectures from the best Lagrangian value downwards until no better one can follow
(Handler & Zang 1980, "A dual algorithm for the constrained shortest path problem", Networks 10, for any number of constraints).
A learned cost is no sum of tables and leaves no proof: see :mod:`sartor.recipes.exchange`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sartor.arch import Space
from sartor.errors import UserError
from sartor.recipes.cost_term import Cost
from sartor.recipes.elimination import Elimination, Potential, Solution, TooLarge
from sartor.recipes.exchange import Accept, Bound, Problem, Projection, unit

_TINY = 1e-30  # an option that a policy excludes is worth less than any other, yet may be needed to keep a limit


def project(
    space: Space,
    mixture: Mapping[str, Any],
    bounds: Sequence[Bound],
    *,
    accept: Accept | None = None,
    most: int = 5000,
) -> Projection:
    """The most probable architecture of `space` under independent choices that keeps all `bounds`.

    Args:
        mixture: choice -> {option index: weight}, as ``policy.expected()`` gives it; a settled choice may hold its index. The probability
            of an architecture is the product of the weights of the choices that are switched on in it.
        accept: a further condition of any kind, e.g. a peak of memory, or that input and output are connected.
        most: architectures to rank before giving up the proof; the best one found so far, improved by exchange, is then returned with
            `exact` False.

    Bounds on a learned cost are held against the true one, and `exact` is True only where nothing at all is more probable.

    Raises:
        UserError: if no architecture keeps the bounds, naming what is attainable, or none was found that `accept` takes.
    """
    scores = _scores(space, mixture)
    problem = _Ranked(space, scores, list(bounds), accept)
    if problem.learned:
        return problem.exchanged()
    try:
        return problem.ranked(most)
    except TooLarge:
        return problem.exchanged()


def within(
    space: Space,
    mixture: Mapping[str, Any],
    cost: Cost,
    target: float,
    *,
    fill: float = 0.85,
    accept: Accept | None = None,
    others: Sequence[Bound] = (),
) -> Projection:
    """The most probable architecture whose cost is at most `target` and, where there is any, at least ``fill * target``, unless it uses as
    much of another limit.

    A target is a budget to be used: a network that leaves much of it unused is seldom what was asked for.

    Args:
        fill: share of the target to use; 0 asks for the limit alone.

    Raises:
        UserError: if no architecture keeps the limit.
    """
    if not (target > 0 and 0 <= fill <= 1):
        raise UserError(f"expected a target above zero and fill= in [0, 1], got {target} and {fill}")
    free = project(space, mixture, [Bound(cost, target), *others], accept=accept)
    if any(float(bound.cost(free.arch)) >= fill * bound.at_most for bound in (Bound(cost, target), *others)):
        return free
    try:
        return project(space, mixture, [Bound(cost, target, fill * target), *others], accept=accept)
    except UserError:
        return free  # no architecture is in the band


def _scores(space: Space, mixture: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for name, allowed in space.allowed.items():
        if name not in mixture:
            raise UserError(f"expected a mixture with the choice '{name}', got only {', '.join(mixture)}")
        value = mixture[name]
        weights = value if isinstance(value, Mapping) else {int(value): 1.0}
        found[name] = {i: math.log(max(float(weights.get(i, 0.0)), _TINY)) for i in allowed}
    return found


class _Ranked(Problem):
    """Exact: dual, then ranking."""

    def ranked(self, most: int) -> Projection:
        sided = [[Potential(t.scope, sign * t.values / unit(bound)) for t in cost.tables] for cost, sign, bound in self.sides]
        offsets = [sign * (cost.constant - bound) / unit(bound) for cost, sign, bound in self.sides]
        plan = Elimination(self.space, [self.likely(), *sided], silent=frozenset({0}))
        floors = [self._floor(plan, number, offset) for number, offset in enumerate(offsets)]
        multipliers = self._dual(plan, offsets)
        solution = plan.solve([1.0, *(-m for m in multipliers)])
        constant = -sum(m * o for m, o in zip(multipliers, offsets, strict=True))
        limit = self._rank(plan, solution, constant, floors, most)
        if self.best is not None and limit > self.best[0] + 1e-9:
            self._exchange(self.best[1])
        exact = self.best is not None and limit <= self.best[0] + 1e-9
        if self.best is None and limit > -math.inf:
            return self.exchanged()
        return self.result(limit, exact=exact)

    def _floor(self, plan: Elimination, number: int, offset: float) -> tuple[Solution, float]:
        """The least excess of one side over all architectures, with its completion tables.

        Raises UserError where even that is above zero.
        """
        weights = [0.0] * (1 + len(self.sides))
        weights[1 + number] = -1.0
        solution = plan.solve(weights)
        least = -solution.best + offset
        if least > 1e-9:
            cost, sign, bound = self.sides[number]
            reached = bound + sign * least * unit(bound)
            word = "most" if sign > 0 else "least"
            raise UserError(
                f"no architecture has {cost.name} of at {word} {bound:.6g} {cost.unit}".rstrip()
                + f"; the best attainable is {reached:.6g}: relax the limit to that"
            )
        return solution, least

    def _dual(self, plan: Elimination, offsets: list[float], rounds: int = 60) -> list[float]:
        """Multipliers that minimise the Lagrangian's maximum, by cutting planes (Kelley 1960)."""
        if not self.sides:
            return []
        from scipy.optimize import linprog

        span = sum(max(row.values()) - min(row.values()) for row in self.scores.values())
        cap, count = 1e6 * max(1.0, span), len(self.sides)
        cuts: list[list[float]] = []  # [score, excess of each side] of architectures met
        multipliers, model = [0.0] * count, math.inf
        lowest = -plan.solve([-1.0] + [0.0] * count).best
        for _ in range(rounds):
            solution = plan.solve([1.0, *(-m for m in multipliers)])
            arch = plan.arch(plan.complete(solution, {}, len(plan.order) - 1))
            self.consider(arch)
            excess = [sign * (float(cost(arch)) - bound) / unit(bound) for cost, sign, bound in self.sides]
            value = solution.best - sum(m * o for m, o in zip(multipliers, offsets, strict=True))
            if value < lowest - 1e-6:  # the Lagrangian bounds the score of everything within the limits, and no score is this low
                raise UserError(f"no architecture keeps the limits on {self._names()} at once; relax one of them")
            if model < math.inf and value <= model + 1e-9 * max(1.0, abs(value)):
                break
            cuts.append([self.score(arch), *excess])
            rows = np.array([[-1.0, *(-e for e in cut[1:])] for cut in cuts])  # -z - m.e <= -s
            found = linprog([1.0] + [0.0] * count, A_ub=rows, b_ub=[-cut[0] for cut in cuts], bounds=[(None, None)] + [(0.0, cap)] * count)
            if not found.success:
                break
            model, multipliers = float(found.x[0]), [float(m) for m in found.x[1:]]
        return multipliers

    def _rank(self, plan: Elimination, solution: Solution, constant: float, floors: list[tuple[Solution, float]], most: int) -> float:
        """Look at architectures in the order of falling Lagrangian value, each once (Lawler's partition), until the value is below the best
        score found. Returns the largest score that anything not looked at could have."""
        last = len(plan.order) - 1
        if solution.best == -math.inf:
            return -math.inf
        number = itertools.count()
        #: (-value, tie, states of the parent, position that deviates, its state)
        heap: list[tuple[float, int, dict[str, int], int, int]] = [(-(solution.best + constant), next(number), {}, last + 1, 0)]
        ranked = 0
        while heap:
            value = -heap[0][0]
            if self.best is not None and value <= self.best[0] + 1e-9:
                return self.best[0]
            if ranked >= most:
                return value
            _, _, parent, position, state = heapq.heappop(heap)
            states = dict(parent)
            if position <= last:
                states[plan.order[position]] = state
                states = {name: states[name] for name in plan.order[position:]}
            plan.complete(solution, states, position - 1)
            ranked += 1
            self.consider(plan.arch(states))
            for child in self._children(plan, solution, states, position, value, floors):
                heapq.heappush(heap, (-child[0], next(number), states, child[1], child[2]))
        return self.best[0] if self.best is not None else -math.inf

    def _children(
        self,
        plan: Elimination,
        solution: Solution,
        states: dict[str, int],
        position: int,
        value: float,
        floors: list[tuple[Solution, float]],
    ) -> list[tuple[float, int, int]]:
        """(value, position, state) of the deviations below `position`; those that no completion brings within the limits are left out."""
        last = len(plan.order) - 1
        spent = [least for _, least in floors]  # least excess of each side given the choices fixed so far
        found = []
        for at in range(last, -1, -1):
            context, taken = plan.context_of(at, states), states[plan.order[at]]
            if at < position:
                column = solution.column(at, context)
                losses = column.max() - column
                for state in range(len(column)):
                    if state == taken or losses[state] == math.inf:
                        continue
                    if all(s + floor.loss(at, state, context) <= 1e-9 for s, (floor, _) in zip(spent, floors, strict=True)):
                        found.append((value - float(losses[state]), at, state))
            spent = [s + floor.loss(at, taken, context) for s, (floor, _) in zip(spent, floors, strict=True)]
        return found


__all__ = ["Accept", "Bound", "Projection", "project", "within"]
