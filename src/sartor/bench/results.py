"""The rows of a comparison in one SQLite file. A row is in it or it is not, whatever kills the program."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from sartor.bench.cases import Case, Group
from sartor.bench.code import code_of
from sartor.errors import UserError

_APPLICATION = 0x73425443  # "sBTC": tells these files from other SQLite files
_TABLE = """CREATE TABLE runs (strategy TEXT NOT NULL, task TEXT NOT NULL, device TEXT NOT NULL, mode TEXT NOT NULL, limits TEXT NOT NULL,
    seed INTEGER NOT NULL, batch INTEGER NOT NULL, budget INTEGER NOT NULL, rows TEXT NOT NULL, fidelities TEXT NOT NULL,
    seconds REAL NOT NULL, error TEXT, version TEXT NOT NULL,
    PRIMARY KEY (strategy, task, device, mode, limits, seed, batch)) WITHOUT ROWID"""


@dataclass(frozen=True)
class Row:
    """What became of a case.

    Attributes:
        rows: numbers of the evaluated architectures in the table, in order; fewer than the budget where nothing was left to propose.
        fidelities: of each evaluation; None is full.
        seconds: of computing time, nearly all of it the strategy's own.
        error: what the strategy raised; the evaluations before are kept.
    """

    case: Case
    rows: tuple[int, ...]
    fidelities: tuple[float | None, ...] = ()
    seconds: float = 0.0
    error: str | None = None

    def cut(self, budget: int) -> Row:
        """The same run stopped after `budget` evaluations: a searcher does not know its budget."""
        if budget >= self.case.budget:
            return self
        case = replace(self.case, budget=budget)
        share = min(1.0, budget / max(1, len(self.rows)))
        return replace(self, case=case, rows=self.rows[:budget], fidelities=self.fidelities[:budget], seconds=self.seconds * share)


def _key(case: Case) -> tuple[Any, ...]:
    group = case.group
    return case.strategy, group.task, group.device or "", group.mode, " ".join(group.limits), case.seed, case.batch


class Results:
    """The file, made if it is not there; use it as a context manager or call :meth:`close`.

    Args:
        code: digest of the code behind a strategy; rows that other code made are not found. Empty: whatever made them.

    Raises:
        UserError: where the file is something else or cannot be written.
    """

    def __init__(self, path: str | Path, code: Callable[[str], str] = code_of) -> None:
        self.path, self._code = Path(path), code
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
        with self._explained():
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            if tables and application != _APPLICATION:
                raise UserError(f"expected benchmark results, but '{self.path}' is another SQLite file; give another folder")
            if not tables:
                self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA application_id={_APPLICATION}; {_TABLE}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"the results file '{self.path}' cannot be used: {error}; give another folder or make room") from error

    def add(self, row: Row) -> None:
        """Write a row; one of the same case, of any budget, is replaced."""
        case = row.case
        values = (
            *_key(case),
            case.budget,
            *(json.dumps(row.rows), json.dumps(row.fidelities), row.seconds, row.error, self._code(case.strategy)),
        )
        with self._explained():
            self._db.execute(f"INSERT OR REPLACE INTO runs VALUES ({','.join('?' * len(values))})", values)

    def find(self, case: Case) -> Row | None:
        """The row of a case without an error, cut from a longer run if need be; None if there is none."""
        row = self.longest(case)
        return None if row is None or row.case.budget < case.budget else row.cut(case.budget)

    def longest(self, case: Case) -> Row | None:
        """The row of a case without an error, of whatever budget it was run with."""
        found = self._read("budget, rows, fidelities, seconds", case, "error IS NULL")
        if found is None:
            return None
        budget, rows, fidelities, seconds = found
        return Row(replace(case, budget=budget), tuple(json.loads(rows)), tuple(json.loads(fidelities)), seconds)

    def _read(self, columns: str, case: Case, condition: str) -> tuple[Any, ...] | None:
        key = "strategy=? AND task=? AND device=? AND mode=? AND limits=? AND seed=? AND batch=?"
        query = f"SELECT {columns} FROM runs WHERE {key} AND {condition} AND ? IN ('', version)"
        with self._explained():
            return self._db.execute(query, (*_key(case), self._code(case.strategy))).fetchone()  # type: ignore[no-any-return]

    def select(self, cases: Iterable[Case]) -> list[Row]:
        """The rows of those cases that have one."""
        return [row for case in cases if (row := self.find(case)) is not None]

    def errors(self, cases: Iterable[Case]) -> list[Row]:
        """Rows of the cases whose strategy raised an error."""
        found = ((case, self._read("error", case, "error IS NOT NULL")) for case in cases)
        return [Row(case, (), error=error[0]) for case, error in found if error is not None]

    def strategies(self) -> list[str]:
        """Strategies that have rows."""
        with self._explained():
            return [name for (name,) in self._db.execute("SELECT DISTINCT strategy FROM runs ORDER BY strategy")]

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


__all__ = ["Case", "Group", "Results", "Row"]
