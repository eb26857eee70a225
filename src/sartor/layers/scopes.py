"""Cost factors of a network whose code is the user's: which choices decide each of its ops is learned from counterexamples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sartor.arch import Arch, Space
from sartor.hardware.cost import Factor
from sartor.hardware.graph import Op, OpGraph

Sites = dict[str, tuple[Op, ...]]  # place in the network -> ops there

QUIET = 300  # random architectures in a row that must agree before learning stops


def sites(graph: OpGraph) -> Sites:
    """Ops by the place that made them: the layer's path, or the kind and number of an op that no layer made."""
    found: dict[str, list[Op]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for op in graph:
        place = op.name.rpartition(".")[0] or op.name
        if op.kind in ("add", "mul", "concat", "act", "pool", "maxpool", "avgpool", "resize") and "." not in op.name:
            place = f"{op.kind}#{counts[op.kind]}"
            counts[op.kind] += 1
        found[place].append(op)
    return {place: tuple(ops) for place, ops in found.items()}


class _Learner:
    """Scopes that grow until every place's ops follow from the choices in its scope alone, the others being at their first option."""

    def __init__(self, space: Space, graph: Callable[[Mapping[str, int]], OpGraph]) -> None:
        self.space, self.graph = space, graph
        self.base = {name: allowed[0] for name, allowed in space.allowed.items()}
        self.scopes: dict[str, list[str]] = {}
        self._known: dict[Arch, Sites] = {}
        self._signatures: dict[Arch, dict[str, tuple[str, ...]]] = {}

    def sites(self, arch: Mapping[str, int]) -> Sites:
        key = self.space.canonical(arch)
        if key not in self._known:
            self._known[key] = sites(self.graph(key))
        return self._known[key]

    def signature(self, arch: Mapping[str, int], place: str) -> tuple[str, ...]:
        key = self.space.canonical(arch)
        if key not in self._signatures:
            self._signatures[key] = {p: tuple(op.signature for op in ops) for p, ops in self.sites(key).items()}
        return self._signatures[key].get(place, ())

    def completed(self, place: str, arch: Mapping[str, int]) -> dict[str, int]:
        return {**self.base, **{name: arch[name] for name in self.scopes[place]}}

    def learn(self, arch: Mapping[str, int]) -> bool:
        """Whether every place agreed at `arch`; scopes of those that did not have grown until they do."""
        values = {name: arch[name] if arch[name] in self.space.allowed[name] else self.base[name] for name in arch}
        agreed = True
        for place in self.sites(arch):
            self.scopes.setdefault(place, [])
        for place in self.scopes:
            while self.signature(self.completed(place, values), place) != self.signature(values, place):
                agreed = False
                self.scopes[place].append(self._culprit(place, values))
        return agreed

    def _culprit(self, place: str, values: Mapping[str, int]) -> str:
        """A choice outside the scope that matters, by bisection between the completed architecture and the given one."""
        start, goal = self.completed(place, values), self.signature(values, place)
        others = [name for name in self.space.choices if values[name] != start[name]]
        low, high = 0, len(others)  # with the first `high` taken from `values` the ops are right, with the first `low` they are not
        while high - low > 1:
            middle = (low + high) // 2
            taken = {**start, **{name: values[name] for name in others[:middle]}}
            low, high = (low, middle) if self.signature(taken, place) == goal else (middle, high)
        return others[high - 1]


def learn_factors(
    space: Space, graph: Callable[[Mapping[str, int]], OpGraph], starts: Sequence[Arch] = (), *, quiet: int = QUIET, seed: int = 0
) -> list[Factor]:
    """Factors whose ops add up to `graph(arch)` for every architecture that was looked at.

    Each place in the network begins as independent of all choices; every counterexample, found on `starts`, their neighbours and random
    architectures, adds a choice on which its ops provably depend. Learning ends after `quiet` random architectures without one, so that
    with 95 % confidence fewer than 3 / `quiet` of all architectures could differ (the rule of three).
    """
    learner = _Learner(space, graph)
    rng = np.random.default_rng(seed)
    for start in starts:
        for arch in (start, *space.neighbours(start)):
            learner.learn(arch)
    if space.size <= 4 * quiet:
        for arch in space:
            learner.learn(arch)
        while not all(learner.learn(arch) for arch in space):
            pass
    else:
        agreed = 0
        while agreed < quiet:
            agreed = agreed + 1 if learner.learn(space.sample(rng)) else 0
    return [_factor(learner, space, place, tuple(c for c in space.choices if c in scope)) for place, scope in learner.scopes.items()]


def _factor(learner: _Learner, space: Space, place: str, scope: tuple[str, ...]) -> Factor:
    def ops(indices: tuple[int, ...]) -> tuple[Op, ...]:
        return learner.sites({**learner.base, **dict(zip(scope, indices, strict=True))}).get(place, ())

    return Factor(scope, ops)
