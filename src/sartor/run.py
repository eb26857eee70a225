"""The search loop: ask, evaluate, record, until the budget is spent or nothing is left.

The generator of every ask is `default_rng((seed, proposals asked so far))` and every proposal is noted before it is evaluated, so a run
that crashed and is started again on its history continues the same stream, bit for bit with one worker. With several, the history is in
completion order: it can be replayed from the file, not from the seed.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals, Limit
from sartor.searchers.base import Searcher
from sartor.store import Store
from sartor.trial import Proposal, Trial

Evaluate = Callable[..., Mapping[str, float]]
OnTrial = Callable[[Trial, int, int], None]
Status = Literal["complete", "exhausted", "interrupted", "infeasible"]


# -- executors ------------------------------------------------------------------------------------------------------------


class Executor(Protocol):
    """Where evaluations run: `workers` at a time. `restart` replaces workers that died."""

    workers: int

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]: ...

    def restart(self) -> None: ...


class Serial:
    """Evaluates at once, in this process."""

    workers = 1

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def restart(self) -> None:
        """Nothing can die."""


class Processes:
    """Evaluates in `workers` processes; the evaluator must be importable there (a function of a module, or an object that pickles).

    Use it as a context manager; leaving it ends the processes. They are spawned, not forked: forking a process with threads may deadlock.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UserError(f"expected at least one worker, got {workers}")
        self.workers = workers
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        return self._pool.submit(function, *arguments)

    def restart(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._start()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)


