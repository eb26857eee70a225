"""What a run tells its method: limits reach every one of them, the doctor watches, and its findings are reported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.methods.small import blobs, cell_net, elastic_net

from sartor.errors import UserError
from sartor.goals import Goals, parse_limit
from sartor.job import method_settings
from sartor.job.explore import save_weights
from sartor.job.method_settings import Costs, doctor_notes, doctor_of, predicted_limits, rank_notes, refuse_unfit, search_method
from sartor.layers.partial import fixed_norms, partial_channels
from sartor.methods import BY_EPOCH, GRADIENT, METHODS
from sartor.recipes.bilevel import WEIGHTS
from sartor.request import SearchRequest


def job_of(net: Any, strategy: str, limit: str = "", **request: Any) -> Any:
    """The part of a job that a method's settings need; a latency is a price for each multiply-accumulate."""
    price: Callable[[Any], float] = lambda op: 1e-6 * op.macs  # noqa: E731

    def predicted(arch: Any) -> dict[str, float]:
        costs = net.costs(arch)
        return {**costs, "latency_ms": 1e-6 * costs["macs"]}

    asked = {"strategy": strategy, "guard": False, "check_ranks": 0, "seed": 0, "models": 2, "weights": None, **request}
    return SimpleNamespace(
        net=net, data=blobs(), request=SimpleNamespace(**asked), goals=Goals(("accuracy",), (parse_limit(limit),) if limit else ()),
        predicted=predicted, canonical=net.space.canonical, factors=net.factors(), price=price, further=[], composite=None, policy=None,
        table=SimpleNamespace(session_ms=lambda shape: 0.0), told=[], plan=SimpleNamespace(finish=0.2),
    )  # fmt: skip


def heard(job: Any) -> Any:
    job.progress = lambda what, done, total: job.told.append(what)
    return job


@pytest.mark.parametrize("name", ["gdas", "bignas"])
def test_a_method_begins_with_the_weights_that_a_run_is_given(name: str, tmp_path: Path) -> None:
    own, given = (copy.deepcopy(net) for net in (elastic_net(), elastic_net(1)))
    save_weights(given, tmp_path / "given.safetensors")
    job = job_of(own, name, weights=str(tmp_path / "given.safetensors"))
    settings: dict[str, Any] = {"steps": 1, "batch": 16, "seed": 0}
    settings |= {"evaluations": 1, "lr": 1e-9} if name == "bignas" else {"weights": replace(WEIGHTS, lr=1e-9)}
    result, notes = search_method(job, settings, None)
    for key, value in given.named_parameters():
        assert torch.allclose(dict(result.net.named_parameters())[key], value, atol=1e-5), key
    assert f"began as those of given.safetensors: {len(given.state_dict())} tensors" in notes[0]
    other = job_of(copy.deepcopy(cell_net()), name, weights=str(tmp_path / "given.safetensors"))
    assert "have none there" in search_method(other, settings, None)[1][0]


def test_what_begins_anew_in_spite_of_given_weights_is_said(tmp_path: Path) -> None:
    save_weights(cell_net(1), tmp_path / "given.safetensors")
    job = job_of(copy.deepcopy(cell_net()), "pc-darts", weights=str(tmp_path / "given.safetensors"))
    result, (note, *_) = search_method(job, {"steps": 1, "batch": 16, "seed": 0, "weights": replace(WEIGHTS, lr=1e-9)}, None)
    own, given = dict(result.net.named_parameters()), dict(cell_net(1).named_parameters())
    kept = {name: torch.allclose(own[name], value, atol=1e-5) for name, value in given.items() if name in own}
    assert any(kept.values()) and len(given) - sum(kept.values()) > 10  # the stem and what lies between the cells is kept
    assert note.endswith("operations on part of the channels begin anew")


#: One of those that take limits alike is enough for the quick suite.
ALIKE = GRADIENT - {"darts", "p-darts"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in sorted(METHODS)])
def test_a_limit_of_the_run_is_a_limit_on_what_every_method_finds(name: str) -> None:
    net, tight = (elastic_net(), 0.5) if name in ("ofa", "bignas") else (cell_net(), 0.1)  # of the way from smallest to largest
    low, high = (net.costs(arch)["params"] for arch in (net.smallest, net.largest))
    bound = low + tight * (high - low)
    job = job_of(net, name, f"params<={bound:.0f}")
    settings = {"steps": 12 if name == "ofa" else 4, "batch": 16, "seed": 0}
    if name in ("ofa", "bignas", "spos"):
        settings["evaluations"] = 20
    result, missed = search_method(job, settings, None)
    assert net.costs(result.arch)["params"] <= bound < high and not missed
    for snapshot in getattr(result, "trajectory", ()):
        assert net.costs(snapshot.arch)["params"] <= bound
    if name == "spos":
        assert all(trial.metrics["params"] <= bound for trial in result.trials)


@pytest.mark.parametrize("name", ["darts", "enas", "p-darts"])
def test_a_limit_that_no_loss_can_press_for_holds_for_what_is_derived(name: str) -> None:
    """Peak memory is no sum over operations; microcontrollers bring such limits by themselves."""
    net = elastic_net()
    bound = 1.1 * net.costs(net.smallest)["peak_bytes"]
    assert bound < net.costs(net.largest)["peak_bytes"]
    result, (note,) = search_method(job_of(net, name, f"peak_bytes<={bound:.0f}"), {"steps": 3, "batch": 16}, None)
    assert all(net.costs(arch)["peak_bytes"] <= bound for arch in (result.arch, *(s.arch for s in result.trajectory)))
    assert note.endswith("what is derived keeps them all the same")


