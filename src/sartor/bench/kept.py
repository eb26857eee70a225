"""Rows that are kept with the sources: one small file for each strategy, from which a later comparison goes on.

A file is gzip of JSON lines: first what made the rows (strategy, code, versions), then a row a line, sorted. Equal rows give equal bytes.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sartor.bench.cases import Case, Group
from sartor.bench.code import code_of
from sartor.bench.results import Results, Row
from sartor.errors import UserError
from sartor.report.files import write_atomically

_FORMAT = "sartor-bench-rows-1"
_LIBRARIES = ("numpy", "scipy")


def path_of(folder: Path, strategy: str) -> Path:
    """The file of a strategy, spelled with its settings."""
    return folder / (re.sub(r"[^\w.=,-]", "_", strategy) + ".jsonl.gz")


def load(results: Results, folder: Path, strategies: Iterable[str], code: Callable[[str], str] = code_of) -> int:
    """Add the kept rows that today's code made and `results` does not have; how many there were.

    Raises:
        UserError: for a file that is something else.
    """
    count = 0
    for strategy in strategies:
        for row in read(folder, strategy, code(strategy)):
            if results.find(row.case) is None:
                results.add(row)
                count += 1
    return count


def save(results: Results, folder: Path, cases: Iterable[Case], code: Callable[[str], str] = code_of) -> None:
    """Write the rows that `results` has of these cases to the files of their strategies, beside those there of the same code."""
    by_strategy: dict[str, dict[Case, Row]] = {}
    for case in cases:
        row = results.longest(case)
        if row is not None:
            by_strategy.setdefault(case.strategy, {})[_identity(row.case)] = row
    for strategy, rows in by_strategy.items():
        for old in read(folder, strategy, code(strategy)):
            new = rows.get(_identity(old.case))
            if new is None or new.case.budget < old.case.budget:
                rows[_identity(old.case)] = old
        _write(path_of(folder, strategy), strategy, code(strategy), rows.values())


def read(folder: Path, strategy: str, code: str | None) -> list[Row]:
    """The kept rows of a strategy; none where there is no file, or another code made it (None: whatever made it)."""
    path = path_of(folder, strategy)
    if not path.is_file():
        return []
    try:
        head, *lines = (json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines())
        if head["format"] != _FORMAT or head["strategy"] != strategy:
            raise ValueError(f"it is of {head['strategy']!r} in the format {head['format']!r}")
        return [_from_json(strategy, line) for line in lines] if code in (None, head["code"]) else []
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' does not hold the benchmark rows of '{strategy}': {error}; delete it, or restore it") from error


def _write(path: Path, strategy: str, code: str, rows: Iterable[Row]) -> None:
    head = {"format": _FORMAT, "strategy": strategy, "code": code, "sartor": _version("sartor")}
    lines = sorted(json.dumps(_to_json(row), separators=(",", ":")) for row in rows)
    content = "\n".join([json.dumps({**head, **{name: _version(name) for name in _LIBRARIES}}), *lines, ""])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(content.encode(), compresslevel=9, mtime=0))


def _identity(case: Case) -> Case:
    """A case of any budget."""
    return Case(case.strategy, case.group, case.seed, 0, case.batch)


def _to_json(row: Row) -> dict[str, Any]:
    case, group = row.case, row.case.group
    found = {"task": group.task, "device": group.device, "mode": group.mode, "limits": group.limits, "seed": case.seed, "batch": case.batch}
    partial = {"fidelities": row.fidelities} if any(fidelity is not None for fidelity in row.fidelities) else {}
    return {**found, "budget": case.budget, "seconds": round(row.seconds, 3), "rows": row.rows, **partial}


def _from_json(strategy: str, line: dict[str, Any]) -> Row:
    group = Group(line["task"], line["device"], line["mode"], tuple(line["limits"]))
    rows = tuple(int(number) for number in line["rows"])
    fidelities = tuple(line.get("fidelities", [None] * len(rows)))
    return Row(Case(strategy, group, line["seed"], line["budget"], line["batch"]), rows, fidelities, float(line["seconds"]))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