# -- the result -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attained:
    """How close the search came to one limit: the best `value` of its metric and the trial that has it; None if no trial reports it."""

    limit: Limit
    value: float | None
    trial: Trial | None

    def __str__(self) -> str:
        reached = "no trial reports it" if self.value is None or self.trial is None else f"best {self.value:g}, trial {self.trial.number}"
        return f"{self.limit}: {reached}"


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        trials: the whole history, resumed trials included.
        front: feasible, non-dominated trials of the highest fidelity; of equal objectives the first.
        status: "complete" (budget spent), "exhausted" (nothing left to propose), "interrupted" (Ctrl-C), or "infeasible" (ended, and no
            trial is feasible).
        closest: for every limit, the best figure that any trial attained.
        nearest: the trial with the smallest violation, None if none has all the metrics.
        missing: metrics that the goals read, and how many completed trials do not report them (and so cannot be feasible).
    """

    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    status: Status
    closest: tuple[Attained, ...]
    nearest: Trial | None
    missing: Mapping[str, int]

    def explain(self) -> str:
        """One line on how it ended; for an infeasible search what came closest, and what was missing or failed."""
        failed = [trial for trial in self.trials if trial.status == "failed"]
        text = f"{self.status}: {len(self.trials)} trials, {len(self.front)} on the front"
        if self.status == "infeasible":
            text += "".join(f"; {attained}" for attained in self.closest)
        text += "".join(f"; {count} trials do not report {name}" for name, count in self.missing.items())
        return text + (f"; {len(failed)} failed, the last with: {failed[-1].error}" if failed else "")


def summarise(trials: list[Trial], goals: Goals, ended: Literal["complete", "exhausted", "interrupted"]) -> Result:
    """The :class:`Result` of a history."""
    full = _highest_fidelity(trials)
    values, violations = goals.table(full)
    front = tuple(full[i] for i in np.flatnonzero(pareto.front(values, violations)))
    status: Status = "infeasible" if not front and ended != "interrupted" else ended
    finite = np.isfinite(violations)
    nearest = full[int(np.argmin(violations))] if finite.any() else None
    missing = Counter(name for trial in trials if trial.status == "complete" for name in goals.missing(trial.metrics))
    return Result(tuple(trials), front, status, tuple(_closest(limit, full) for limit in goals.limits), nearest, dict(missing))


def _highest_fidelity(trials: list[Trial]) -> list[Trial]:
    """Figures of different fidelities do not compare; no fidelity means full."""
    levels = {trial.fidelity for trial in trials}
    best = None if None in levels or not levels else max(level for level in levels if level is not None)
    return [trial for trial in trials if trial.fidelity == best]


def _closest(limit: Limit, trials: list[Trial]) -> Attained:
    excesses = [limit.excess(trial.metrics) if trial.status == "complete" else np.inf for trial in trials]
    if not np.isfinite(excesses).any():
        return Attained(limit, None, None)
    trial = trials[int(np.argmin(excesses))]
    return Attained(limit, float(trial.metrics[limit.key]), trial)


# -- the loop ---------------------------------------------------------------------------------------------------------------


def search(
    searcher: Searcher,
    evaluate: Evaluate,
    *,
    goals: Goals,
    space: Space,
    budget: int,
    batch: int = 1,
    store: Store | str | Path | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    on_trial: OnTrial | None = None,
) -> Result:
    """Search until `budget` trials are finished, those that `store` already holds included.

    Args:
        evaluate: `evaluate(arch)` returns the metrics; a proposal with a fidelity is evaluated as `evaluate(arch, fidelity)`. What it
            raises becomes a failed trial.
        batch: how many proposals are asked for at a time.
        store: a history to write and to continue: an open :class:`Store` or a path. A history made with a smaller budget continues as if
            the larger one had been given at once.
        executor: :class:`Serial` by default; the caller closes it.
        on_trial: called as `on_trial(trial, done, budget)` after each trial is recorded.

    Returns:
        The :class:`Result`; on Ctrl-C that of the trials so far. It always ends: limits that nothing meets give the status "infeasible".

    Raises:
        UserError: for a budget or batch below 1, and a store of another space or seed.
    """
    if budget < 1 or batch < 1:
        raise UserError(f"expected a budget and a batch of at least 1, got budget {budget} and batch {batch}")
    with Store(store) if isinstance(store, str | Path) else nullcontext(store) as history:
        loop = _Loop(searcher, evaluate, space, budget, batch, history, executor or Serial(), seed, on_trial)
        loop.resume()
        return summarise(loop.history, goals, loop.run())


@dataclass
class _Loop:
    """The state of one run: the history, what was asked but not submitted, and what is being evaluated."""

    searcher: Searcher
    evaluate: Evaluate
    space: Space
    budget: int
    batch: int
    store: Store | None
    executor: Executor
    seed: int
    on_trial: OnTrial | None
    history: list[Trial] = field(default_factory=list)
    queue: deque[tuple[int, Proposal]] = field(default_factory=deque)
    running: dict[Future[Any], tuple[int, Proposal]] = field(default_factory=dict)
    suspects: set[int] = field(default_factory=set)  # proposals whose worker died once
    asked: int = 0

    def resume(self) -> None:
        """Take up what the store holds: finished trials, and proposals that were asked but not finished."""
        if self.store is not None:
            self.store.bind(self.space, self.seed)
            self.history.extend(self.store.trials())
            self.queue.extend(self.store.pending())
            self.asked = self.store.asked

    def run(self) -> Literal["complete", "exhausted", "interrupted"]:
        try:
            while len(self.history) < self.budget:
                self._fill()
                if not self.running:
                    return "exhausted"
                done = wait(self.running, return_when=FIRST_COMPLETED).done
                self._collect([future for future in self.running if future in done])
        except KeyboardInterrupt:
            for future in self.running:
                future.cancel()
            return "interrupted"
        return "complete"

    def _fill(self) -> None:
        """Keep every worker busy. Proposals beyond the budget stay open, so that a longer run continues the same stream."""
        while len(self.running) < self._room():
            if not self.queue and not self._ask():
                return
            number, proposal = self.queue.popleft()
            try:
                future = self.executor.submit(_call, self.evaluate, proposal.arch, proposal.fidelity)
            except BrokenExecutor:
                self.queue.appendleft((number, proposal))
                if self.running:
                    return  # their results say which proposals the dead worker had
                self.executor.restart()
                continue
            self.running[future] = number, proposal

    def _room(self) -> int:
        # A proposal whose worker died is tried again alone, so that if it happens again it is the culprit.
        workers = 1 if self.suspects else self.executor.workers
        return min(workers, self.budget - len(self.history))

    def _ask(self) -> bool:
        pending = [proposal for _, proposal in (*self.running.values(), *self.queue)]
        rng = np.random.default_rng((self.seed, self.asked))
        # Through JSON, as on a resume, so that the searcher sees the same meta either way.
        asked = [
            Proposal(p.arch, p.fidelity, json.loads(json.dumps(dict(p.meta))))
            for p in self.searcher.ask(self.history, pending, self.batch, rng)
        ]
        if self.store is not None and asked:
            self.store.propose(self.asked, asked)
        self.queue.extend(enumerate(asked, self.asked))
        self.asked += len(asked)
        return bool(asked)

    def _collect(self, done: list[Future[Any]]) -> None:
        """Record finished evaluations in the order in which they were submitted."""
        broken: list[tuple[int, Proposal]] = []
        for future in done:
            number, proposal = self.running.pop(future)
            try:
                metrics, failure, seconds = future.result()
            except BrokenExecutor:
                broken.append((number, proposal))
                continue
            except Exception as error:  # not the evaluator's: those come back as text
                raise UserError(f"the evaluator cannot run in a worker process: {error}; use a function of an importable module") from error
            self._record(_trial(number, proposal, metrics, failure, seconds))
        if broken:
            self._recover(broken)

    def _recover(self, broken: list[tuple[int, Proposal]]) -> None:
        """One dead worker breaks the whole pool: try all of its proposals again; what kills a worker twice has failed."""
        broken += self.running.values()
        self.running.clear()
        self.executor.restart()
        for number, proposal in sorted(broken, key=lambda item: item[0], reverse=True):
            if number in self.suspects:
                failure = "the worker process died while evaluating this architecture (out of memory?)"
                self._record(_trial(number, proposal, {}, failure, 0.0))
            else:
                self.suspects.add(number)
                self.queue.appendleft((number, proposal))

    def _record(self, trial: Trial) -> None:
        if self.store is not None:
            self.store.add(trial)
        self.history.append(trial)
        self.suspects.discard(trial.number)
        if self.on_trial is not None:
            self.on_trial(trial, len(self.history), self.budget)


def _trial(number: int, proposal: Proposal, metrics: dict[str, float], failure: str | None, seconds: float) -> Trial:
    return Trial(number, proposal.arch, metrics, "failed" if failure else "complete", proposal.fidelity, seconds, failure, proposal.meta)


def _call(evaluate: Evaluate, arch: Arch, fidelity: float | None) -> tuple[dict[str, float], str | None, float]:
    """Metrics, error text and seconds of one evaluation; runs in the worker."""
    start = time.perf_counter()
    try:
        found = evaluate(arch) if fidelity is None else evaluate(arch, fidelity)
        if not isinstance(found, Mapping):
            raise TypeError(f"expected the evaluator to return a mapping of metric to number, got {type(found).__name__}")
        metrics = {str(name): float(value) for name, value in found.items()}
    except Exception as error:
        return {}, f"{type(error).__name__}: {error}", time.perf_counter() - start
    return metrics, None, time.perf_counter() - start
