"""What a run decides at its end, without training: who is chosen, refused and tested, on what images, and what is left in the folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sartor import job as jobs
from sartor import run
from sartor.arch import Arch, Space
from sartor.goals import Goals
from sartor.hardware.series import Measurement
from sartor.job import conclude, explore, finish
from sartor.job.context import Job
from sartor.job.further import timings
from sartor.job.state import State
from sartor.job.workers import Task, trained
from sartor.request import SearchRequest
from sartor.searchers import make_searcher
from sartor.store import Store
from sartor.trial import Trial

Request = Callable[..., SearchRequest]


def _clock(p50: float) -> Measurement:
    return Measurement(0.9 * p50, p50, 1.1 * p50, 0.98 * p50, 1.02 * p50, 100, p50, 0.0, False)


def _record(folder: Path, name: str, origin: str, validation: float, latency_ms: float) -> dict[str, Any]:
    (folder / "models" / name).mkdir(parents=True)
    for file in ("model.onnx", finish.WEIGHTS):
        (folder / "models" / name / file).write_bytes(b"")
    return {
        "name": name, "origin": origin, "arch": {}, "file": f"models/{name}/model.onnx",
        "validation": {"accuracy": validation, "top5": 1.0}, "metrics": {"accuracy": validation, "top5": 1.0, **timings(latency_ms)},
    }  # fmt: skip


# -- the end of a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A job at its end: the last measurement, the accuracies on test images and the pages are stand-ins."""
    seen = SimpleNamespace(measured=[], files=[], latency={}, test={}, job=None)

    def clocks(job: Job, files: Sequence[Path], seconds: float, **settings: Any) -> list[Measurement]:
        seen.measured.append([file.parent.name for file in files])
        seen.files.append([file.name for file in files])
        return [_clock(seen.latency[file.parent.name]) for file in files]

    def verify(files: Any, *arguments: Any, **settings: Any) -> dict[str, Any]:
        scores = {"accuracy": seen.test[files.int8.parent.name], "top5": 1.0, "accuracy_fp32": 0.5}
        return {"test": scores, "difference": {}, "int8": {}}

    monkeypatch.setattr(Job, "clocks", clocks)
    monkeypatch.setattr(conclude, "verify", verify)
    for name in ("_module", "reload", "write_report", "write_card"):
        monkeypatch.setattr(conclude, name, lambda *arguments, **settings: None)
    request = request_for(limits=["latency_ms<=1"])
    request.save()
    seen.job = Job(request, Path(request.out))
    return seen


def test_the_test_split_is_read_once_at_the_end_and_chooses_nothing(ended: SimpleNamespace) -> None:
    job = ended.job
    # by validation images b is dominated by a, by test images it is the other way round
    models = [_record(job.folder, name, "search", accuracy, 0.5) for name, accuracy in (("a", 0.9), ("b", 0.8))]
    baselines = [_record(job.folder, "rung", "baseline", 0.7, 5.0)]
    for record in (*models, *baselines):
        job.state.put(f"model:{record['name']}", record)
    ended.latency.update(a=0.5, b=0.6, rung=5.0)
    ended.test.update(a=0.6, b=0.95, rung=0.75)
    before = conclude.partial(job)
    assert before["status"] == "partial" and job.data.test_reads == 0
    assert {m["name"]: m["metrics"]["accuracy"] for m in before["models"]} == {"a": 0.9, "b": 0.8}
    result = conclude.conclude(job, models, baselines, [])
    assert job.data.test_reads == 1
    assert {m["name"]: (m["front"], m["metrics"]["accuracy"]) for m in result["models"]} == {"a": (True, 0.6), "b": (False, 0.95)}
    assert result["baselines"][0]["metrics"]["accuracy"] == 0.75  # the ladder is not held to the limits
    again = conclude.conclude(job, [], [], [])
    assert job.data.test_reads == 1 and [m["metrics"] for m in again["models"]] == [m["metrics"] for m in result["models"]]
    assert ended.measured == [["a", "b", "rung"]]  # all files side by side, and only once


