"""Search spaces as named choices, and the architectures in them.

A :class:`Space` is a list of named choices, some of which exist only under conditions on others (the kernel of a block that depth removed).
An :class:`Arch` gives every choice the index of one option. This module knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from sartor.errors import UserError

Label = Any  # str, int, float, bool or a list of them: whatever JSON can spell
_OFF = -1  # the state of a switched-off choice while counting; in an Arch it is spelled 0


@lru_cache(maxsize=4096)
def _positions(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


class Arch(Mapping[str, int]):
    """A discrete architecture: choice name -> option index. Frozen, hashable, and the same under any order of its names."""

    __slots__ = ("_at", "_hash", "_names", "_values")

    def __init__(self, values: Mapping[str, int]) -> None:
        self._names = tuple(values)
        self._values = tuple([int(v) for v in values.values()])
        self._at = _positions(self._names)  # one dictionary for all architectures of a space
        self._hash: int | None = None

    def __getitem__(self, name: str) -> int:
        return self._values[self._at[name]]

    def as_dict(self) -> dict[str, int]:
        """A plain dictionary, which is read several times faster."""
        return dict(zip(self._names, self._values, strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(zip(self._names, self._values, strict=True)))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Arch) and self._names == other._names:
            return self._values == other._values
        return dict(self) == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __repr__(self) -> str:
        return f"Arch({dict(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Arch, (dict(self),)

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Arch:
        """Inverse of :meth:`to_json`. Raises UserError for anything else."""
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not all(type(v) is int for v in values.values()):
            raise UserError(f"an architecture is a JSON object of choice names and option indices, got {text[:80]!r}")
        return Arch(values)


def _spell(label: Label) -> str:
    """JSON tells `True` from `1` and `1` from `1.0`, which `==` does not."""
    try:
        return json.dumps(label)
    except TypeError:
        raise UserError(
            f"option {label!r} is no label: use a string, number, boolean or a list of them, as options are stored as JSON"
        ) from None


class Space:
    """Named choices with conditions.

    Args:
        choices: name -> options (labels that JSON can spell, at least one, no two alike).
        conditions: name -> {parent: labels}: the choice exists only where every named parent exists and has one of these labels.

    Architectures are canonical: a choice that is switched off has index 0. `size`, `at`, `index` and `sample` all count canonical
    architectures exactly, by eliminating one choice after the other (children first), so conditional choices do not bias sampling.

    Raises:
        UserError: for empty or doubled options, unknown parents or labels, and circular conditions.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Label]],
        conditions: Mapping[str, Mapping[str, Sequence[Label]]] | None = None,
        *,
        allowed: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.choices: dict[str, tuple[Label, ...]] = {name: tuple(options) for name, options in choices.items()}
        self._lookup = {name: {_spell(label): i for i, label in enumerate(options)} for name, options in self.choices.items()}
        for name, options in self.choices.items():
            if not options:
                raise UserError(f"choice '{name}' has no options; give at least one")
            if len(self._lookup[name]) != len(options):
                raise UserError(f"choice '{name}' has an option twice: {list(options)}; every option must differ")
        self.conditions: dict[str, dict[str, frozenset[int]]] = {}
        for name, parents in (conditions or {}).items():
            if name not in self.choices:
                raise UserError(f"condition on '{name}', which is no choice; choices: {', '.join(self.choices)}")
            self.conditions[name] = {p: frozenset(self.option(p, label) for label in labels) for p, labels in parents.items()}
        self.allowed: dict[str, tuple[int, ...]] = {name: tuple(range(len(o))) for name, o in self.choices.items()}
        for name, indices in (allowed or {}).items():
            self.allowed[name] = tuple(indices)
        self._order = self._topological()
        self._tables = self._eliminate()

    # -- labels -------------------------------------------------------------------------------------------------------

    def option(self, name: str, label: Label) -> int:
        """Index of `label` among the options of choice `name`."""
        if name not in self.choices:
            raise UserError(f"unknown choice '{name}'; choices: {', '.join(self.choices)}")
        index = self._lookup[name].get(_spell(label))
        if index is None:
            raise UserError(f"choice '{name}' has no option {label!r}; options: {list(self.choices[name])}")
        return index

    def labels(self, arch: Mapping[str, int]) -> dict[str, Label]:
        """The labels of the choices that are switched on: what is stored in a history and shown to people."""
        on = self.active(arch)
        return {name: options[arch[name]] for name, options in self.choices.items() if name in on}

    def from_labels(self, labels: Mapping[str, Label]) -> Arch:
        """Inverse of :meth:`labels`."""
        return self.canonical({name: self.option(name, label) for name, label in labels.items()})

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that two spaces share only if they are the same."""
        conditions = {n: {p: sorted(i) for p, i in ps.items()} for n, ps in self.conditions.items()}
        spelled = json.dumps([self.choices, conditions, self.allowed], sort_keys=True)
        return hashlib.sha256(spelled.encode()).hexdigest()[:12]

    # -- counting: a sum-product elimination, exact in big integers -------------------------------------------------------

    def _topological(self) -> list[str]:
        order: list[str] = []
        state: dict[str, int] = {}

        def visit(name: str) -> None:
            if state.get(name) == 1:
                raise UserError(f"the condition on choice '{name}' depends on itself")
            if name not in state:
                state[name] = 1
                for parent in self.conditions.get(name, {}):
                    visit(parent)
                state[name] = 2
                order.append(name)

        for name in self.choices:
            visit(name)
        return order

    def _on(self, name: str, states: Mapping[str, int]) -> bool:
        return all(states[p] in indices for p, indices in self.conditions.get(name, {}).items())

    def _eliminate(self) -> dict[str, tuple[tuple[str, ...], dict[tuple[int, ...], list[tuple[int, int]]]]]:
        """Per choice: the earlier choices that matter to it, and for each of their states [(own state, number of completions), ...]."""
        rank = {name: i for i, name in enumerate(self._order)}
        messages: dict[str, list[tuple[tuple[str, ...], dict[tuple[int, ...], int]]]] = {name: [] for name in self._order}
        tables: dict[str, tuple[tuple[str, ...], dict[tuple[int, ...], list[tuple[int, int]]]]] = {}
        self._size = 1
        for name in reversed(self._order):
            bucket = messages[name]
            scope = (
                set(self.conditions.get(name, {})).union(*(s for s, _ in bucket)) - {name} if bucket else set(self.conditions.get(name, {}))
            )
            ordered = tuple(sorted(scope, key=rank.__getitem__))
            table: dict[tuple[int, ...], list[tuple[int, int]]] = {}
            for states in itertools.product(*((_OFF, *self.allowed[p]) for p in ordered)):
                at = dict(zip(ordered, states, strict=True))
                own = self.allowed[name] if self._on(name, at) else (_OFF,)
                table[states] = [(o, math.prod(m[tuple({**at, name: o}[c] for c in s)] for s, m in bucket)) for o in own]
            tables[name] = (ordered, table)
            totals = {states: sum(w for _, w in rows) for states, rows in table.items()}
            if ordered:
                messages[ordered[-1]].append((ordered, totals))
            else:
                self._size *= totals[()]
        return tables

    @property
    def size(self) -> int:
        """Exact number of canonical architectures."""
        return self._size

    def at(self, number: int) -> Arch:
        """The canonical architecture with this number, 0 <= number < size: a bijection, in mixed-radix order."""
        if not 0 <= number < self._size:
            raise IndexError(f"architecture number {number} is outside 0..{self._size - 1}")
        states: dict[str, int] = {}
        left = self._size
        for name in self._order:
            scope, table = self._tables[name]
            rows = table[tuple(states[c] for c in scope)]
            unit = left // sum(w for _, w in rows)
            for state, weight in rows:
                left = weight * unit
                if number < left:
                    states[name] = state
                    break
                number -= left
        return self._spelled(states)

    def index(self, arch: Mapping[str, int]) -> int:
        """Inverse of :meth:`at`."""
        canonical = self.canonical(arch)
        states: dict[str, int] = {}
        number, left = 0, self._size
        for name in self._order:
            scope, table = self._tables[name]
            rows = table[tuple(states[c] for c in scope)]
            unit = left // sum(w for _, w in rows)
            states[name] = canonical[name] if self._on(name, states) else _OFF
            for state, weight in rows:
                left = weight * unit
                if state == states[name]:
                    break
                number += left
        return number

    def _spelled(self, states: Mapping[str, int]) -> Arch:
        return Arch({name: max(states[name], 0) for name in self.choices})

    def __iter__(self) -> Iterator[Arch]:
        return (self.at(i) for i in range(self._size))

    # -- architectures --------------------------------------------------------------------------------------------------

    def canonical(self, values: Mapping[str, int]) -> Arch:
        """`values` with every switched-off choice spelled 0; choices that are on must be given (a lone option may be left out).

        Raises:
            UserError: for a missing or unknown choice, or an index that is not an allowed option.
        """
        unknown = [name for name in values if name not in self.choices]
        if unknown:
            raise UserError(f"unknown choice '{unknown[0]}'; choices: {', '.join(self.choices)}")
        states: dict[str, int] = {}
        for name in self._order:
            if not self._on(name, states):
                states[name] = _OFF
                continue
            allowed = self.allowed[name]
            value = values.get(name, allowed[0] if len(allowed) == 1 else None)
            if value is None:
                raise UserError(f"choice '{name}' is missing from the architecture")
            if value not in allowed:
                raise UserError(f"choice '{name}' has index {value}; allowed: {list(allowed)} (options {list(self.choices[name])})")
            states[name] = int(value)
        return self._spelled(states)

    def __contains__(self, arch: object) -> bool:
        """Whether `arch` is an architecture of this space in canonical spelling."""
        if not isinstance(arch, Mapping):
            return False
        try:
            return self.canonical(arch) == arch
        except UserError:
            return False

    def active(self, arch: Mapping[str, int]) -> frozenset[str]:
        """Names of the choices that are switched on in `arch`."""
        states: dict[str, int] = {}
        for name in self._order:
            states[name] = arch[name] if self._on(name, states) else _OFF
        return frozenset(name for name, state in states.items() if state != _OFF)

    def sample(self, rng: np.random.Generator) -> Arch:
        """Uniform over canonical architectures, whatever the conditions."""
        return self.at(_randbelow(rng, self._size))

    def _complete(self, values: Mapping[str, int], rng: np.random.Generator) -> Arch:
        """Canonical spelling of `values`; choices that are on but not given are drawn uniformly."""
        states: dict[str, int] = {}
        for name in self._order:
            if not self._on(name, states):
                states[name] = _OFF
            elif name in values:
                states[name] = values[name]
            else:
                states[name] = self.allowed[name][int(rng.integers(len(self.allowed[name])))]
        return self._spelled(states)

    def mutate(self, arch: Mapping[str, int], rng: np.random.Generator, *, n: int = 1, rate: float | None = None) -> Arch:
        """Give `n` switched-on choices (or each with probability `rate`, at least one) another option; new ones are drawn afresh."""
        on = self.active(arch)
        free = [name for name in self.choices if name in on and len(self.allowed[name]) > 1]
        if not free:
            return self.canonical(arch)
        picked = [name for name in free if rng.random() < rate] if rate is not None else []
        if not picked:
            count = 1 if rate is not None else min(n, len(free))
            picked = [free[int(i)] for i in rng.choice(len(free), size=count, replace=False)]
        values = {name: arch[name] for name in self.choices if name in on}
        for name in picked:
            others = [o for o in self.allowed[name] if o != arch[name]]
            values[name] = others[int(rng.integers(len(others)))]
        return self._complete(values, rng)

    def crossover(self, a: Mapping[str, int], b: Mapping[str, int], rng: np.random.Generator) -> Arch:
        """Uniform crossover: each choice from either parent that has it switched on; a choice that neither has is drawn afresh."""
        on_a, on_b = self.active(a), self.active(b)
        values: dict[str, int] = {}
        for name in self.choices:
            donors = [parent for parent, on in ((a, on_a), (b, on_b)) if name in on]
            if donors:
                values[name] = donors[int(rng.integers(len(donors)))][name]
        return self._complete(values, rng)

    def neighbours(self, arch: Mapping[str, int], only: str | None = None) -> list[Arch]:
        """All architectures that differ in one switched-on choice (`only` that one); ones that appear take their first allowed option."""
        on = self.active(arch)
        first = {**{name: allowed[0] for name, allowed in self.allowed.items()}, **{name: arch[name] for name in on}}
        return [
            self.canonical({**first, name: option})
            for name in self.choices
            if name in on and only in (None, name)
            for option in self.allowed[name]
            if option != arch[name]
        ]

    def encode(self, archs: Sequence[Mapping[str, int]]) -> np.ndarray:
        """One-hot rows `(n, dims)` float32: all zero where a choice is switched off; one-option choices take no column."""
        offsets: dict[str, int] = {}
        width = 0
        for name, options in self.choices.items():
            if len(options) > 1:
                offsets[name] = width
                width += len(options)
        rows = np.zeros((len(archs), width), dtype=np.float32)
        for row, arch in zip(rows, archs, strict=True):
            on = self.active(arch)
            for name, offset in offsets.items():
                if name in on:
                    row[offset + arch[name]] = 1.0
        return rows

    def restrict(self, keep: Mapping[str, Sequence[Label]]) -> Space:
        """The sub-space in which each named choice has only the given labels. Option indices stay, so its architectures are valid here."""
        allowed = dict(self.allowed)
        for name, labels in keep.items():
            wanted = {self.option(name, label) for label in labels}
            allowed[name] = tuple(i for i in self.allowed[name] if i in wanted)
            if not allowed[name]:
                raise UserError(f"restricting choice '{name}' to {list(labels)} leaves no option")
        conditions = {n: {p: [self.choices[p][i] for i in ids] for p, ids in ps.items()} for n, ps in self.conditions.items()}
        return Space(self.choices, conditions, allowed=allowed)

    def __repr__(self) -> str:
        return f"Space({len(self.choices)} choices, {self._size:,} architectures, {self.fingerprint})"


def _randbelow(rng: np.random.Generator, bound: int) -> int:
    """Uniform integer in [0, bound) for bounds of any size."""
    if bound <= 2**62:
        return int(rng.integers(bound))
    bits = bound.bit_length()
    while True:  # accepts with probability above one half
        number = int.from_bytes(rng.bytes((bits + 7) // 8), "little") >> (-bits % 8)
        if number < bound:
            return number
