"""Options that go because of the operations they lead to: what no combination of a space's choices leads to any more, conforms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sartor.arch import Space
from sartor.errors import UserError
from sartor.hardware.cost import Factor, combinations
from sartor.hardware.graph import Op
from sartor.spaces.rules import LEVELS, Against, Removed, Rules

Option = tuple[str, int]  # a choice and the index of one of its options
Cause = tuple[str, str]  # level and cause of an objection


@dataclass
class _Rows:
    """The combinations of a factor's choices that are left, one a row."""

    factor: Factor
    indices: np.ndarray  # (n, choices): which options
    active: np.ndarray  # (n, choices): whether the choice is switched on there
    empty: np.ndarray  # (n,): the combination leads to no operation
    against: np.ndarray  # (n, causes): what is against its operations

    def drop(self, name: str, option: int) -> None:
        left = self.indices[:, self.factor.scope.index(name)] != option
        self.indices, self.active, self.empty, self.against = (
            values[left] for values in (self.indices, self.active, self.empty, self.against)
        )

    def failing(self, causes: Sequence[int]) -> np.ndarray:
        """(n,) whether one of the causes is against the row."""
        return np.asarray(self.against[:, causes].any(axis=1))

    def count(self, causes: Sequence[int]) -> _Count:
        failing = self.failing(causes)
        found = _Count(bool(failing.any()), {})
        for column, name in enumerate(self.factor.scope):
            counted = self.active[:, column] & ~self.empty
            total = np.bincount(self.indices[counted, column])
            wrong = np.bincount(self.indices[counted & failing, column], minlength=len(total))
            found.of.update({(name, int(option)): (int(total[option]), int(wrong[option])) for option in np.flatnonzero(total)})
        return found


class _Count(NamedTuple):
    """Whether any row fails; and in how many rows with operations each option is switched on, and how many of those fail."""

    fails: bool
    of: dict[Option, tuple[int, int]]