def test_what_the_last_measurement_refuses_is_not_left_among_the_models(ended: SimpleNamespace) -> None:
    job = ended.job
    models = [_record(job.folder, name, "search", 0.9, 0.5) for name in ("a", "b")]
    _record(job.folder, "first", "search", 0.3, 0.2)
    ended.latency.update(a=0.7, b=1.25)
    ended.test.update(a=0.9)
    result = conclude.conclude(job, models, [], [])
    assert [m["name"] for m in result["models"]] == ["a"] and result["models"][0]["metrics"]["latency_ms"] == 0.7
    assert [r["name"] for r in result["refused"]] == ["b"] and "latency_ms<=1: 1.25 on the exported file" in result["refused"][0]["reason"]
    assert [str(p.relative_to(job.folder)) for p in sorted((job.folder / "models").rglob("*"))] == ["models/a", "models/a/model.onnx"]
    assert json.loads((job.folder / "result.json").read_text()) == result


def test_a_single_file_is_judged_in_company(ended: SimpleNamespace) -> None:
    """Alone it would find itself in the caches, and be promised for less than it takes in use."""
    model = _record(ended.job.folder, "a", "search", 0.9, 0.5)
    ended.latency.update(a=0.7)
    ended.test.update(a=0.9)
    assert ended.job.everywhere([ended.job.folder / model["file"]], 0.1, judged=True)[0][""].p50 == 0.7
    conclude.conclude(ended.job, [model], [], [])
    assert ended.files == [["model.onnx", "model.onnx"]] * 2


def test_a_run_that_delivers_nothing_says_infeasible(ended: SimpleNamespace) -> None:
    models = [_record(ended.job.folder, "a", "search", 0.9, 0.5)]
    ended.latency.update(a=2.0)
    result = conclude.conclude(ended.job, models, [], [])
    assert result["status"] == "infeasible" and not result["models"] and result["refused"]


# -- delivery: repair, refusal, both ways of training ------------------------------------------------------------------------------


@pytest.fixture
def delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], list[str], list[str]]]:
    """Deliver candidates c1, c2 … whose files have the given latencies and accuracies: (kept, refused, what was made)."""

    def deliver(latency_ms: Mapping[str, float], accuracy: Mapping[str, float], **asked: Any) -> Any:
        made: list[str] = []
        fields = {"models": 2, "from_scratch": False, **asked}
        goals = Goals.parse(["accuracy", "latency_ms"], ["latency_ms<=1"])
        job = SimpleNamespace(request=SimpleNamespace(**fields), goals=goals, measuring=True)
        job.folder = tmp_path
        names = [name for name in latency_ms if not name.endswith("-scratch")]
        trials = [
            Trial(i, Arch({"x": i}), {"accuracy": 0.9 - 0.01 * i, "latency_ms": 0.5 - 0.01 * i, "latency_ms_p90": 0.5}, "complete")
            for i in range(len(names))
        ]

        def make(job: Any, task: Task, origin: str, predicted: dict[str, Any]) -> dict[str, Any]:
            made.append(task.name)
            record = _record(tmp_path, task.name, origin, accuracy.get(task.name, 0.9), latency_ms[task.name])
            return {**record, "training": {"from": task.start}, "predicted": predicted}

        monkeypatch.setattr(finish, "make", make)
        monkeypatch.setattr(finish, "choose", lambda *arguments, margin: trials)
        monkeypatch.setattr(finish, "_tasks", lambda job, queue, wanted: [Task(name, "supernet") for name in names[: len(queue)]])
        kept, refused = finish.deliver(job, trials)  # type: ignore[arg-type]
        assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(r["name"] for r in kept)
        return kept, refused, made

    return deliver


def test_a_model_that_breaks_a_limit_gives_way_to_the_next_candidate(delivery: Any) -> None:
    kept, refused, made = delivery({"c1": 0.8, "c2": 1.3, "c3": 1.1, "c4": 0.9, "c5": 0.9}, {})
    assert [r["name"] for r in kept] == ["c1", "c4"] and made == ["c1", "c2", "c3", "c4"]  # c5 is not needed
    assert [r["name"] for r in refused] == ["c2", "c3"] and "latency_ms<=1: 1.3 on the exported file" in refused[0]["reason"]


