"""Runs cases, in this process or in several, and writes each row as soon as it is there."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from itertools import takewhile
from multiprocessing import connection

from sartor.bench.cases import Case, Group, make
from sartor.bench.results import Results, Row
from sartor.evaluators.tabular import Tabular
from sartor.run import search
from sartor.trial import Trial

Progress = Callable[[str, int, int], None]
_DEATHS = 2  # a case whose worker died this often is an error

_tabular = lru_cache(maxsize=64)(Group.tabular)


def run_case(case: Case) -> Row:
    """Run one case. What the strategy raises becomes the row's error."""
    table: Tabular = _tabular(case.group)
    trials: list[Trial] = []
    error = None
    start = time.process_time()
    try:
        searcher = make(case.strategy, table)
        result = search(
            searcher,
            table,
            goals=table.goals,
            space=table.space,
            budget=case.budget,
            batch=case.batch,
            seed=case.seed,
            on_trial=lambda trial, done, budget: trials.append(trial),
        )
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    else:
        if result.status == "interrupted":  # the search ends quietly on Ctrl-C; half a run is no row
            raise KeyboardInterrupt
    seconds = time.process_time() - start
    return Row(case, tuple(table.index(t.arch) for t in trials), tuple(t.fidelity for t in trials), seconds, error)


def run(
    cases: Sequence[Case], results: Results, *, jobs: int = 1, progress: Progress | None = None, seconds: float = math.inf
) -> list[Row]:
    """Run the cases that have no row yet, `jobs` at a time, and return the rows of all that have one then, in the order of `cases`.

    A killed run continues where it was: a case is the unit. Cases that ended with an error are tried again. No case is begun after
    `seconds`; those under way are finished.
    """
    until = time.monotonic() + seconds
    todo = [case for case in cases if results.find(case) is None]
    report = _reporter(progress, len(cases))
    report(len(cases) - len(todo), None)
    finished = len(cases) - len(todo)
    for row in _in_processes(todo, jobs, until) if jobs > 1 and len(todo) > 1 else _here(todo, until):
        results.add(row)
        finished += 1
        report(finished, row.case)
    return results.select(cases)


def _here(cases: Sequence[Case], until: float) -> Iterator[Row]:
    return (run_case(case) for case in takewhile(lambda case: time.monotonic() < until, cases))


def _reporter(progress: Progress | None, total: int) -> Callable[[int, Case | None], None]:
    def report(done: int, case: Case | None) -> None:
        if progress is not None:
            progress("bench" if case is None else f"bench: {case.strategy}, {case.group}, seed {case.seed}", done, total)

    return report


# -- processes ----------------------------------------------------------------------------------------------------------------


def _prepare() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and a parent that was killed takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _pool(jobs: int) -> ProcessPoolExecutor:
    # One thread a worker, read from the environment when its libraries are loaded.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    # Spawned, not forked: forking a process with threads may deadlock.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)


def _in_processes(cases: Sequence[Case], jobs: int, until: float) -> Iterator[Row]:
    """Rows as they come."""
    workers = _Workers(cases, jobs)
    try:
        while workers.fill(time.monotonic() < until):
            yield from workers.collect()
    finally:
        workers.stop()


class _Workers:
    """Few cases are under way at a time, so that an end or a death loses little."""

    def __init__(self, cases: Sequence[Case], jobs: int, work: Callable[[Case], Row] = run_case) -> None:
        self.work = work
        self.waiting = deque(cases)
        self.jobs = min(jobs, len(cases))
        self.deaths: Counter[Case] = Counter()
        self.running: dict[Future[Row], Case] = {}
        self.others = set(multiprocessing.active_children())
        self.pool = _pool(self.jobs)

    def fill(self, more: bool = True) -> bool:
        """Keep the workers busy, unless there is to be no `more`; whether any case is under way."""
        # After a death the suspects run one at a time, so that the guilty one is found.
        suspected = any(self.deaths[case] for case in (*self.waiting, *self.running.values()))
        while more and self.waiting and len(self.running) < (1 if suspected else self.jobs + 1):
            case = self.waiting.popleft()
            try:
                self.running[self.pool.submit(self.work, case)] = case
            except BrokenExecutor:
                self.waiting.appendleft(case)
                if self.running:
                    break  # their results tell which cases the dead worker had
                self._restart()
        return bool(self.running)

    def collect(self) -> list[Row]:
        """Wait for rows."""
        done = wait(self.running, return_when=FIRST_COMPLETED).done
        rows, lost = [], []
        for future in done:
            case = self.running.pop(future)
            try:
                rows.append(future.result())
            except BrokenExecutor:
                lost.append(case)
        return rows + (self._recover(lost) if lost else [])

    def _recover(self, lost: list[Case]) -> list[Row]:
        """One dead worker breaks the pool: all that was under way is tried again; what was there at every death is an error."""
        lost += self.running.values()
        self.running.clear()
        self._restart()
        rows = []
        for case in lost:
            self.deaths[case] += 1
            if self.deaths[case] > _DEATHS:
                rows.append(Row(case, (), error="the worker process died (out of memory?)"))
            else:
                self.waiting.appendleft(case)
        return rows

    def _restart(self) -> None:
        self.stop()
        self.pool = _pool(self.jobs)

    def stop(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - self.others:
            worker.terminate()
