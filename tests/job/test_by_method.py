"""A search whose strategy is a method with weights of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sartor import job
from sartor.arch import Arch
from sartor.errors import UserError
from sartor.goals import Goals, parse_limit
from sartor.job import by_method
from sartor.job.context import Job
from sartor.methods import METHODS
from sartor.policies import Softmax
from sartor.recipes.trajectory import Snapshot
from sartor.request import SearchRequest
from sartor.spaces.nasbench201 import NasBench201
from sartor.store import Store
from sartor.trial import Trial


def snapshot(epoch: int, arch: Arch, policy: Softmax) -> Snapshot:
    strengths = {name: row for name, row in policy.strengths().items() if not isinstance(row, int)}
    return Snapshot(epoch, 10 * epoch, epoch / 3, arch, strengths, 1.0, 0.5, 1.1, 0.5)


def of_space(net: Any) -> Any:
    """The part of a job that choosing candidates needs."""
    return SimpleNamespace(net=net, canonical=net.space.canonical, request=SimpleNamespace(seed=0, strategy="darts"))


def test_what_was_derived_comes_first_then_draws() -> None:
    net = NasBench201((3, 8, 8), 4, channels=4, cells=1)
    policy, rng = Softmax(net.space, scale=2.0), np.random.default_rng(0)
    archs = [net.space.sample(rng) for _ in range(3)]
    trajectory = tuple(snapshot(n + 1, arch, policy) for n, arch in enumerate([archs[0], archs[1], archs[1]]))
    result = SimpleNamespace(arch=archs[2], trajectory=trajectory, policy=policy)
    proposals = by_method.candidates(of_space(net), result)
    assert [p.arch for p in proposals[:3]] == [archs[2], archs[1], archs[0]]
    assert [p.meta.get("epoch") for p in proposals[:3]] == [None, 3, 1]
    assert {p.meta["origin"] for p in proposals[3:]} == {"drawn"}
    assert len({p.arch for p in proposals}) == len(proposals)
    listed = by_method.Listed(proposals)
    first = listed.ask([], [], 2, rng)
    assert first == proposals[:2] and listed.ask([], first, 1, rng) == [proposals[2]]


def test_evaluated_sub_nets_within_the_limits_come_first() -> None:
    net = NasBench201((3, 8, 8), 4, channels=4, cells=1)
    rng = np.random.default_rng(0)
    light, between, heavy = sorted((net.space.sample(rng) for _ in range(3)), key=lambda a: net.costs(a)["params"])
    run = of_space(net)
    run.predicted, run.goals = net.costs, Goals(("accuracy",), (parse_limit(f"params<={net.costs(between)['params']}"),))
    trials = [Trial(n, arch, {"accuracy": a}) for n, (arch, a) in enumerate([(heavy, 0.9), (light, 0.5), (between, 0.7)])]
    proposals = by_method.candidates(run, SimpleNamespace(arch=light, trials=trials))
    assert [p.arch for p in proposals] == [light, between, heavy] and proposals[1].meta["origin"] == "evaluated"


def test_held_choices_are_tried_with_their_other_options() -> None:
    from sartor.methods.parts import relaxed_space
    from sartor.spaces import build

    net = build("mobile", (1, 16, 16), 4)
    space, notes = relaxed_space(net)
    policy = Softmax(space)
    result = SimpleNamespace(arch=policy.mode(), trajectory=(), policy=policy)
    proposals = by_method.candidates(of_space(net), result)
    resized = {p.meta["choice"] for p in proposals if p.meta["origin"] == "resized"}
    assert len(resized) == len(notes) and all(p.arch in net.space for p in proposals)


def test_trajectory_is_written_with_labels(tmp_path: Path) -> None:
    net = NasBench201((3, 8, 8), 4, channels=4, cells=1)
    policy = Softmax(net.space)
    arch = net.space.sample(np.random.default_rng(0))
    run = SimpleNamespace(net=net, folder=tmp_path, request=SimpleNamespace(strategy="darts"))
    by_method.write_trajectory(run, [snapshot(1, arch, policy)])  # type: ignore[arg-type]  # the part of a job that it needs
    (epoch,) = json.loads((tmp_path / by_method.TRAJECTORY).read_text())["epochs"]
    assert epoch["arch"] == net.space.labels(arch)
    assert set(epoch["strengths"]["edge01"]) == set(net.space.choices["edge01"])


def test_every_method_is_a_strategy_and_unknown_ones_are_not(request_for: Callable[..., SearchRequest]) -> None:
    for name in METHODS:
        assert request_for(strategy=name).strategy == name
    with pytest.raises(UserError, match="pc-darts"):
        request_for(strategy="pc-dart")


def test_a_run_keeps_the_sub_nets_that_its_method_evaluates(tmp_path: Path) -> None:
    net = NasBench201((1, 8, 8), 3, channels=4, cells=1)
    training = tmp_path / "checkpoints" / "search.safetensors"
    training.parent.mkdir()
    training.touch()

    def evaluated(strategy: str = "spos", **state: Any) -> Any:
        return by_method._evaluated(
            SimpleNamespace(net=net, folder=tmp_path, state=state, request=SimpleNamespace(seed=3, strategy=strategy))  # type: ignore[arg-type]
        )

    trials = [Trial(n, net.space.at(n), {"accuracy": 0.1 * n}, seconds=1.0) for n in range(3)]
    with evaluated() as known:
        assert known["history"] == []
        for trial in trials:
            known["on_trial"](trial)
    with evaluated() as known:
        assert known["history"] == trials and "spent" not in known  # it goes on
    with evaluated(supernet={"steps": 9}) as known:
        assert known["history"] == trials and known["spent"] == np.inf  # it was over, and stays so
    with evaluated("darts") as known:
        assert known == {}
    training.unlink()
    with evaluated() as known:
        assert known["history"] == []  # another supernet is trained


@pytest.mark.slow
def test_limits_are_kept_where_costs_cannot_be_tabulated(request_for: Callable[..., SearchRequest]) -> None:
    limits = ["latency_ms<=2", "params<=200K"]
    result = job.search(
        request_for(space="nasnet", strategy="gdas", limits=limits, baselines=False, models=1, limit_train=300, minutes=0.05)
    )
    assert result["status"] == "complete" and all(record["metrics"]["params"] <= 200_000 for record in result["models"])
    assert any("expected latency_ms is learned from 1500 architectures" in note for note in result["notes"])


@pytest.mark.slow
def test_a_gradient_method_searches_a_whole_job_within_a_limit(request_for: Callable[..., SearchRequest], tmp_path: Path) -> None:
    request = request_for(space="nasbench201", strategy="pc-darts", limits=["latency_ms<=2"], baselines=False, guard=True)
    result = job.search(request)
    run = tmp_path / "run"
    assert result["status"] == "complete" and result["models"]
    assert all(record["metrics"]["latency_ms"] <= 2 for record in result["models"])
    assert {record["training"]["from"] for record in result["models"]} == {"scratch"}  # partial channels have no weights to inherit
    begun = Job(SearchRequest.load(run), run)
    with Store(run / "history.sqlite") as store:
        trials = list(store.trials(begun.net.space))
    assert trials and any(t.meta.get("origin") == "derived" for t in trials)
    epochs = json.loads((run / by_method.TRAJECTORY).read_text())["epochs"]
    derived = {tuple(sorted(e["arch"].items())) for e in epochs}
    assert derived & {tuple(sorted(begun.net.space.labels(t.arch).items())) for t in trials}
    assert (run / "plots" / "trajectory.png").is_file()
    assert "What the method learned" in (run / "report.html").read_text()
    again = job.resume(run)
    assert [r["name"] for r in again["models"]] == [r["name"] for r in result["models"]]
    assert torch.get_num_threads() >= 1