def test_limits_that_only_the_trained_network_can_be_judged_by_are_named() -> None:
    result, (note,) = search_method(job_of(cell_net(), "darts", "accuracy>=0.9"), {"steps": 2, "batch": 16}, None)
    assert result.arch in cell_net().space and note.endswith("they are judged afterwards")


@pytest.mark.parametrize("name", ["fbnet", "proxylessnas"])
@pytest.mark.parametrize("limit", ["", "latency_ms<=1"])
def test_a_latency_that_the_run_is_about_is_in_the_method_s_own_loss(monkeypatch: pytest.MonkeyPatch, name: str, limit: str) -> None:
    seen: list[Any] = []
    own = METHODS[name]
    monkeypatch.setitem(METHODS, name, lambda *args, **given: (seen.append(given.get("cost")), own(*args, **given))[1])
    job = job_of(cell_net(), name, limit)
    job.goals = Goals(("accuracy", "latency_ms"), job.goals.limits)
    result, _ = search_method(job, {"steps": 3, "batch": 16, "weights_only": 0.0}, None)
    assert [cost.name for cost in seen] == ["latency_ms"] and not any("no latency was given" in note for note in result.notes)
    arch = job.net.largest
    assert float(seen[0](arch)) == pytest.approx(job.predicted(arch)["latency_ms"])


def test_costs_are_made_once_and_only_when_asked_for() -> None:
    job = job_of(cell_net(), "darts", "latency_ms<=1")
    costs = Costs(job)
    assert costs["params"] is costs["params"] and "peak_bytes" not in costs and costs.asked == {"accuracy", "latency_ms"}
    limits, figures = predicted_limits(job)
    assert [limit.key for limit in limits] == ["latency_ms"]
    assert figures[0](job.net.largest) == job.predicted(job.net.largest)["latency_ms"]


@pytest.mark.parametrize("name", ["darts", "p-darts", "enas"])
def test_the_doctor_watches_the_search_and_knows_what_is_derived(name: str) -> None:
    job = heard(job_of(cell_net(), name))
    doctor = doctor_of(job)
    assert doctor is not None
    result, _ = search_method(job, {"epochs": 3, "batch": 16, "weights_only": 0.0}, doctor)
    assert [s.epoch for s in doctor.trajectory] == [s.epoch for s in result.trajectory]
    assert all(0 <= s.metrics["accuracy"] <= 1 for s in result.trajectory)
    notes = doctor_notes(job, doctor, result.trajectory)
    assert notes and len(job.told) == len(doctor.findings)
    assert all(any(f"doctor, {finding.kind}:" in told for told in job.told) for finding in doctor.findings)


def test_what_passed_before_the_end_is_said_to_have_passed() -> None:
    from tests.recipes.test_doctor import COLLAPSING, HEALTHY, SPACE

    job = heard(SimpleNamespace(net=SimpleNamespace(space=SPACE), request=SimpleNamespace(strategy="darts"), told=[]))
    doctor = doctor_of(job)
    assert doctor is not None
    for snapshot in COLLAPSING:
        doctor(snapshot)
    lasting = doctor_notes(job, doctor, COLLAPSING)
    assert len(lasting) >= 1 and not any("had passed" in note for note in lasting)
    assert all(note.endswith("It had passed by the end of the search.") for note in doctor_notes(job, doctor, HEALTHY))
    assert doctor_of(job_of(cell_net(), "spos")) is None


def test_ranks_are_checked_when_asked_for() -> None:
    job = heard(job_of(cell_net(), "gdas", check_ranks=3))
    assert rank_notes(job_of(cell_net(), "gdas"), cell_net()) == []
    (told, *_) = rank_notes(job, job.net)
    assert "accuracy of 3 networks" in told and "Kendall's tau" in told and job.told
    partial = fixed_norms(partial_channels(cell_net(), 4))
    (told,) = rank_notes(job, partial)
    assert told.startswith("ranks were not checked: ")
    few = (
        cell_net()
        .space.restrict({name: ["nor_conv_3x3"] for name in list(cell_net().space.choices)[1:]})
        .restrict({"edge01": ["skip_connect", "nor_conv_3x3"]})
    )
    narrow = copy.copy(job.net)
    narrow.space = few
    assert rank_notes(job, narrow) == ["ranks were not checked: ranks need at least 3 architectures, got 2."]


def test_a_space_that_a_method_cannot_search_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UserError, match="needs choices named"):
        refuse_unfit(job_of(cell_net(), "ofa"))
    refuse_unfit(job_of(elastic_net(), "ofa"))
    refuse_unfit(job_of(cell_net(), "darts"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strategy": "nsga2", "guard": True}, "guard: it ends methods that search by epochs, and nsga2 does not"),
        ({"strategy": "spos", "guard": True}, "spos does not"),
        ({"strategy": "darts", "check_ranks": 2}, "check_ranks: expected 3 or more networks"),
        ({"strategy": "nsga2", "check_ranks": 3}, "check_ranks: expected a method that shares weights"),
        ({"strategy": "darts", "check_ranks": -1}, "check_ranks"),
    ],
)
def test_what_cannot_act_is_refused(request_for: Callable[..., SearchRequest], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        request_for(**fields)
    for name in BY_EPOCH:
        assert request_for(strategy=name, guard=True).guard


def test_every_method_by_epoch_takes_the_doctor_and_a_stop(tmp_path: Path) -> None:
    """The set is what the run relies on: a method that is missing from it would run without doctor or guard."""
    from sartor.recipes.trajectory import Verdict

    for name in METHODS:
        if name in BY_EPOCH:
            job = heard(job_of(cell_net(), name))
            stops = [lambda epochs: Verdict("enough", len(epochs))]
            result, _ = search_method(job, {"epochs": 6, "batch": 32, "weights_only": 0.0, "stops": stops}, method_settings.doctor_of(job))
            assert result.stopped is not None and len(result.trajectory) == 1, name