def test_of_both_trainings_the_better_file_on_validation_is_delivered_and_both_are_told(delivery: Any) -> None:
    latency = dict.fromkeys(("c1", "c1-scratch", "c2", "c2-scratch"), 0.5)
    kept, _, made = delivery(latency, {"c1": 0.8, "c1-scratch": 0.85, "c2": 0.9, "c2-scratch": 0.7}, from_scratch=True)
    assert made == ["c1", "c1-scratch", "c2", "c2-scratch"]
    assert [r["name"] for r in kept] == ["c1-scratch", "c2"]
    assert [(r["compared"]["inherited"]["accuracy"], r["compared"]["scratch"]["accuracy"]) for r in kept] == [(0.8, 0.85), (0.9, 0.7)]


@pytest.mark.parametrize("impatient", [False, True])
def test_a_stopped_run_exports_what_is_trained_and_tells_the_rest_later(
    impatient: bool, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for()
    request.save()
    stopped = Job(request, Path(request.out))
    made: list[str] = []

    def make(job: Job, task: Task, *arguments: Any) -> None:
        made.append(task.name)
        if impatient:
            raise KeyboardInterrupt

    def phases(job: Job) -> None:
        job.state.put("tasks", [asdict(Task(name, "supernet")) for name in ("s01", "s02", "s03", "s04")])
        for name in ("s02", "s03", "s04"):
            trained(job, name).write_bytes(b"")
        job.state.put("model:s03", {"name": "s03", "predicted": {"latency_ms": 2.0}})
        raise KeyboardInterrupt

    written: list[list[str]] = []
    monkeypatch.setattr(finish, "make", make)
    monkeypatch.setattr(jobs, "_phases", phases)
    monkeypatch.setattr(conclude, "partial", lambda job: written.append(list(made)))
    with pytest.raises(KeyboardInterrupt):
        jobs._carry_out(stopped)
    assert written == [["s02"] if impatient else ["s02", "s04"]]  # the result is written last, and always


def test_a_model_that_is_there_is_not_made_again_and_keeps_what_was_predicted(tmp_path: Path) -> None:
    job = SimpleNamespace(state={"model:s01": {"name": "s01", "predicted": {"latency_ms": 2.0}}}, folder=tmp_path)
    record = finish.make(job, Task("s01", "supernet"), "search", {"accuracy": 0.8})  # type: ignore[arg-type]
    assert record["predicted"] == {"accuracy": 0.8, "latency_ms": 2.0}


def test_a_resumed_run_trains_side_by_side_what_is_not_made_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from scratch, when the training from inherited weights is made already."""
    state = State(tmp_path / "state.json")
    state.put("tasks", [asdict(Task(name, "supernet")) for name in ("s01", "s02", "s03")])
    state.put("model:s01", {})
    job = SimpleNamespace(request=SimpleNamespace(from_scratch=True), state=state)
    asked: list[Task] = []
    monkeypatch.setattr(finish, "train_all", lambda job, tasks: asked.extend(tasks))
    assert [t.name for t in finish._tasks(job, [], 2)] == ["s01", "s02", "s03"]  # type: ignore[arg-type]
    assert [(t.name, t.start) for t in asked] == [("s02", "supernet"), ("s01-scratch", "scratch"), ("s02-scratch", "scratch")]


# -- the three stages ------------------------------------------------------------------------------------------------------------


def test_screening_looks_at_ten_thousand_and_keeps_the_front(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for(limits=["macs<=500K"])
    request.save()
    job = Job(request, Path(request.out))
    seen: list[np.ndarray] = []
    asked: list[float] = []

    class Guess:
        quality: dict[str, float] = {}

        def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            seen.append(rows)
            guesses = np.random.default_rng(0).random(len(rows))
            return guesses, np.zeros(len(rows))

    def predicted(self: Job, arch: Mapping[str, int]) -> dict[str, float]:
        costs = self.net.costs(arch)
        asked.append(costs["macs"])
        return {**costs, **timings(costs["macs"] / 1e6)}

    monkeypatch.setattr(explore, "_learn", lambda job, accuracy: Guess())
    monkeypatch.setattr(Job, "predicted", predicted)
    front = explore.screen(job, None)  # type: ignore[arg-type]
    rows, calls = np.vstack(seen), len(seen)
    assert 9_900 <= len(rows) == len(np.unique(rows, axis=0)) <= 10_002
    drawn, bred = (np.array(part) <= 500_000 for part in (asked[: len(seen[0])], asked[len(seen[0]) :]))
    assert 4_900 <= len(drawn) <= 5_002 and bred.mean() > min(0.9, 2 * drawn.mean())  # half are bred from those that fit
    assert len(front) == 100 == len(set(front)) and all(arch in job.net.space for arch in front)
    pool = {tuple(row): guess for part in seen for row, guess in zip(part, np.random.default_rng(0).random(len(part)), strict=True)}
    costs = {tuple(row): job.net.costs(arch)["macs"] for row, arch in zip(job.net.space.encode(front), front, strict=True)}
    assert max(costs.values()) <= 500_000  # feasible ones are many, and come first
    best = max(pool[row] for row in costs)
    assert best > 0.99  # of thousands that fit, the most accurate guess is kept
    assert explore.screen(job, None) == front and len(seen) == calls  # type: ignore[arg-type]  # resumed: not screened again


def test_a_supernet_whose_layers_refuse_bf16_is_trained_anew_in_fp32(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for()
    request.save()
    job = Job(request, Path(request.out))
    (job.folder / "checkpoints").mkdir(exist_ok=True)
    job.state.put("sizing", {"threads": 1, "arithmetic": "bf16"})
    first = {name: value.clone() for name, value in job.net.state_dict().items()}
    asked: list[str] = []

    def train(net: Any, *arguments: Any, arithmetic: str, checkpoint: Path, **settings: Any) -> Any:
        asked.append(arithmetic)
        if arithmetic == "bf16":
            next(net.parameters()).data.add_(1.0)
            checkpoint.write_bytes(b"of the other arithmetic")
            raise RuntimeError("expected scalar type Float but found BFloat16")
        assert not checkpoint.is_file()
        assert all(torch.equal(first[name], value) for name, value in net.state_dict().items())
        return SimpleNamespace(steps=1, epochs=1.0)

    monkeypatch.setattr(explore, "train_sandwich", train)
    explore.train_supernet(job)
    assert asked == ["bf16", "fp32"] and job.state["sizing"] == {"threads": 1, "arithmetic": "fp32"}
    monkeypatch.setattr(explore, "train_sandwich", lambda *arguments, **settings: exec("raise RuntimeError('out of memory')"))
    del job.state.facts["supernet"]
    with pytest.raises(RuntimeError, match="out of memory"):
        explore.train_supernet(job)


def test_networks_that_calibrate_the_table_bring_ops_that_it_lacks(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for()
    request.save()
    job = Job(request, Path(request.out))
    known: set[str] = set()

    def calibrate(pairs: list[Any]) -> Any:
        assert {op.signature for graph, _ in pairs for op in graph.ops} <= known and len(pairs) >= 4
        return SimpleNamespace(to_json=dict)

    table = SimpleNamespace(ensure=lambda ops: known.update(op.signature for op in ops), calibrate=calibrate)
    monkeypatch.setattr(Job, "predicted", lambda self, arch: timings(self.net.costs(arch)["macs"]))
    monkeypatch.setattr(Job, "export", lambda self, module, folder, quick: folder / "model.onnx")
    monkeypatch.setattr(Job, "everywhere", lambda self, files, seconds, **settings: [{"": SimpleNamespace(quiet=1.0, p50=1.0)}])
    assert explore._calibrate(job, {"": table}) == {"": {}}  # type: ignore[dict-item]


def test_screening_sees_fewer_where_costs_take_long(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in spaces of cells, where a network is traced for them."""
    request = request_for()
    job = Job(request, Path(request.out))
    job.folder.mkdir(parents=True, exist_ok=True)
    clock = itertools.count()
    monkeypatch.setattr(Job, "predicted", lambda self, arch: {"latency_ms": 1.0})
    monkeypatch.setattr(explore.time, "perf_counter", lambda: float(next(clock)))  # a turn of 20 takes one second
    job.__dict__["plan"] = replace(job.plan, screen=45.0)
    assert explore._affordable(job) == 900
    job.__dict__["plan"] = replace(job.plan, screen=1e6)
    assert explore._affordable(job) == 900  # decided once, so that a resumed run screens the same
    del job.state.facts["screened"]
    assert explore._affordable(job) == 10_000


def test_phases_do_not_overlap_so_that_no_time_is_counted_twice(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for()
    request.save()
    job = Job(request, Path(request.out))
    job.__dict__["plan"] = replace(job.plan, screened=200, front=5)
    open_phases: list[str] = []
    seen: list[str] = []

    @contextmanager
    def timing(self: State, phase: str) -> Iterator[None]:
        assert not open_phases, f"{phase} within {open_phases}"
        open_phases.append(phase)
        seen.append(phase)
        yield
        open_phases.clear()

    def for_seconds(job: Job, what: str, *arguments: Any) -> list[Trial]:
        with job.state.timing(what):
            return [Trial(i, job.net.space.at(i), {"accuracy": 0.1 * i}) for i in range(8)]

    guess = SimpleNamespace(quality={}, predict=lambda rows: (np.zeros(len(rows)), np.zeros(len(rows))))
    monkeypatch.setattr(State, "timing", timing)
    monkeypatch.setattr(explore, "for_seconds", for_seconds)
    monkeypatch.setattr(explore, "fit", lambda *arguments, **settings: guess)
    monkeypatch.setattr(Job, "predicted", lambda self, arch: timings(self.net.costs(arch)["macs"]))
    assert len(explore.screen(job, None)) == 5 and set(seen) == {"sample", "screen"}  # type: ignore[arg-type]


def test_a_space_of_one_network_needs_no_predictor(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--space mobilenet-v2`: there is too little to learn from, and nothing to screen."""
    request = request_for(space="mobilenet-v2")
    request.save()
    job = Job(request, Path(request.out))
    monkeypatch.setattr(explore, "_learn", lambda job, accuracy: pytest.fail("nothing to learn"))
    assert explore.screen(job, None) == [job.net.largest] == list(job.net.space)  # type: ignore[arg-type]


@pytest.mark.parametrize("measured", [True, False])
def test_a_candidates_latency_is_the_clocks_wherever_there_is_one(measured: bool, tmp_path: Path) -> None:
    exported: list[Path] = []

    def export(module: Any, folder: Path, *, quick: bool) -> Path:
        exported.append(folder / "model.onnx")
        return exported[-1]

    job = SimpleNamespace(
        measuring=measured, derive=dict, goals=Goals.parse(["accuracy", "latency_ms"]), export=export,
        net=SimpleNamespace(extract=lambda arch: SimpleNamespace(eval=lambda: None)),
        everywhere=lambda files, seconds: [{"": _clock(0.25)}],
        file_figures=lambda file: {"file_bytes": 7.0}, predicted=lambda arch: {"params": 3.0, **timings(9.0)},
        energies=lambda *a: {}, dynamic_mj=lambda arch: None,
    )  # fmt: skip
    found = explore.candidate(job, lambda arch: {"accuracy": 0.5})(Arch({"x": 0}))  # type: ignore[arg-type]
    assert found["accuracy"] == 0.5 and found["params"] == 3.0 and bool(exported) == measured
    assert found["latency_ms"] == (0.25 if measured else 9.0) and ("file_bytes" in found) == measured


def test_slices_of_time_and_interruptions_change_no_proposal(tmp_path: Path) -> None:
    """The job asks for a generation at a time, as long as its time lasts; a resumed one goes on in the same sequence."""
    space, goals = Space({f"c{i}": range(4) for i in range(6)}), Goals.parse(["accuracy", "latency_ms"])

    def evaluate(arch: Arch) -> dict[str, float]:
        return {"accuracy": 1 / (1 + arch["c0"] + arch["c1"]), **timings(1.0 + sum(arch.values()))}

    left = iter(range(33))

    def interrupted(arch: Arch) -> dict[str, float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return evaluate(arch)

    def sliced(function: Callable[[Arch], dict[str, float]]) -> list[Trial]:
        request = SearchRequest(data="digits", seed=3)
        job = Job(request, tmp_path)
        job.__dict__["net"] = SimpleNamespace(space=space)
        with Store(tmp_path / "h.sqlite") as store:
            searcher = make_searcher("nsga2", space, goals, population=10)
            return explore.for_seconds(job, "explore", searcher, function, store, 1e9, (10, 70), 10)

    with pytest.raises(KeyboardInterrupt):
        sliced(interrupted)
    found = sliced(evaluate)
    searcher = make_searcher("nsga2", space, goals, population=10)
    whole = run.search(searcher, evaluate, goals=goals, space=space, budget=70, batch=10, seed=3)
    assert [(t.number, t.arch) for t in found] == [(t.number, t.arch) for t in whole.trials]
