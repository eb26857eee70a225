from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Space
from sartor.errors import UserError
from sartor.store import SCHEMA, Store
from sartor.trial import Proposal, Trial

SPACE = Space({"depth": [1, 2], "kernel": [[3, 3], [5, 5]], "act": ["relu", True, 1, 1.5], "e": [1, 2]}, {"e": {"depth": [2]}})
META = {"generation": 3, "parents": [1, 2], "name": "ß", "none": None}


def bound(path: Path, space: Space = SPACE, seed: int = 0) -> Store:
    store = Store(path)
    store.bind(space, seed)
    return store


def examples() -> list[Trial]:
    return [
        Trial(0, SPACE.at(5), {"accuracy": 0.1 + 0.2, "latency_ms": 1e-300}, seconds=0.25, meta=META),
        Trial(2, SPACE.at(7), {}, status="failed", error="ValueError: 'no'\nline two", meta={}),
        Trial(1, SPACE.at(0), {"accuracy": math.inf, "latency_ms": -math.inf}, fidelity=0.5),
    ]


def test_trials_come_back_as_they_were_in_the_order_added(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as store:
        for trial in examples():
            store.add(trial)
        store.add(Trial(3, SPACE.at(1), {"accuracy": math.nan}))
        assert list(store.trials())[:3] == examples()
    with Store(tmp_path / "h.sqlite") as again:  # without the space: it is in the file
        *first, last = again.trials()
        assert first == examples() and math.isnan(last.metrics["accuracy"])
        assert again.fingerprint == SPACE.fingerprint and again.space.fingerprint == SPACE.fingerprint
        assert len(again) == 4 and again.seed == 0


@given(
    st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False)),
    st.dictionaries(
        st.text(max_size=5), st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5) | st.lists(st.integers())
    ),
    st.integers(0, SPACE.size - 1),
)
def test_every_trial_round_trips(metrics: dict[str, float], meta: dict[str, object], number: int) -> None:
    with bound(Path(":memory:")) as store:
        trial = Trial(number, SPACE.at(number), metrics, seconds=1.5, meta=meta)
        store.add(trial)
        assert list(store.trials()) == [trial]


def test_rows_hold_labels_and_strict_json(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as store:
        store.add(Trial(0, SPACE.from_labels({"depth": 1, "kernel": [5, 5], "act": True}), {"accuracy": math.nan}))
        assert next(store.rows())["labels"] == {"depth": 1, "kernel": [5, 5], "act": True}  # "e" is switched off
        (text,) = store._db.execute("SELECT metrics FROM trials").fetchone()
        assert json.loads(text, parse_constant=pytest.fail) == {"accuracy": "nan"}


def test_proposals_are_pending_until_their_trial(tmp_path: Path) -> None:
    proposals = [Proposal(SPACE.at(i), fidelity=0.5, meta=META) for i in range(4)]
    with bound(tmp_path / "h.sqlite") as store:
        assert store.asked == 0 and store.pending() == []
        store.propose(0, proposals)
        store.add(Trial(1, SPACE.at(1), {}))
        assert store.asked == 4
    with Store(tmp_path / "h.sqlite") as store:
        assert store.pending() == [(i, proposals[i]) for i in (0, 2, 3)]
        assert store.asked == 4


def test_trials_without_proposals_count_as_asked(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as store:
        store.add(Trial(6, SPACE.at(1), {}))
        assert store.asked == 7


def test_a_restricted_space_reads_what_lies_in_it(tmp_path: Path) -> None:
    small = SPACE.restrict({"depth": [2]})
    with bound(tmp_path / "h.sqlite") as store:
        for i in range(SPACE.size):
            store.add(Trial(i, SPACE.at(i), {}))
        assert [trial.arch for trial in store.trials()] == list(SPACE)
        inside = [trial.arch for trial in store.trials(small)]
    assert inside == [arch for arch in SPACE if arch in small] and len(inside) == small.size


def test_a_restricted_space_is_rebuilt(tmp_path: Path) -> None:
    small = SPACE.restrict({"depth": [2]})
    bound(tmp_path / "h.sqlite", small).close()
    with Store(tmp_path / "h.sqlite") as store:
        assert store.space.fingerprint == small.fingerprint and list(store.space) == list(small)


def test_another_space_seed_or_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    bound(path).close()
    bound(path).close()
    with pytest.raises(UserError, match="belongs to search space"):
        bound(path, Space({"a": [1]}))
    with pytest.raises(UserError, match="made with seed 0, got seed 1"):
        bound(path, seed=1)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(UserError, match=f"schema {SCHEMA + 1}"):
        Store(path)


def test_a_file_that_is_no_history_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("no database, but a text that is longer than the header of one would be, which is a hundred bytes. " * 9)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE trials (x)")
    before = text.read_bytes(), other.read_bytes()
    with pytest.raises(UserError, match="no search history"):
        Store(text)
    with pytest.raises(UserError, match="another SQLite file"):
        Store(other)
    assert (text.read_bytes(), other.read_bytes()) == before


def test_a_missing_folder_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "h.sqlite", tmp_path):
        with pytest.raises(UserError, match="folder must exist"):
            Store(path)


def test_an_empty_history_reads_as_empty(tmp_path: Path) -> None:
    with Store(tmp_path / "h.sqlite") as store:
        assert list(store.trials()) == [] and store.pending() == [] and len(store) == store.asked == 0
        with pytest.raises(UserError, match="empty"):
            _ = store.space


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as store:
        store._db.execute(f"PRAGMA max_page_count={store._db.execute('PRAGMA page_count').fetchone()[0] + 2}")
        added = 0
        with pytest.raises(UserError, match="full; free some disk space"):
            while True:
                store.add(Trial(added, SPACE.at(0), {}, error="x" * 500))
                added += 1
        with pytest.raises(UserError, match="full"):
            store.propose(added, [Proposal(SPACE.at(0), meta={"x": "x" * 9000})])
        assert 0 < len(store) == added
        store._db.execute("PRAGMA max_page_count=1000")
        store.propose(added, [Proposal(SPACE.at(0))])  # the failed transaction is over
        assert store.asked == added + 1


def test_a_read_only_history_is_said(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as store:
        store._db.execute("PRAGMA query_only=ON")
        with pytest.raises(UserError, match="writable"):
            store.add(Trial(0, SPACE.at(0), {}))
        with pytest.raises(UserError, match="writable"):
            store.propose(0, [Proposal(SPACE.at(0))])


def test_two_searches_on_one_history_are_noticed(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as one, bound(tmp_path / "h.sqlite") as two:
        one.propose(0, [Proposal(SPACE.at(0))])
        with pytest.raises(UserError, match="another search"):
            two.propose(0, [Proposal(SPACE.at(1))])
        one.add(Trial(0, SPACE.at(0), {}))
        assert len(two) == 1  # a reader sees what a writer has added


def test_a_proposal_that_cannot_be_written_writes_none(tmp_path: Path) -> None:
    with bound(tmp_path / "h.sqlite") as store:
        store.propose(3, [Proposal(SPACE.at(0))])
        with pytest.raises(UserError):
            store.propose(2, [Proposal(SPACE.at(1)), Proposal(SPACE.at(2))])  # number 3 is taken
        assert [number for number, _ in store.pending()] == [3]