class Operations:
    """The operations of a space, while options are removed from `allowed` until all that is left conforms.

    `removed` tells the options, with the reason; `kept`, by its cause, what is unfriendly and stays because every network has it.
    """

    def __init__(self, space: Space, factors: Sequence[Factor], rules: Rules, allowed: dict[str, list[int]]) -> None:
        self._space, self._rules, self._allowed = space, rules, allowed
        self.removed: list[Removed] = []
        self.kept: dict[int, str] = {}
        self._causes: dict[Cause, int] = {}
        known: dict[str, frozenset[int]] = {}
        listed = [self._listed(factor, known) for factor in factors]
        self._tables = [self._rows(factor, *rows) for factor, rows in zip(factors, listed, strict=True)]

    def settle(self) -> None:
        """Remove options, for the heaviest objections first: what must go for them is then no matter of the others.

        Raises:
            UserError: if what has no alternative left does not run, or breaks a rule.
        """
        for level in LEVELS:
            causes = [number for (its, _), number in self._causes.items() if its == level]
            if causes:
                self._settle(causes, bears=level == "unfriendly")

    # -- what there is ------------------------------------------------------------------------------------------------

    def _listed(self, factor: Factor, known: dict[str, frozenset[int]]) -> tuple[list[tuple[int, ...]], list[frozenset[int] | None]]:
        """Every combination that is allowed, and the causes against it; None where it leads to no operation."""
        rows: list[tuple[int, ...]] = []
        found: list[frozenset[int] | None] = []
        for indices in combinations(factor, self._allowed):
            ops = factor.at(indices)
            rows.append(indices)
            found.append(frozenset[int]().union(*(self._numbers(op, known) for op in ops)) if ops else None)
        return rows, found

    def _numbers(self, op: Op, known: dict[str, frozenset[int]]) -> frozenset[int]:
        numbers = known.get(op.signature)
        if numbers is None:
            said = self._rules.against(op)
            numbers = known[op.signature] = frozenset(self._causes.setdefault(_cause(one), len(self._causes)) for one in said)
        return numbers

    def _rows(self, factor: Factor, rows: list[tuple[int, ...]], found: list[frozenset[int] | None]) -> _Rows:
        table = np.array(rows, dtype=np.int64).reshape(len(rows), len(factor.scope))
        against = np.zeros((len(rows), len(self._causes)), dtype=bool)
        for row, numbers in enumerate(found):
            if numbers:
                against[row, list(numbers)] = True
        empty = np.array([numbers is None for numbers in found], dtype=bool)
        return _Rows(factor, table, _active(self._space.conditions, factor, table), empty, against)

    # -- what goes ----------------------------------------------------------------------------------------------------

    def _settle(self, causes: list[int], bears: bool) -> None:
        """Remove options until no row has one of the causes against it. `bears`: what has no alternative stays instead."""
        if bears:
            self._bear(causes)
        counts = [table.count(causes) for table in self._tables]
        while any(count.fails for count in counts):
            worst = self._worst(counts)
            if worst is None:
                if not bears:
                    said = f"{self._sentence(causes)}, and no option is left that avoids it"
                    raise UserError(f"the space cannot be restricted to {self._rules.spec.name}: {said}")
                self._bear(causes, whatever=True)
                return
            self._remove(worst, self._sentence(causes, worst))
            before = len(self.kept)
            if bears:
                self._bear(causes)
            more = len(self.kept) > before  # then any table may have changed; otherwise only those that had the option, which are few
            counts = [
                table.count(causes) if more or worst[0] in table.factor.scope else count
                for table, count in zip(self._tables, counts, strict=True)
            ]

    def _worst(self, counts: Sequence[_Count]) -> Option | None:
        """The option that fails most often, of those with another to choose instead: one that fails less, if there is any such option."""
        everywhere, there = _shares(counts), _shares([count for count in counts if count.fails])

        def helps(key: Option) -> bool:
            # Only where something fails: an expansion of 1 is in fewer operations than one of 2, and yet not to blame for either.
            name, option = key
            return any(there.get((name, other), (0.0, 0))[0] < there[key][0] for other in self._allowed[name] if other != option)

        candidates = [key for key, (share, _) in there.items() if share and len(self._allowed[key[0]]) > 1]
        return min(candidates, key=lambda key: (not helps(key), -everywhere[key][0], everywhere[key][1], key), default=None)

    def _remove(self, option: Option, reason: str) -> None:
        name, index = option
        self._allowed[name].remove(index)
        self.removed.append(Removed(name, self._space.choices[name][index], reason))
        for table in self._tables:
            if name in table.factor.scope:
                table.drop(name, index)

    def _bear(self, causes: list[int], whatever: bool = False) -> None:
        """Forget a cause that every network has, wherever only leaving operations out would avoid it: fewer are no better ones."""
        for cause in causes:
            if not whatever and cause not in self.kept and not any(len(t.against) and t.against[:, cause].all() for t in self._tables):
                continue
            for table in self._tables:
                hit = table.against[:, cause]
                if hit.any() and (whatever or (hit | table.empty).all()):
                    self.kept.setdefault(cause, self._sentence([cause], tables=[table]))
                    table.against[:, cause] = False

    def _sentence(self, causes: list[int], option: Option | None = None, tables: Sequence[_Rows] | None = None) -> str:
        """What is said of the first operation that one of the causes is against, of those that come with the option."""
        names = {cause for cause, number in self._causes.items() if number in causes}
        for table in self._tables if tables is None else tables:
            if option is not None and option[0] not in table.factor.scope:
                continue
            rows = table.failing(causes)
            if option is not None:
                column = table.factor.scope.index(option[0])
                rows = rows & table.active[:, column] & (table.indices[:, column] == option[1])
            if rows.any():
                ops = table.factor.at(tuple(int(index) for index in table.indices[np.flatnonzero(rows)[0]]))
                return next(one.sentence for op in ops for one in self._rules.against(op) if _cause(one) in names)
        raise AssertionError("no operation fails")


def _shares(counts: Sequence[_Count]) -> dict[Option, tuple[float, int]]:
    """Of each option the share of rows that fail, and the number of all."""
    total, wrong = Counter[Option](), Counter[Option]()
    for count in counts:
        for key, (together, failing) in count.of.items():
            total[key] += together
            wrong[key] += failing
    return {key: (wrong[key] / together, together) for key, together in total.items()}


def _cause(one: Against) -> Cause:
    return one.level, one.cause


def _active(conditions: Mapping[str, Mapping[str, frozenset[int]]], factor: Factor, table: np.ndarray) -> np.ndarray:
    active = np.ones(table.shape, dtype=bool)
    for column, name in enumerate(factor.scope):
        for parent, labels in conditions.get(name, {}).items():
            if parent in factor.scope:
                active[:, column] &= np.isin(table[:, factor.scope.index(parent)], list(labels))
    return active
