"""Tables of published measurements that come with the package: read once, kept, and never without their origin and licence.

A number is stored as the whole number of its last printed digit (10.754 as 107540 at four decimals), so it is read back exactly as
published. `benchmarks/make_tables.py` makes the files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sartor.errors import UserError

FOLDER = Path(__file__).parent / "data"
MISSING = {1: 2**8 - 1, 2: 2**16 - 1, 4: 2**32 - 1}
"""What stands for a missing number, by bytes a value."""


@dataclass(frozen=True)
class Column:
    """One quantity of a table: its unit, what it is, and how many decimals were published."""

    name: str
    unit: str
    description: str
    decimals: int = 0


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        rows: number of architectures.
        source: repositories that the figures were taken from.
        licence: of the source.
        citation: papers to cite when publishing results.
    """

    name: str
    title: str
    rows: int
    source: str
    licence: str
    citation: str
    columns: Mapping[str, Column]

    def column(self, name: str) -> np.ndarray:
        """The numbers of a column, float64 `(rows,)`, or `(rows, k)` where each row holds several; NaN where none was measured. Read-only.

        Raises:
            UserError: for an unknown column, naming the closest.
        """
        if name not in self.columns:
            close = difflib.get_close_matches(name, self.columns, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise UserError(f"table '{self.name}' has no column '{name}'; {hint}columns: {', '.join(self.columns)}")
        return _decoded(self.name, name, self.columns[name].decimals)


@cache
def _arrays(name: str) -> Any:
    return np.load(FOLDER / f"{name}.npz", allow_pickle=False)


@cache
def _decoded(table: str, column: str, decimals: int) -> np.ndarray:
    stored = _arrays(table)[column]
    # A division by a power of ten is correctly rounded: the same float as the decimal's.
    values = np.where(stored == MISSING[stored.itemsize], np.nan, stored / 10.0**decimals)
    values.flags.writeable = False
    return values


@cache
def catalogue() -> Mapping[str, Table]:
    """All tables by name."""
    entries = json.loads((FOLDER / "tables.json").read_text(encoding="utf-8"))
    return {e["name"]: Table(**{**e, "columns": {name: Column(name, **c) for name, c in e["columns"].items()}}) for e in entries}


def table(name: str) -> Table:
    """The table called `name`.

    Raises:
        UserError: for an unknown name.
    """
    if name not in catalogue():
        raise UserError(f"unknown table '{name}'; tables: {', '.join(catalogue())}")
    return catalogue()[name]
