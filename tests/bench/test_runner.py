"""Cases are run once, whatever happens in between."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.bench.cases import Case, Group, grid
from sartor.bench.curves import chosen_accuracy
from sartor.bench.results import Results, Row
from sartor.bench.runner import _Workers, run, run_case
from sartor.goals import Goals
from sartor.searchers import SEARCHERS
from sartor.trial import Proposal, Trial

CASES = grid(["random", "nsga2:population=5"], ["nb201-cifar10"], [None, "raspi4"], seeds=2, budget=12)


def spelled(rows: Sequence[Row]) -> list[tuple[Case, tuple[int, ...], str | None]]:
    """Everything but the time."""
    return [(row.case, row.rows, row.error) for row in rows]


def test_a_case_is_its_seed() -> None:
    one, same = run_case(CASES[0]), run_case(CASES[0])
    other = run_case(CASES[4])
    assert CASES[4].seed != CASES[0].seed and CASES[4].strategy == CASES[0].strategy
    assert one.rows == same.rows != other.rows
    assert len(set(one.rows)) == 12 and one.error is None


def test_random_search_through_the_whole_machinery() -> None:
    """Search loop, searcher and table together: best of 10 by 12-epoch validation tests at 92.58 % (error of 200 seeds: 0.08)."""
    group = Group("nb201-cifar10")
    rows = [run_case(Case("random", group, seed, 10)) for seed in range(200)]
    assert 100 * np.mean([chosen_accuracy(row, group.tabular())[-1] for row in rows]) == pytest.approx(92.58, abs=0.25)


def test_processes_give_the_same_rows_and_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    with Results(tmp_path / "one.sqlite") as one, Results(tmp_path / "two.sqlite") as two:
        said: list[tuple[str, int, int]] = []
        alone = run(CASES, one, progress=lambda *step: said.append(step))
        assert [row.case for row in alone] == CASES
        assert [done for _, done, _ in said] == list(range(len(CASES) + 1)) and {total for *_, total in said} == {len(CASES)}
        assert "nsga2:population=5, nb201-cifar10 on raspi4, seed 1" in said[-1][0]
        run(CASES[:3], two)
        assert spelled(run(CASES, two, jobs=2)) == spelled(alone)
        said.clear()
        run(CASES, one, jobs=2, progress=lambda *step: said.append(step))
        assert said == [("bench", len(CASES), len(CASES))]


_KILLED = """
import os, signal, sys
from sartor.bench.cases import grid
from sartor.bench.results import Results
from sartor.bench.runner import run

if __name__ == "__main__":
    cases = grid(["random", "nsga2:population=5"], ["nb201-cifar10"], [None, "raspi4"], seeds=2, budget=12)
    with Results(sys.argv[1]) as results:
        run(cases, results, jobs=2, progress=lambda what, done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_comparison_goes_on(tmp_path: Path) -> None:
    """kill -9 after three rows. The call returns only when nobody holds its output open any more: no worker outlives its parent."""
    script, path = tmp_path / "killed.py", tmp_path / "results.sqlite"
    script.write_text(_KILLED)
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    with Results(path) as results, Results(tmp_path / "fresh.sqlite") as fresh:
        assert len(results.select(CASES)) == 3
        assert spelled(run(CASES, results)) == spelled(run(CASES, fresh))


class Failing:
    """Proposes twice, then raises."""

    def __init__(self, space: Any, goals: Goals) -> None:
        self.space = space

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        if len(history) == 2:
            raise RuntimeError("no third")
        return [Proposal(self.space.at(len(history)))]


def test_an_error_is_a_row_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEARCHERS, "failing", Failing)
    cases = grid(["failing", "random"], ["nb201-cifar10"], seeds=1, budget=4)
    with Results(tmp_path / "results.sqlite") as results:
        assert [row.case.strategy for row in run(cases, results)] == ["random"]
        (error,) = results.errors(cases)
        assert error.error == "RuntimeError: no third"
        monkeypatch.setitem(SEARCHERS, "failing", SEARCHERS["random"])
        assert len(run(cases, results)) == 2 and results.errors(cases) == []


class Interrupted(Failing):
    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        if len(history) == 2:
            raise KeyboardInterrupt
        return super().ask(history, pending, n, rng)


def test_half_a_run_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEARCHERS, "interrupted", Interrupted)
    cases = grid(["random", "interrupted"], ["nb201-cifar10"], seeds=1, budget=4)
    with Results(tmp_path / "results.sqlite") as results:
        with pytest.raises(KeyboardInterrupt):
            run(cases, results)
        assert [row.case for row in results.select(cases)] == cases[:1]


_WORK = """
import os
from sartor.bench.results import Row

def work(case):
    if case.seed == 1:
        os._exit(9)
    return Row(case, (case.seed,))
"""


def test_a_case_that_kills_its_worker_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sartor_bench_work.py").write_text(_WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    cases = [Case("random", Group("nb201-cifar10"), seed, 1) for seed in range(5)]
    workers = _Workers(cases, 2, importlib.import_module("sartor_bench_work").work)
    rows: list[Row] = []
    while workers.fill():
        rows += workers.collect()
    workers.stop()
    assert {row.case.seed: row.rows for row in rows if row.error is None} == {seed: (seed,) for seed in (0, 2, 3, 4)}
    assert [row.case.seed for row in rows if row.error is not None] == [1]


def test_a_batch_is_asked_for_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counted(SEARCHERS["random"]):  # type: ignore[misc]  # a class, whatever the registry says
        def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
            asked.append(n)
            return super().ask(history, pending, n, rng)

    monkeypatch.setitem(SEARCHERS, "counted", Counted)
    assert len(run_case(Case("counted", Group("nb201-cifar10"), 0, 12, batch=4)).rows) == 12 and asked == [4, 4, 4]
