"""The latency table: time of every op signature on one device, and the sum over a network.

Entries are measured from the runtime's own optimised nodes (`sartor.hardware._lower`), kept in SQLite one commit at a time, and belong
to one device identity. Nothing is guessed: an op without an entry is measured or refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.errors import Unusable, UserError
from sartor.hardware._lower import Quantize, lower, lower_input
from sartor.hardware._timing import Stopwatch
from sartor.hardware.calibrate import Calibration, Pair, fit, terms
from sartor.hardware.device import Identity, host
from sartor.hardware.graph import Op, OpGraph, Shape
from sartor.hardware.local import LocalDevice
from sartor.hardware.pace import QuietTime

if TYPE_CHECKING:
    from sartor.hardware.target import Bench

SCHEMA = 1
NOISY_SPREAD = 0.1  # relative interquartile range of quiet samples beyond which an entry is called noisy
PROBE_OPS = 40  # ops that share one file while the runtime optimises them

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Entry:
    """Undisturbed time of one op signature. `kind`: "measured", or "fused" when the runtime merges the op into a neighbour."""

    signature: str
    us: float
    spread: float
    runs: int
    kind: str
    noisy: bool


class LatencyTable:
    """Latencies in one SQLite file for one device identity.

    `bench` is the device that measures what is missing (default: this machine). `quantize` is `sartor.export.quantize` (or anything with
    its signature): int8 ops are measured in the form it gives them. Raises UserError when the file belongs to another identity, is no
    table, or cannot be written.
    """

    def __init__(
        self, path: Path | str, identity: Identity | None = None, *, quantize: Quantize | None = None, seconds: float = 0.02,
        bench: Bench | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.identity = identity or host()
        self.quantize = quantize
        self.seconds = seconds
        self.bench = bench or LocalDevice()
        self.calibration = Calibration()
        self._stopwatch: Stopwatch | None = None
        self._database = self._open()
        self.entries = {entry.signature: entry for entry in _entries(self._database)}

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, isolation_level=None)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS entries (signature TEXT PRIMARY KEY, us REAL NOT NULL, spread REAL NOT NULL, "
                "runs INTEGER NOT NULL, kind TEXT NOT NULL, noisy INTEGER NOT NULL)"
            )
            database.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
            database.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (json.dumps(self.identity.to_json()),))
            meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"expected a latency table that can be opened at {self.path}, got: {error}") from error
        if meta["schema"] != str(SCHEMA):
            raise UserError(f"expected a latency table of schema {SCHEMA}, got schema {meta['schema']} in {self.path}: build a new one")
        other = Identity.from_json(json.loads(meta["identity"]))
        if other != self.identity:
            database.close()
            raise UserError(
                f"expected a latency table of this device ({self.identity}), got one of {other} in {self.path}: use another file"
            )
        if "calibration" in meta:
            self.calibration = Calibration.from_json(json.loads(meta["calibration"]))
        return database

    def close(self) -> None:
        self._database.close()

    # ---------------------------------------------------------------------------------------------- reading

    def price(self, op: Op) -> float:
        """Calibrated latency of one op in ms. Raises UserError for an op without an entry."""
        entry = self.entries.get(op.signature)
        if entry is None:
            raise UserError(f"expected an entry for {op.signature} in the latency table {self.path.name}, got none: call ensure first")
        return entry.us * self.calibration.of(op) / 1e3

    def session_ms(self, input_shape: Shape) -> float:
        """Calibrated latency in ms of what a network costs apart from its ops: the runtime's call, and its input converted."""
        entry = self.entries.get(_input_signature(input_shape))
        if entry is None:
            raise UserError(
                f"expected an entry for inputs of {input_shape} in the latency table {self.path.name}, got none: call ensure first"
            )
        return entry.us * self.calibration.session / 1e3

    def predict(self, graph: OpGraph | Sequence[Op], *, measure_missing: bool = False) -> float:
        """Latency in ms of a network given as its graph or its ops in order: the ops' sum and the session's constant.

        Raises UserError for ops without an entry, unless `measure_missing`.
        """
        ops, shape = (graph.ops, graph.input_shape) if isinstance(graph, OpGraph) else (tuple(graph), graph[0].in_shape)
        if measure_missing:
            self.ensure(ops, input_shapes=[shape])
        return sum(self.price(op) for op in ops) + self.session_ms(shape)

    # ---------------------------------------------------------------------------------------------- measuring

    def ensure(self, ops: Iterable[Op], *, input_shapes: Iterable[Shape] = (), progress: Progress | None = None) -> int:
        """Measures what the table lacks, each signature once, and returns how many entries were added.

        Every entry is committed as it is measured: an interrupted build continues where it stopped. Entries that met too few quiet
        moments get a second try; what stays noisy is marked so. Raises UserError on another machine than the table's.
        """
        shapes = [shape for shape in dict.fromkeys(input_shapes) if _input_signature(shape) not in self.entries]
        missing = {op.signature: op for op in ops if op.signature not in self.entries}
        if shapes or missing:
            self._check_device()
        total, done = len(shapes) + len(missing), 0
        for shape in shapes:
            kernel = lower_input(shape, self.identity.precision, self.quantize, self.bench)
            self._add(_input_signature(shape), self._watch().whole(kernel), fused=False)
            done += 1
        for turn in range(2):  # a second try, later, for those that no quiet moment met
            todo = list(missing.values()) if not turn else [op for op in missing.values() if self.entries[op.signature].noisy]
            total += len(todo) * turn
            for batch in _batches(todo):
                kernels = lower(batch, self.identity.precision, self.quantize, bench=self.bench)
                times = self._watch().times([(kernel, op.macs) for op, kernel in zip(batch, kernels, strict=True)])
                for op, kernel, time in zip(batch, kernels, times, strict=True):
                    self._add(op.signature, time, fused=not kernel.nodes)
                    done += 1
                    if progress is not None:
                        progress("latency table", done, total)
        return len(shapes) + len(missing)

    def _check_device(self) -> None:
        mine = self.bench.identity(self.identity.precision, self.identity.threads)
        if mine != self.identity:
            raise UserError(f"expected to measure on {self.identity}, got {mine}: run there, or use a table of this device")

    def _watch(self) -> Stopwatch:
        if self._stopwatch is None:
            self._stopwatch = Stopwatch(self.bench, self.identity.threads, self.seconds)
        return self._stopwatch

    def _add(self, signature: str, time: QuietTime, *, fused: bool) -> None:
        entry = Entry(
            signature, time.us, time.spread, time.runs, "fused" if fused else "measured", not time.quiet or time.spread > NOISY_SPREAD
        )
        row = (entry.signature, entry.us, entry.spread, entry.runs, entry.kind, int(entry.noisy))
        try:
            self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise Unusable(f"the latency table {self.path} cannot be used: {error}") from error
        self.entries[signature] = entry

    # ---------------------------------------------------------------------------------------------- calibration

    def calibrate(self, pairs: Sequence[tuple[OpGraph, float]]) -> Calibration:
        """Fits the correction per group of ops on (graph, measured latency ms) of whole networks, keeps and returns it.

        See `sartor.hardware.calibrate.fit`. Raises UserError for fewer than 4 pairs and for ops without an entry.
        """
        before, self.calibration = self.calibration, Calibration()
        try:
            rows = [Pair(terms(graph, self.price, self.session_ms), latency) for graph, latency in pairs]
            self.calibration = fit(rows)
        except BaseException:
            self.calibration = before
            raise
        with suppress(sqlite3.OperationalError):  # a read-only table still predicts
            text = json.dumps(self.calibration.to_json())
            self._database.execute("INSERT OR REPLACE INTO meta VALUES ('calibration', ?)", (text,))
        return self.calibration


