"""Exact maximisation over architectures of sums of tables: bucket elimination (Dechter 1999, "Bucket elimination", section 4).

Tables that share few choices are summed and maximised one choice at a time; what remains is a table of the best completion for every state
of the choices that are still open. Those tables make ranking architectures from the best downwards cheap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Arch, Space

Floats = NDArray[np.float64]
Scope = tuple[str, ...]
OFF = -1  # the state of a choice that is switched off


class TooLarge(Exception):
    """Eliminating the choices would need larger tables than allowed: too many choices meet in one cost."""


@dataclass(frozen=True)
class Potential:
    """A table over choices: `values` has one axis for each choice of `scope`, in its order, of one entry for each option."""

    scope: Scope
    values: Floats


@dataclass
class Solution:
    """Best completions under one weighting. `tables[i]` `(states of choice i, states of its context ...)` has the best value of everything
    eliminated up to choice i; `best` is the maximum."""

    tables: list[Floats]
    best: float

    def loss(self, position: int, state: int, context: tuple[int, ...]) -> float:
        """How much a state of a choice costs against the best one in the same context: 0 or more, +inf where it cannot be."""
        column = self.column(position, context)
        return float(column.max() - column[state])

    def column(self, position: int, context: tuple[int, ...]) -> Floats:
        """Best completions for every state of the choice at `position` `(states,)`."""
        at: Any = (slice(None), *context)
        found: Floats = self.tables[position][at]
        return found


class Elimination:
    """The order in which choices are eliminated, and tables laid out for it.

    Args:
        space: its conditions are kept: a choice that is switched off has the one state :data:`OFF`.
        components: groups of potentials over option indices; :meth:`solve` weighs each group. What is switched off counts as option 0 in
            every group but those in `silent`, where it counts as zero.
        most: entries of the largest table.

    Raises:
        TooLarge: if a table would have more entries.
    """

    def __init__(
        self, space: Space, components: Sequence[Sequence[Potential]], *, silent: frozenset[int] = frozenset(), most: int = 2_000_000
    ) -> None:
        self.space = space
        self.states: dict[str, tuple[int, ...]] = {
            name: (*allowed, OFF) if name in space.conditions else tuple(allowed) for name, allowed in space.allowed.items()
        }
        scopes = [p.scope for group in components for p in group]
        scopes += [(name, *parents) for name, parents in space.conditions.items()]
        self.order, self.contexts = self._plan(scopes, most)
        self._place = {name: i for i, name in enumerate(self.order)}
        self._shapes = [
            tuple(len(self.states[c]) for c in (name, *context)) for name, context in zip(self.order, self.contexts, strict=True)
        ]
        self._hard = self._layout([self._condition(name) for name in space.conditions])
        self._components = [
            self._layout([self._restated(p, silent=number in silent) for p in group]) for number, group in enumerate(components)
        ]

    # -- laying out ----------------------------------------------------------------------------------------------------

    def _plan(self, scopes: Sequence[Scope], most: int) -> tuple[list[str], list[Scope]]:
        """Elimination order by smallest table, and of each choice the later ones that its table depends on."""
        near: dict[str, set[str]] = {name: set() for name in self.space.choices}
        for scope in scopes:
            for name in scope:
                near[name].update(scope)
        for name, others in near.items():
            others.discard(name)
        size = {name: len(states) for name, states in self.states.items()}
        open_names, order, contexts = dict.fromkeys(self.space.choices), [], []
        while open_names:
            name = min(open_names, key=lambda n: size[n] * math.prod(size[c] for c in near[n]))
            if size[name] * math.prod(size[c] for c in near[name]) > most:
                raise TooLarge(f"the table of choice '{name}' with {', '.join(sorted(near[name]))} would have more than {most} entries")
            del open_names[name]
            context = tuple(c for c in self.space.choices if c in near[name])
            for other in context:
                near[other].update(context)
                near[other] -= {other, name}
            order.append(name)
            contexts.append(context)
        return order, contexts

    def _condition(self, name: str) -> Potential:
        """0 where the state of `name` agrees with its parents, else minus infinity."""
        parents = self.space.conditions[name]
        values = np.zeros([len(self.states[c]) for c in (name, *parents)])
        for at in np.ndindex(*values.shape):
            on = all(self.states[p][i] in wanted for (p, wanted), i in zip(parents.items(), at[1:], strict=True))
            if on != (self.states[name][at[0]] != OFF):
                values[at] = -np.inf
        return Potential((name, *parents), values)

    def _restated(self, potential: Potential, *, silent: bool) -> Potential:
        """A potential over option indices as one over states."""
        values = potential.values
        for axis, name in enumerate(potential.scope):
            states = self.states[name]
            values = np.take(values, [max(state, 0) for state in states], axis=axis)
            if silent and OFF in states:
                at: list[Any] = [slice(None)] * values.ndim
                at[axis] = states.index(OFF)
                values[tuple(at)] = 0.0
        return Potential(potential.scope, values)

    def _layout(self, potentials: Sequence[Potential]) -> list[Floats]:
        """The sum of the potentials that each choice's elimination takes in, in the shape of its table."""
        found = [np.zeros(shape) for shape in self._shapes]
        for p in potentials:
            if p.scope:
                at = min(self._place[name] for name in p.scope)
                found[at] = found[at] + self._aligned(p.values, p.scope, at)
        return found

    def _aligned(self, values: Floats, scope: Scope, at: int) -> Floats:
        target = (self.order[at], *self.contexts[at])
        values = values.transpose(sorted(range(len(scope)), key=lambda axis: target.index(scope[axis])))
        held = set(scope)
        return values.reshape([len(self.states[name]) if name in held else 1 for name in target])

    # -- solving ---------------------------------------------------------------------------------------------------------

    def solve(self, weights: Sequence[float]) -> Solution:
        """Maximise the sum of the components, each times its weight."""
        tables: list[Floats] = []
        for at in range(len(self.order)):
            total = self._hard[at]
            for weight, component in zip(weights, self._components, strict=True):
                if weight:
                    total = total + weight * component[at]
            tables.append(total)
        best = 0.0
        for at, context in enumerate(self.contexts):
            message = tables[at].max(axis=0)
            if context:
                to = min(self._place[name] for name in context)
                tables[to] = tables[to] + self._aligned(message, context, to)
            else:
                best += float(message)
        return Solution(tables, best)

    def context_of(self, position: int, states: Mapping[str, int]) -> tuple[int, ...]:
        """State numbers of the choices that the table of the choice at `position` depends on."""
        return tuple([states[name] for name in self.contexts[position]])

    def complete(self, solution: Solution, states: dict[str, int], position: int) -> dict[str, int]:
        """`states` with the choices from `position` down to 0 at their best: state numbers by choice."""
        for at in range(position, -1, -1):
            states[self.order[at]] = int(solution.column(at, self.context_of(at, states)).argmax())
        return states

    def arch(self, states: Mapping[str, int]) -> Arch:
        """State numbers as an architecture."""
        return Arch({name: max(self.states[name][states[name]], 0) for name in self.space.choices})


__all__ = ["OFF", "Elimination", "Potential", "Solution", "TooLarge"]
