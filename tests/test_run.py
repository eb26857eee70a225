from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import Processes, Result, search
from sartor.searchers import MULTI_FIDELITY, NSGA2, SEARCHERS, RandomSearch, Searcher
from sartor.store import Store
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(4)) for i in range(5)} | {"deep": [0, 1], "extra": [1, 2, 3]}, {"extra": {"deep": [1]}})
GOALS = Goals.parse(["accuracy", "latency"], ["latency=9ms"])


def evaluate(arch: Mapping[str, int]) -> dict[str, float]:
    weight = sum((i + 1) * index for i, index in enumerate(arch.values()))
    if weight % 7 == 0:
        raise ValueError(f"weight {weight}")
    return {"accuracy": 1 - 1 / (2 + weight), "latency_ms": math.nan if weight % 11 == 0 else 1.1 + sum(arch.values())}


def small(name: str = "nsga2") -> Searcher:
    return NSGA2(SPACE, GOALS, population=8) if name == "nsga2" else SEARCHERS[name](SPACE, GOALS)


def run(budget: int = 60, searcher: Searcher | None = None, **settings: Any) -> Result:
    return search(searcher or small(), settings.pop("evaluate", evaluate), goals=GOALS, space=SPACE, budget=budget, **settings)


def spelled(trials: Sequence[Trial]) -> list[str]:
    """Everything but the seconds; as text, for NaN equals nothing."""
    return [repr((t.number, dict(t.arch), dict(t.metrics), t.status, t.fidelity, t.error, dict(t.meta))) for t in trials]


def test_a_search_records_every_trial_and_its_front() -> None:
    seen: list[tuple[Trial, int, int]] = []
    result = run(on_trial=lambda *report: seen.append(report))
    assert result.status == "complete" and [t.number for t in result.trials] == list(range(60))
    assert [(t.number + 1, 60) for t in result.trials] == [(done, budget) for _, done, budget in seen]
    failed = [t for t in result.trials if t.status == "failed"]
    assert failed and all(t.metrics == {} and t.error is not None and t.error.startswith("ValueError: weight") for t in failed)
    assert result.front and all(GOALS.feasible(t.metrics) for t in result.front)
    for t in result.trials:
        if t not in result.front and GOALS.feasible(t.metrics):
            assert any((GOALS.values(f.metrics) <= GOALS.values(t.metrics)).all() for f in result.front)
    assert result.missing == {"latency_ms": sum("latency_ms" in t.metrics and math.isnan(t.metrics["latency_ms"]) for t in result.trials)}
    assert "failed, the last with: ValueError" in result.explain()


@pytest.mark.parametrize("name", sorted(SEARCHERS))
@pytest.mark.parametrize("batch", [1, 7])
def test_the_history_file_changes_nothing_and_a_longer_budget_continues(name: str, batch: int, tmp_path: Path) -> None:
    whole = run(50, small(name), batch=batch)
    for budget in (1, 18, 18, 33, 50):
        part = run(budget, small(name), batch=batch, store=tmp_path / "h.sqlite")
        assert spelled(part.trials) == spelled(whole.trials[:budget])


@pytest.mark.parametrize("batch", [1, 7])
def test_an_interrupt_gives_the_trials_so_far_and_resumes(batch: int, tmp_path: Path) -> None:
    whole = run(40, batch=batch)
    for stop in (0, 5, 12):
        left = iter(range(stop))

        def interrupted(arch: Arch, left: Any = left) -> dict[str, float]:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return evaluate(arch)

        before = len(Store(tmp_path / "h.sqlite"))
        part = run(40, batch=batch, store=tmp_path / "h.sqlite", evaluate=interrupted)
        assert part.status == "interrupted" and len(part.trials) == before + stop
    assert spelled(run(40, batch=batch, store=tmp_path / "h.sqlite").trials) == spelled(whole.trials)


