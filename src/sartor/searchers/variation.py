"""What searchers that breed share: parents by the goals, children that are new, and an order of choices with parents first."""

from __future__ import annotations

import numpy as np

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Visited
from sartor.trial import Trial

_WALK = 8  # mutations that a duplicate may walk on before it is drawn anew: small spaces near their best are all visited


def fresh(space: Space, visited: Visited, child: Arch, rng: np.random.Generator, *, rate: float | None = None) -> Arch | None:
    """`child`, mutated on until it is new (one choice at a time, or each with probability `rate`); a uniform draw after eight steps.

    None if the whole space is visited.
    """
    for _ in range(_WALK):
        if child not in visited:
            return child
        child = space.mutate(child, rng, rate=rate)
    return visited.draw(rng) if child in visited else child


def dominates(goals: Goals, a: Trial, b: Trial) -> bool:
    """Constrained domination (Deb et al. 2002, section VI-A): for one objective and no limits, simply less."""
    values, violations = goals.table([a, b])
    if violations.any():
        return bool(violations[0] < violations[1])
    return bool((values[0] <= values[1]).all() and (values[0] < values[1]).any())


def winner(goals: Goals, trials: list[Trial], rng: np.random.Generator) -> Trial:
    """The best of `trials`: one of their non-dominated, drawn at random; with a single objective that is the best one."""
    values, violations = goals.table(trials)
    first = np.flatnonzero(pareto.ranks(values, violations) == 0)
    return trials[int(first[int(rng.integers(len(first)))])]


def ordered(goals: Goals, trials: list[Trial]) -> list[Trial]:
    """Best first: by constrained rank, then by falling crowding distance; of equals the earlier."""
    values, violations = goals.table(trials)
    rank = pareto.ranks(values, violations)
    return [trials[i] for i in pareto.crowded_order(rank, pareto.crowding(values, rank))]


def parents_first(space: Space) -> list[str]:
    """The choices in the order of the space, but none before those that it depends on."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        for parent in space.conditions.get(name, {}):
            visit(parent)
        order.setdefault(name)

    for name in space.choices:
        visit(name)
    return list(order)


def whole(method: str, name: str, value: int, least: int) -> None:
    """Raises UserError if a setting is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{method}: {name} must be a whole number of at least {least}, got {value!r}")


def fraction(method: str, name: str, value: float | None) -> None:
    """Raises UserError if a setting is given and not in 0..1."""
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{method}: {name} must lie in 0..1, got {value!r}")
