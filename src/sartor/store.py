"""The history of a search in one SQLite file, safe against a crash at any moment.

Write-ahead log: a proposal or a trial is in the file or it is not. Rows hold option *labels*, and the space is stored beside them, so a
history stays readable without the code that made the space, and through a restricted space.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.trial import Proposal, Trial

SCHEMA = 1
_APPLICATION = 0x73415254  # "sART" in the file's header: tells a history from any other SQLite file
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE proposals (number INTEGER PRIMARY KEY, labels TEXT NOT NULL, fidelity REAL, meta TEXT NOT NULL);
CREATE TABLE trials (sequence INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE, labels TEXT NOT NULL, metrics TEXT NOT NULL,
    status TEXT NOT NULL, fidelity REAL, seconds REAL NOT NULL, error TEXT, meta TEXT NOT NULL);
"""


class Store:
    """A history file, made if it is not there; use it as a context manager or call :meth:`close`.

    A trial has the number of its proposal. Rows come in the order in which they were added: with several workers, that of completion.

    Raises:
        UserError: where the file is no history, of another schema, not writable, or the disk is full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._space: Space | None = None
        with self._explained("open"):
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10.0)
        try:
            with self._explained("open"):
                self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            (application,), (schema,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
            if application != _APPLICATION:
                raise UserError(f"expected a search history, but '{self.path}' is another SQLite file; give another path")
            if schema != SCHEMA:
                raise UserError(f"history '{self.path}' has schema {schema}, this version reads {SCHEMA}; use the version that wrote it")
        # NORMAL: a killed process loses nothing; a power cut may lose the last trials, never the file.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")

    def bind(self, space: Space, seed: int) -> None:
        """Say which search this history belongs to: written into a new file, compared in an old one.

        Raises:
            UserError: where the history is of another space, or of another seed (its stream could not be continued).
        """
        if not self._meta():
            self._create(space, seed)
        meta = self._meta()
        if meta["fingerprint"] != space.fingerprint:
            raise UserError(
                f"history '{self.path}' belongs to search space {meta['fingerprint']}, not to {space.fingerprint}; "
                "use the space that it was made with, or another file"
            )
        if int(meta["seed"]) != seed:
            raise UserError(f"history '{self.path}' was made with seed {meta['seed']}, got seed {seed}; use that seed or another file")
        self._space = space

    def _create(self, space: Space, seed: int) -> None:
        conditions = {n: {p: [space.choices[p][i] for i in sorted(ids)] for p, ids in ps.items()} for n, ps in space.conditions.items()}
        meta = {
            "fingerprint": space.fingerprint,
            "seed": str(seed),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "space": json.dumps({"choices": space.choices, "conditions": conditions, "allowed": space.allowed}),
        }
        with self._explained("write"), self._transaction():
            for statement in _TABLES.split(";")[:-1]:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={_APPLICATION}")
            self._db.execute(f"PRAGMA user_version={SCHEMA}")
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())

    # -- reading ------------------------------------------------------------------------------------------------------------

    def _meta(self) -> dict[str, str]:
        with self._explained("read"):
            (made,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return dict(self._db.execute("SELECT key, value FROM meta")) if made else {}

    @property
    def space(self) -> Space:
        """The space that the history was made with, rebuilt from the file where :meth:`bind` was not called."""
        if self._space is None:
            meta = self._meta()
            if not meta:
                raise UserError(f"history '{self.path}' is empty: no search has written to it yet")
            self._space = Space(**json.loads(meta["space"]))
        return self._space

    @property
    def fingerprint(self) -> str:
        """The space's fingerprint."""
        return self.space.fingerprint

    @property
    def seed(self) -> int:
        """The seed of the search."""
        return int(self._meta().get("seed", 0))

    @property
    def asked(self) -> int:
        """How many proposals were ever made; the number of the next one."""
        query = "SELECT max((SELECT coalesce(max(number), -1) FROM proposals), (SELECT coalesce(max(number), -1) FROM trials))"
        with self._explained("read"):
            return int(self._db.execute(query).fetchone()[0]) + 1 if self._meta() else 0

    def __len__(self) -> int:
        """Number of trials."""
        with self._explained("read"):
            return int(self._db.execute("SELECT count(*) FROM trials").fetchone()[0]) if self._meta() else 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Trials in order as plain values, with `labels` in place of the architecture; streamed."""
        names = ("number", "labels", "metrics", "status", "fidelity", "seconds", "error", "meta")
        if not self._meta():
            return
        with self._explained("read"):
            for row in self._db.execute(f"SELECT {', '.join(names)} FROM trials ORDER BY sequence"):
                values = dict(zip(names, row, strict=True))
                values["metrics"] = {name: float(value) for name, value in json.loads(values["metrics"]).items()}
                yield {**values, "labels": json.loads(values["labels"]), "meta": json.loads(values["meta"])}

    def trials(self, space: Space | None = None) -> Iterator[Trial]:
        """Trials in order, streamed; with `space` (a restricted one, say) only those that lie in it, as its architectures."""
        if not self._meta():
            return
        decode = _Decoder(self.space)
        for row in self.rows():
            labels = row.pop("labels")
            if space is None or space is self._space:
                yield Trial(arch=decode(labels), **row)
                continue
            try:
                yield Trial(arch=space.from_labels(labels), **row)
            except UserError:
                continue

    def pending(self) -> list[tuple[int, Proposal]]:
        """Proposals without a trial, with their numbers, in the order in which they were asked."""
        if not self._meta():
            return []
        query = "SELECT number, labels, fidelity, meta FROM proposals WHERE number NOT IN (SELECT number FROM trials) ORDER BY number"
        with self._explained("read"):
            rows = self._db.execute(query).fetchall()
        return [(n, Proposal(self.space.from_labels(json.loads(labels)), fidelity, json.loads(meta))) for n, labels, fidelity, meta in rows]

    # -- writing ------------------------------------------------------------------------------------------------------------

    def propose(self, first: int, proposals: Iterable[Proposal]) -> None:
        """Note proposals, numbered from `first`, in one transaction, before they are evaluated.

        Raises:
            UserError: where another process has taken these numbers.
        """
        rows = [(n, self._labels(p), p.fidelity, json.dumps(dict(p.meta))) for n, p in enumerate(proposals, first)]
        with self._explained("write"), self._transaction():
            self._db.executemany("INSERT INTO proposals VALUES (?, ?, ?, ?)", rows)

    def add(self, trial: Trial) -> None:
        """Append a finished trial: one insert, whatever the length of the history."""
        metrics = json.dumps({name: value if math.isfinite(value) else str(value) for name, value in trial.metrics.items()})
        row = (trial.number, self._labels(trial), metrics, trial.status, trial.fidelity, trial.seconds, trial.error)
        with self._explained("write"):
            self._db.execute("INSERT INTO trials VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, json.dumps(dict(trial.meta))))

    def _labels(self, item: Trial | Proposal) -> str:
        return json.dumps(self.space.labels(item.arch), separators=(",", ":"))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has already rolled back on a full disk
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise UserError(f"cannot {verb} history '{self.path}': another search is writing to it; give each its own file") from error
        except sqlite3.Error as error:
            raise UserError(f"cannot {verb} history '{self.path}': {error}; {_advice(str(error))}") from error

    def close(self) -> None:
        """Close the file; what was added is there already."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Decoder:
    """Labels to architectures of the space that wrote them: `Space.from_labels` without its checks, at a tenth of the cost."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._off = dict.fromkeys(space.choices, 0)
        # By type too: JSON tells `True` from `1` and `1` from `1.0`, which a dictionary does not.
        self._known: dict[tuple[str, type, Any], int] = {}

    def __call__(self, labels: Mapping[str, Any]) -> Arch:
        values = self._off.copy()
        for name, label in labels.items():
            values[name] = self._index(name, label)
        return Arch(values)

    def _index(self, name: str, label: Any) -> int:
        if isinstance(label, list | dict):
            return self._space.option(name, label)
        key = (name, type(label), label)
        if key not in self._known:
            self._known[key] = self._space.option(name, label)
        return self._known[key]


_ADVICE: Mapping[str, str] = {
    "not a database": "the file is no search history, give another path",
    "malformed": "the file is damaged, restore a copy or start a new one",
    "unable to open": "its folder must exist and be writable",
    "readonly": "make the file and its folder writable",
    "full": "free some disk space and go on (with `sartor resume`, if it is a run), nothing that was recorded is lost",
    "locked": "another process holds it, wait or give another path",
}


def _advice(message: str) -> str:
    return next((advice for sign, advice in _ADVICE.items() if sign in message), "check the disk and the path")