_CHILD = """
import json, sys
from sartor.arch import Space
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers import NSGA2

space = Space({f"c{i}": list(range(4)) for i in range(5)} | {"deep": [0, 1], "extra": [1, 2, 3]}, {"extra": {"deep": [1]}})
goals = Goals.parse(["accuracy", "latency"], ["latency=9ms"])
table = json.load(open(sys.argv[2]))
search(NSGA2(space, goals, population=8), lambda arch: table[str(space.index(arch))], goals=goals, space=space, budget=400, batch=7,
       store=sys.argv[1], on_trial=lambda trial, done, budget: print(done, flush=True))
"""


def test_a_killed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    """kill -9 at five random moments: whatever was being written, the history ends as that of a run without a crash."""
    figures = np.random.default_rng(0).random((SPACE.size, 2)) * [1, 12]
    table = {str(i): {"accuracy": float(a), "latency_ms": float(b)} for i, (a, b) in enumerate(figures)}
    (tmp_path / "table.json").write_text(json.dumps(table))
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "h.sqlite"), str(tmp_path / "table.json")]
    reached = 0
    for wanted in sorted(np.random.default_rng().integers(1, 380, size=5)):  # other moments in every run of the test
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= wanted:
                    break
            child.kill()
        with Store(tmp_path / "h.sqlite") as store:
            trials = list(store.trials())
            assert max(reached, wanted) <= len(trials) and store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            reached = len(trials)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = run(400, batch=7, evaluate=lambda arch: table[str(SPACE.index(arch))])
    with Store(tmp_path / "h.sqlite") as store:
        assert spelled(list(store.trials())) == spelled(whole.trials)


def test_an_exhausted_space_ends_the_search() -> None:
    space = SPACE.restrict({"c0": [0], "c1": [0], "c2": [1], "deep": [0]})
    result = search(RandomSearch(space, GOALS), evaluate, goals=GOALS, space=space, budget=1000, batch=7)
    assert result.status == "exhausted" and len(result.trials) == space.size == 16


# Searchers over fidelities evaluate an architecture several times; test_halving has theirs.
@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - MULTI_FIDELITY))
def test_an_infeasible_search_ends_with_the_closest_figures(name: str) -> None:
    goals = Goals.parse(["accuracy", "latency"], ["latency=0.5ms", "accuracy=50%", "peak=1KB"])
    space = SPACE.restrict({f"c{i}": [0, 2] for i in range(3)})
    for budget, trials in ((40, 40), (100_000, space.size)):
        result = search(SEARCHERS[name](space, goals), evaluate, goals=goals, space=space, budget=budget, batch=50)
        assert result.status == "infeasible" and not result.front and len(result.trials) == trials
        latency, accuracy, peak = result.closest
        finite = [t.metrics["latency_ms"] for t in result.trials if math.isfinite(t.metrics.get("latency_ms", math.nan))]
        assert latency.value == min(finite) and latency.trial is not None and latency.trial.metrics["latency_ms"] == latency.value
        assert accuracy.value == max(t.metrics["accuracy"] for t in result.trials if t.status == "complete")
        assert peak.value is None and "peak_bytes<=1024: no trial reports it" in result.explain()
        assert f"latency_ms<=0.5: best {latency.value:g}" in result.explain() and "do not report peak_bytes" in result.explain()


def test_nearest_is_the_smallest_violation() -> None:
    goals = Goals.parse(["accuracy", "latency"], ["latency=0.5ms", "accuracy=99%"])
    result = search(RandomSearch(SPACE, goals), evaluate, goals=goals, space=SPACE, budget=50)
    assert result.nearest is not None
    assert goals.violation(result.nearest.metrics) == min(goals.violation(t.metrics) for t in result.trials)


@pytest.mark.parametrize("returned", [None, 3.0, {"accuracy": "high"}, {"accuracy": [1, 2]}])
def test_an_evaluator_that_returns_nonsense_fails_its_trials(returned: Any) -> None:
    result = run(5, evaluate=lambda arch: returned)
    assert result.status == "infeasible" and {t.status for t in result.trials} == {"failed"} and result.nearest is None