def read_table(path: Path) -> tuple[Identity, list[Entry]]:
    """Whose latency table a file is, and its entries; opened for reading only. Raises UserError for a file that is none."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
            entries = _entries(database)
        if meta.get("schema") != str(SCHEMA) or not all(isinstance(e.signature, str) and isinstance(e.us, float) for e in entries):
            raise ValueError(f"schema {meta.get('schema')}, entries of another kind")
        return Identity.from_json(json.loads(meta["identity"])), entries
    except (sqlite3.Error, TypeError, ValueError, KeyError) as error:
        raise UserError(f"expected a latency table of schema {SCHEMA} at {path}, got: {error}") from None


def _entries(database: sqlite3.Connection) -> list[Entry]:
    rows = database.execute("SELECT signature, us, spread, runs, kind, noisy FROM entries")
    return [Entry(row[0], row[1], row[2], row[3], row[4], bool(row[5])) for row in rows]


def _batches(ops: Iterable[Op]) -> Iterator[list[Op]]:
    """Ops that may share a probe file: equal height and width of their inputs, `PROBE_OPS` at most."""
    groups: dict[tuple[int, int], list[Op]] = defaultdict(list)
    for op in ops:
        groups[op.in_shape[1:]].append(op)
    for group in groups.values():
        yield from (group[start : start + PROBE_OPS] for start in range(0, len(group), PROBE_OPS))


def _input_signature(shape: Shape) -> str:
    return "input:" + "x".join(str(size) for size in shape)
