"""Tables of latencies that a user measured: networks or single operations, one a row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sartor.hardware.graph import Op, OpGraph


_LEAST, _LONGEST = 1e-6, 1e9  # ms: a nanosecond, eleven days


@dataclass(frozen=True)
class Pair:
    """An ONNX file and its latency on the device in ms, batch 1."""

    file: Path
    latency_ms: float


def read_pairs(path: Path, fewest: int, most: int, option: str = "pairs") -> list[Pair]:
    """The measured networks in a CSV file, which `option` named; paths as seen from it.

    Raises UserError for one that cannot be read, fewer or more rows than asked for, and the first row that is not as expected.
    """
    rows = read_rows(path, option, ("file", "latency_ms"))
    if not fewest <= len(rows) <= most:
        raise UserError(f"{option}: expected {fewest} to {most:,} measured networks in {path}, but got {len(rows)}.")
    found = [_pair(path, option, number, row) for number, row in enumerate(rows, 1)]
    seen: set[Path] = set()
    for pair in found:
        if pair.file in seen:  # left out of the fit, it would still be in it
            raise UserError(f"{option}: expected one row for each network in {path}, but {pair.file} has several: keep one.")
        seen.add(pair.file)
    return found


def _pair(path: Path, option: str, number: int, row: Mapping[str, Any]) -> Pair:
    file = str(row["file"] or "").strip()
    if not file:
        raise UserError(f"{option}: expected an ONNX file in row {number} of {path}, but got none.")
    return Pair(resolved(path.parent / file, f"{option}, row {number} of {path}"), latency_in(path, option, number, row))


def resolved(path: Path, where: str) -> Path:
    """The path without links. Raises UserError for what can be no path."""
    try:
        found = path.resolve()
        found.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: expected the path of a file, but got {str(path)[:80]!r}: {str(error)[:120]}") from None
    return found


def read_rows(path: Path, option: str, expected: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file with the columns `expected`, which `option` named. Raises UserError for any other file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{option}: expected a CSV file that can be read at {path}, got: {why}") from None
    missing = [column for column in expected if column not in columns]
    if missing:
        raise UserError(f"{option}: expected the columns {' and '.join(expected)} in {path}, but {missing[0]} is not among {columns}.")
    if len(set(columns)) < len(columns):
        raise UserError(f"{option}: expected columns of different names in {path}, but got {columns}.")
    longer = next((number for number, row in enumerate(rows, 1) if None in row), None)
    if longer is not None:
        raise UserError(
            f"{option}: expected {len(columns)} fields in row {longer} of {path}, as in its head, but got more: decimal commas?"
        )
    return rows


def latency_in(path: Path, option: str, number: int, row: Mapping[str, Any]) -> float:
    """The column latency_ms of a row. Raises UserError for what is no number that a latency can be."""
    told = str(row["latency_ms"] or "").strip()
    try:
        latency = float(told)
    except ValueError:
        latency = math.nan
    if not _LEAST <= latency <= _LONGEST:  # nan neither
        raise UserError(f"{option}: expected a latency_ms above 0 in row {number} of {path}, and below twelve days, but got {told[:40]!r}.")
    return latency


def precision_of_all(graphs: Sequence[OpGraph], files: Sequence[Path], asked: str | None = None) -> str:
    """That of all files, which must be one, and the one asked for. Raises UserError naming the first file of another."""
    from sartor.hardware.onnx_graph import precision_of

    expected = asked or precision_of(graphs[0])
    for graph, file in zip(graphs, files, strict=True):
        if precision_of(graph) != expected:
            raise UserError(f"precision: expected only {expected} files, but {file} is {precision_of(graph)}: take each apart.")
    return expected


def read_operations(path: Path, precision: str) -> tuple[list[Op], NDArray[np.float64]]:
    """Measured operations and their latencies in ms `(n,)`: of a CSV file with the columns op and latency_ms, or of a latency table.

    Operations are named as latency tables name them (`conv:16x14x14>48x14x14:k1s1g1:relu`). Of a table, what the runtime merged into a
    neighbour and what was noisy is left out. What was measured several times is told once, by its median. Raises UserError for any other
    file, and for a table of another precision.
    """
    import numpy as np

    from sartor.hardware.signatures import parse
    from sartor.hardware.table import read_table

    if _is_database(path):
        identity, entries = read_table(path)
        if identity.precision != precision:
            raise UserError(
                f"ops: expected a latency table of {precision}, as the networks are, but {path} is one of {identity.precision}."
            )
        kept = [
            one for one in entries if one.kind == "measured" and not one.noisy and one.us > 0 and not one.signature.startswith("input:")
        ]
        told = [(one.signature, one.us / 1e3) for one in kept]
    else:
        rows = read_rows(path, "ops", ("op", "latency_ms"))
        told = [(str(row["op"] or "").strip(), latency_in(path, "ops", number, row)) for number, row in enumerate(rows, 1)]
    if not told:
        raise UserError(f"ops: expected measured operations in {path}, but got none.")
    each: dict[str, list[float]] = {}
    for signature, ms in told:
        each.setdefault(signature, []).append(ms)
    return [parse(signature) for signature in each], np.array([float(np.median(times)) for times in each.values()])


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False  # said where it is read