def test_fidelities_reach_the_evaluator_and_do_not_mix_on_the_front(tmp_path: Path) -> None:
    class Halving:
        def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
            i = len(history)
            return [Proposal(SPACE.at(i), fidelity=0.25 if i < 6 else 1.0)]

    def partial(arch: Arch, fidelity: float) -> dict[str, float]:
        return {"accuracy": 1 - fidelity / 2, "latency_ms": 1.0}  # low fidelity looks better

    result = run(9, Halving(), evaluate=partial, store=tmp_path / "h.sqlite")
    assert [t.fidelity for t in result.trials] == [0.25] * 6 + [1.0] * 3
    assert [t.number for t in result.front] == [6]


def test_every_ask_has_the_generator_of_its_place() -> None:
    """`default_rng((seed, proposals asked so far))`: what makes a run resumable without a saved generator."""
    draws: list[float] = []

    class Recorder:
        def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
            draws.append(rng.random())
            return [Proposal(SPACE.at(len(history) + i)) for i in range(3)]

    run(9, Recorder(), batch=3, seed=5)
    assert draws == [np.random.default_rng((5, asked)).random() for asked in (0, 3, 6)]


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for settings in ({"budget": 0}, {"batch": 0}):
        with pytest.raises(UserError, match="at least 1"):
            run(**settings)
    run(3, store=tmp_path / "h.sqlite")
    with pytest.raises(UserError, match="seed"):
        run(6, store=tmp_path / "h.sqlite", seed=1)
    with pytest.raises(UserError, match="worker"):
        Processes(0)


_WORKER = """
import os
from pathlib import Path

def evaluate(arch):
    weight = sum((i + 1) * index for i, index in enumerate(arch.values()))
    if weight == 0:
        raise ValueError("nothing")
    return {"accuracy": 1 - 1 / (2 + weight), "latency_ms": 1.0 + sum(arch.values()), "params": float(os.getpid())}

def deadly(arch):
    if arch["c0"] == 3 and arch["c1"] == 2:
        os._exit(9)
    return evaluate(arch)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that spawned processes can import."""
    (tmp_path / "sartor_test_worker.py").write_text(_WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sartor_test_worker", raising=False)
    return importlib.import_module("sartor_test_worker")


def test_processes_evaluate_elsewhere_and_each_proposal_once(worker: Any, tmp_path: Path) -> None:
    with Processes(2) as executor:
        result = run(40, evaluate=worker.evaluate, executor=executor, store=tmp_path / "h.sqlite")
    assert sorted(t.number for t in result.trials) == list(range(40))
    assert len({t.arch for t in result.trials}) == 40
    assert os.getpid() not in {t.metrics["params"] for t in result.trials if t.status == "complete"}
    with Store(tmp_path / "h.sqlite") as store:
        assert spelled(list(store.trials())) == spelled(result.trials) and store.pending() == []


def test_an_architecture_that_kills_its_worker_fails_alone(worker: Any) -> None:
    space = SPACE.restrict({"c0": [2, 3], "c1": [1, 2], "c2": [0, 1], "c3": [0], "c4": [1], "deep": [0]})
    with Processes(2) as executor:
        result = search(RandomSearch(space, GOALS), worker.deadly, goals=GOALS, space=space, budget=99, executor=executor)
    assert result.status == "exhausted" and len(result.trials) == space.size == 8
    for trial in result.trials:
        dies = trial.arch["c0"] == 3 and trial.arch["c1"] == 2
        assert (trial.status == "failed") == dies
        assert not dies or "worker process died" in str(trial.error)


def test_an_evaluator_that_cannot_travel_is_said() -> None:
    with Processes(1) as executor, pytest.raises(UserError, match="importable module"):
        run(3, evaluate=lambda arch: {}, executor=executor)


def test_the_search_core_imports_no_heavy_library() -> None:
    code = (
        "import sys, sartor.run, sartor.searchers; print([m for m in ('torch', 'onnx', 'sklearn', 'scipy', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
