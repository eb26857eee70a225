"""The parts of the main job that need no training."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sartor import pareto
from sartor.arch import Arch
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.hardware.calibrate import GROUPS, Calibration
from sartor.hardware.graph import Op
from sartor.job import _carry_out
from sartor.job.conclude import comparison
from sartor.job.context import Job
from sartor.job.explore import load_weights, save_weights
from sartor.job.finish import choose
from sartor.job.further import timings
from sartor.job.limits import attainable, cheapest, check_attainable
from sartor.job.plan import Plan
from sartor.job.sizing import fit_space
from sartor.job.state import State, held, write_json
from sartor.job.workers import Task, with_shares
from sartor.request import SearchRequest
from sartor.trial import Trial


def _trial(number: int, accuracy: float, latency_ms: float, status: str = "complete") -> Trial:
    metrics = {"accuracy": accuracy, **timings(latency_ms)} if status == "complete" else {}
    return Trial(number, Arch({"a": number}), metrics, status)  # type: ignore[arg-type]


@given(st.floats(0.1, 1000), st.booleans(), st.booleans())
def test_the_plan_fits_into_the_time_and_gives_the_ladder_as_much_training(minutes: float, baselines: bool, from_scratch: bool) -> None:
    plan = Plan.of(minutes, baselines=baselines, from_scratch=from_scratch)
    finish = plan.finish * (2 if from_scratch else 1)
    total = plan.first + plan.calibrate + plan.supernet + plan.screen + plan.explore + finish + plan.ladder
    assert total <= 60 * minutes
    assert plan.ladder == pytest.approx(plan.supernet + finish if baselines else 0.0)


@given(st.lists(st.tuples(st.floats(0.1, 0.99), st.floats(0.01, 10)), min_size=1, max_size=30), st.integers(1, 6))
def test_chosen_nets_are_feasible_and_the_most_accurate_comes_first(points: list[tuple[float, float]], count: int) -> None:
    goals = Goals.parse(["accuracy", "latency_ms"], ["latency_ms<=5"])
    trials = [_trial(i, a, t) for i, (a, t) in enumerate(points)]
    trials.append(_trial(len(points), 0, 0, "failed"))
    found = choose(trials, goals, count)
    feasible = [t for t in trials if t.status == "complete" and t.metrics["latency_ms"] <= 5]
    assert sorted(t.number for t in found) == sorted(t.number for t in feasible)
    if found:
        assert found[0].metrics["accuracy"] == max(t.metrics["accuracy"] for t in feasible)
        ranks = pareto.ranks(np.array([goals.values(t.metrics) for t in found]))
        front = int((ranks == ranks.min()).sum())
        assert (ranks[: min(count, front)] == ranks.min()).all()


def test_a_limit_on_accuracy_is_left_to_the_trained_nets() -> None:
    """With shared weights no net reaches it; those that come nearest are trained, and none that breaks another limit."""
    goals = Goals.parse(["accuracy", "latency_ms"], ["accuracy>=97%", "latency_ms<=5"])
    trials = [_trial(i, 0.5 + 0.01 * i, 0.1 + 0.15 * i) for i in range(40)]
    found = choose(trials, goals, 2)
    assert all(t.metrics["latency_ms"] <= 5 for t in found)
    keeps_latency = [t for t in trials if t.metrics["latency_ms"] <= 5]
    nearest = sorted(keeps_latency, key=lambda t: -t.metrics["accuracy"])[: len(found)]
    assert found and {t.number for t in found} == {t.number for t in nearest}
    enough = Goals.parse(["accuracy", "latency_ms"], ["accuracy>=55%", "latency_ms<=5"])
    assert all(t.metrics["accuracy"] >= 0.55 for t in choose(trials, enough, 2))


def test_candidates_clear_of_a_limit_on_time_come_first() -> None:
    goals = Goals.parse(["accuracy", "latency_ms"], ["latency_ms<=5", "accuracy>=60%"])
    near, clear, poor = _trial(0, 0.9, 4.9), _trial(1, 0.8, 4.7), _trial(2, 0.5, 1.0)
    assert choose([near, clear], goals, 1, margin=0.05) == [clear] and choose([near, clear], goals, 1)[0] == near
    assert choose([near], goals, 1, margin=0.05) == [near]  # there is no other
    assert near in choose([near, poor], goals, 1, margin=0.05)  # it keeps both limits, which none that is clear of the one does


def test_chosen_nets_spread_over_the_front() -> None:
    goals = Goals.parse(["accuracy", "latency_ms"], [])
    trials = [_trial(i, 0.5 + 0.4 * i / 40, 0.1 * 1.1**i) for i in range(41)]
    latencies = sorted(t.metrics["latency_ms"] for t in choose(trials, goals, 5)[:5])
    assert latencies[-1] / latencies[0] > 5
    assert min(b / a for a, b in itertools.pairwise(latencies)) > 1.2


def test_state_survives_and_refuses_what_is_none(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    with state.timing("table"):
        pass
    state.put("table", {"entries": 3})
    again = State(tmp_path / "state.json")
    assert "table" in again and again["table"] == {"entries": 3} and again.seconds["table"] >= 0
    for content, why in (("{", "property name"), ('{"schema": 9}', "lacks 'facts'")):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(UserError, match=f"state.json: .*{why}.*start a new run"):
            State(tmp_path / "state.json")


def test_weights_of_the_run_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    net, path = nn.Linear(3, 2), tmp_path / "supernet.safetensors"
    save_weights(net, path)
    other = nn.Linear(3, 2)
    load_weights(other, path)
    assert other.weight.equal(net.weight)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"supernet.safetensors: expected the weights of this run's network.*start a new run"):
        load_weights(other, path)


def test_weights_of_a_layer_that_stands_in_two_places_come_back(tmp_path: Path) -> None:
    layer = nn.Linear(3, 3)
    net, other = nn.Sequential(layer, nn.ReLU(), layer), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    save_weights(net, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert other(torch.ones(1, 3)).equal(net(torch.ones(1, 3)))


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used: .*make room"):
        write_json(tmp_path / "file" / "x.json", {})


def test_comparison_is_measured_against_the_ladder() -> None:
    def record(name: str, accuracy: float, latency_ms: float) -> dict[str, object]:
        return {"name": name, "metrics": {"accuracy": accuracy, "latency_ms": latency_ms}}

    found = comparison([record("s", 0.9, 1.0), record("t", 0.8, 0.1)], [record("b", 0.9, 2.0), record("c", 0.7, 1.0)])
    assert found["speedup_at_ladder_best"] == 2.0
    assert found["ladder_best"]["name"] == "b"
    # reference (0.7, 2.1): search 0.2 * 1.1 + 0.1 * 0.9, ladder 0.2 * 0.1
    assert found["hypervolume"]["search"] == pytest.approx(0.2 * 1.1 + 0.1 * 0.9)
    assert found["hypervolume"]["ladder"] == pytest.approx(0.2 * 0.1)
    slower = comparison([record("s", 0.6, 1.0)], [record("b", 0.9, 2.0)])
    assert slower["speedup_at_ladder_best"] is None and slower["hypervolume"]["search"] == 0.0


def test_impossible_limits_are_refused_with_the_attainable_figure(request_for: Callable[..., SearchRequest]) -> None:
    for field, bound in (("peak_bytes", 100), ("params", 500), ("macs", 1000), ("latency_ms", 1e-4), ("throughput", 1e9)):
        sign = ">=" if field == "throughput" else "<="
        job = Job(request_for(limits=[f"{field}{sign}{bound:f}"]), Path("unused"))
        job.__dict__["state"] = _Memory()
        with pytest.raises(UserError, match=r"out of reach.*attains") as caught:
            check_attainable(job)
        assert field in str(caught.value)
    job = Job(request_for(limits=["params<=2000"]), Path("unused"))
    job.__dict__["state"] = _Memory()
    best = cheapest(job, lambda arch: job.net.costs(arch)["params"])
    rng = np.random.default_rng(0)
    assert job.net.costs(best)["params"] <= min(job.net.costs(job.net.space.sample(rng))["params"] for _ in range(300))
    assert attainable(job, job.goals.limits[0]) == job.net.costs(best)["params"]
    check_attainable(job)


def test_a_space_too_large_for_the_time_loses_its_largest_picture_scales_and_says_so(request_for: Callable[..., SearchRequest]) -> None:
    for supernet_seconds, left in ((1e9, []), (1e-3, ["stem.stride = 1"])):
        job = Job(request_for(), Path("unused"))
        job.__dict__["state"] = _Memory()
        job.__dict__["plan"] = replace(job.plan, supernet=supernet_seconds)
        largest = job.net.costs(job.net.largest)["macs"]
        fit_space(job, 16)
        sizing = job.state["sizing"]
        assert all(text in sizing["note"] for text in left) and bool(sizing["note"]) == bool(left)
        assert (job.net.costs(job.net.largest)["macs"] < 0.5 * largest) == bool(left)
        assert all(job.net.space.choices["stem.stride"][arch["stem.stride"]] == 2 for arch in _draws(job)) or not left


def _draws(job: Job) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [arch for _ in range(20) for arch in (job.net.space.sample(rng), *job.net.extremes(rng))]


class _Memory(dict[str, object]):
    """A state that is not written."""

    @property
    def facts(self) -> dict[str, object]:
        return self

    def put(self, phase: str, facts: object = True) -> None:
        self[phase] = facts

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        yield


def test_training_time_is_shared_by_cost_and_has_a_floor() -> None:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    small = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    large = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3)
    )
    before = large[0].weight.clone()
    tasks = [Task("small", "scratch"), Task("large", "scratch")]
    cheap, dear = with_shares(tasks, [small, large], (1, 16, 16), 64, 100.0)
    assert dear.seconds > 2 * cheap.seconds and dear.seconds <= 100.0
    assert (cheap.name, dear.name) == ("small", "large")
    assert torch.equal(before, large[0].weight)
    assert all(0 < task.seconds <= 20.0 for task in with_shares(tasks, [small, large], (1, 16, 16), 64, 1e-6))
    assert with_shares([], [], (1, 16, 16), 64, 1.0) == []


def test_an_op_that_the_table_lacks_is_measured_when_it_is_met(request_for: Callable[..., SearchRequest], tmp_path: Path) -> None:
    """As in `--space macro`, whose joins no sample shows one and all."""
    job = Job(request_for(), tmp_path)
    asked: list[str] = []

    class Table:
        entries: dict[str, float] = {}

        def ensure(self, ops: list[Op]) -> None:
            asked.extend(op.signature for op in ops)
            self.entries.update((op.signature, 0.5) for op in ops)

        def price(self, op: Op) -> float:
            return self.entries[op.signature]

        def session_ms(self, shape: object) -> float:
            return 0.0

    job.__dict__["table"] = Table()
    arch = job.net.smallest
    ops = [op for factor in job.factors for op in factor.at(tuple(arch[name] for name in factor.scope))]
    assert job.predicted(arch)["latency_ms"] == pytest.approx(0.5 * len(ops)) == job.predicted(arch)["latency_ms"]
    assert sorted(asked) == sorted({op.signature for op in ops})


def test_time_outside_the_phases_is_accounted_for(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state._opened -= 10.0  # ten seconds ago
    state.seconds["table"] = 4.0
    assert state.account() == pytest.approx(10.0, abs=0.5) and state.seconds["other"] == pytest.approx(6.0, abs=0.5)
    assert state.account() == pytest.approx(10.0, abs=0.5)  # told twice, counted once
    state.put("table")
    again = State(tmp_path / "state.json")
    again._opened -= 5.0
    again.seconds["explore"] = 5.0
    assert again.account() == pytest.approx(15.0, abs=0.5) and again.seconds["other"] == pytest.approx(6.0, abs=0.5)


def test_a_runs_calibration_is_its_own(request_for: Callable[..., SearchRequest], tmp_path: Path) -> None:
    """A run in another space that came in between has left its own in the table that they share."""
    first, second = (Job(request_for(), tmp_path / name) for name in ("a", "b"))
    for job in (first, second):
        job.folder.mkdir(exist_ok=True)
    mine = Calibration(dict.fromkeys(GROUPS, 1.25))
    first.state.put("table", {"quality": mine.to_json()})
    second.table.calibration = Calibration(dict.fromkeys(GROUPS, 4.0))
    second.table._database.execute(
        "INSERT OR REPLACE INTO meta VALUES ('calibration', ?)", (json.dumps(second.table.calibration.to_json()),)
    )
    second.close()
    assert first.table.calibration.factors == mine.factors
    first.close()
    assert Job(second.request, tmp_path / "c").table.calibration.factors == dict.fromkeys(GROUPS, 4.0)
    there = request_for(device="pixel-3", platforms=["host"])  # the same machine as a further device
    both = [Job(there, tmp_path / name) for name in ("d", "e")]
    both[0].state.facts["table"] = {"platforms": {"host": {"quality": mine.to_json()}}}
    assert [job.further[0].table.calibration.factors for job in both] == [mine.factors, dict.fromkeys(GROUPS, 4.0)]
    for job in both:
        job.close()


def test_only_one_process_at_a_time_carries_out_a_run(tmp_path: Path) -> None:
    other = "import sys; from pathlib import Path; from sartor.job.state import held\n"
    other += "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", other, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        closed: list[bool] = []
        begun = SimpleNamespace(folder=tmp_path, close=lambda: closed.append(True))
        with pytest.raises(UserError, match="another process is carrying out this run"):
            _carry_out(begun)  # type: ignore[arg-type]  # the part of a job that it needs
        assert closed == [True]
        process.kill()  # as by kill -9: nothing is left to clear away
        process.wait()
    with held(tmp_path):
        assert (tmp_path / "checkpoints").is_dir()
