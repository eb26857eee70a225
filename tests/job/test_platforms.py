"""Several devices in one search, composite costs and the figure of merit: predicted, measured, promised and told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor import cli
from sartor import job as jobs
from sartor.errors import UserError
from sartor.goals import Goals, Limit
from sartor.hardware.devices import find
from sartor.hardware.graph import trace
from sartor.hardware.modelled import ModelledDevice
from sartor.hardware.platforms import Platform
from sartor.job.context import Job
from sartor.job.derived import Derived
from sartor.job.device_space import check_metrics, feasible, fit_device, notes
from sartor.job.further import timings
from sartor.job.limits import Unattainable, attainable, check_attainable
from sartor.job.method_settings import additive
from sartor.predictors.latency.composite import Composite
from sartor.predictors.latency.features import moved_values
from sartor.request import SearchRequest

from .test_parts import _Memory

Request = Callable[..., SearchRequest]
_MS = st.floats(1e-3, 1e3)


def _job(request: SearchRequest) -> Job:
    job = Job(request, Path("unused"))
    job.__dict__["state"] = _Memory()
    return job


def _modelled(request_for: Request, **fields: object) -> Job:
    """A run of which every device is modelled, so that nothing need be measured."""
    return _job(request_for(**{"device": "raspberry-pi-4", "space": "mobile", **fields}))


# -- what follows from other figures -----------------------------------------------------------------------------------------


@given(_MS, _MS, _MS, st.floats(0, 10), _MS, _MS)
def test_weighted_and_worst_latency(own: float, there: float, quiet: float, weight: float, limit: float, other: float) -> None:
    metrics = {**timings(own), **timings(there, "pi"), "latency_ms_quiet": quiet}
    found = Derived({"latency_ms": 1.0, "latency_ms@pi": weight}, {"latency_ms": limit, "latency_ms@pi": other})(metrics)
    assert found["weighted_latency_ms"] == pytest.approx(own + weight * there)
    assert found["weighted_latency_ms_quiet"] == pytest.approx(quiet + weight * there)  # of a modelled device there is one figure
    assert found["worst_latency"] == pytest.approx(max(own / limit, there / other))
    keeps = own <= limit and there <= other
    goals = Goals(("worst_latency",), (Limit("latency_ms", limit), Limit("latency_ms@pi", other)))
    assert goals.feasible(found) == keeps == (found["worst_latency"] <= 1)
    assert goals.values(found)[0] == found["worst_latency_quiet"]


@given(st.floats(-0.1, 1.0), _MS, _MS)
def test_composite_cost_and_merit(accuracy: float, energy: float, latency: float) -> None:
    derived = Derived({}, {}, Composite.relative(1, 2, 3, flops=2e6, moved_bytes=1e5, latency_ms=10), (2.0, 1.0, 0.5))
    found = derived({"accuracy": accuracy, "energy_mj": energy, "macs": 1e6, "moved_bytes": 5e4, **timings(latency)})
    assert found["composite_cost"] == pytest.approx(1 + 1 + 3 * latency / 10)
    assert found["merit"] == pytest.approx(max(0, accuracy) ** 2 / (energy * math.sqrt(latency)))
    assert derived({**found, "accuracy": 0.5})["merit"] == pytest.approx(0.25 / (energy * math.sqrt(latency)))  # as after training
    assert not {"composite_cost", "merit"} & derived(timings(latency)).keys()  # nothing is made up where a part is missing


def test_a_latency_that_is_missing_hides_behind_no_other() -> None:
    found = Derived({"latency_ms": 1.0, "latency_ms@pi": 1.0}, {"latency_ms": 1.0, "latency_ms@pi": 1.0})(timings(0.5))
    assert not {"worst_latency", "weighted_latency_ms"} & found.keys()


# -- a run with several devices ------------------------------------------------------------------------------------------------


def test_each_devices_latency_is_predicted_and_is_that_of_its_roofline(request_for: Request) -> None:
    job = _modelled(request_for, platforms=["pixel-3:weight=2,limit=30ms"], limits=["latency_ms<=20"])
    assert Limit("latency_ms@pixel-3", 30.0) in job.goals.limits
    rng = np.random.default_rng(0)
    for arch in (job.net.space.sample(rng) for _ in range(5)):
        found = job.predicted(arch)
        graph = trace(job.net.extract(arch).eval(), job.data.input_shape)
        for name, key in (("raspberry-pi-4", "latency_ms"), ("pixel-3", "latency_ms@pixel-3")):
            roofline = ModelledDevice(find(name)).roofline()
            expected = sum(map(roofline.price, graph)) + roofline.session_ms(job.data.input_shape)
            assert found[key] == pytest.approx(expected) and found[key.replace("ms", "ms_p90")] == found[key]
        assert found["weighted_latency_ms"] == pytest.approx(found["latency_ms"] + 2 * found["latency_ms@pixel-3"])
        assert found["worst_latency"] == pytest.approx(max(found["latency_ms"] / 20, found["latency_ms@pixel-3"] / 30))
    assert any("Snapdragon" in line and "No latency" in line for line in notes(job))


def test_a_gradient_method_is_pressed_for_the_same_sums(request_for: Request) -> None:
    job = _modelled(request_for, platforms=["pixel-3:weight=2"], composite=[1.0, 0.5, 2.0])
    arch = job.net.space.sample(np.random.default_rng(3))
    found = job.predicted(arch)
    ops = [op for factor in job.factors for op in factor.at(tuple(arch[name] for name in factor.scope))]
    sums = {name: sum(map(price, ops)) + constant for name, price, constant in additive(job)}
    assert sums.keys() == {"latency_ms", "latency_ms@pixel-3", "weighted_latency_ms", "composite_cost"}
    assert all(found[name] == pytest.approx(value) for name, value in sums.items())


def test_the_largest_network_costs_the_sum_of_the_weights_and_a_resumed_run_compares_with_the_same(request_for: Request) -> None:
    job = _modelled(request_for, objectives=["accuracy", "composite_cost"], composite=[1.0, 0.5, 2.0])
    fit_device(job)
    largest = job.net.extract(job.net.largest).eval()
    graph = trace(largest, job.data.input_shape)
    assert job.state["composite"]["moved_bytes"] == sum(map(moved_values, graph)) == job.graph_figures(largest)["moved_bytes"]
    assert job.predicted(job.net.largest)["composite_cost"] == pytest.approx(3.5, rel=0.02)  # the file's graph may have an op more
    again = _job(job.request)
    again.__dict__["state"] = {**job.state, "composite": {**job.state["composite"], "latency_ms": 1e9}}
    assert again.composite is not None and again.composite.gamma == 2.0 / 1e9


def test_limits_on_several_devices_are_refused_early_with_the_attainable_figure(request_for: Request) -> None:
    asked = {"platforms": ["pixel-3:limit=1us"], "limits": ["latency_ms<=100"]}
    for fields, named in (
        (asked, "latency_ms@pixel-3"),
        ({"platforms": ["pixel-3:limit=100ms"], "limits": ["latency_ms<=100", "worst_latency<=0.001%"]}, "worst_latency"),
        ({"platforms": ["pixel-3"], "limits": ["weighted_latency_ms<=1us"]}, "weighted_latency_ms"),
        ({"limits": ["composite_cost<=0.0001"]}, "composite_cost"),
        ({"limits": ["merit>=1000000000"]}, "merit"),
    ):
        job = _modelled(request_for, **fields)
        fit_device(job)
        with pytest.raises(Unattainable, match=rf"out of reach.*{named} = ") as caught:
            check_attainable(job)
        limit = next(one for one in job.goals.limits if one.metric == named)
        assert f"{attainable(job, limit):.4g}" in str(caught.value)
    check_attainable(_modelled(request_for, platforms=["pixel-3:limit=100ms"], limits=["weighted_latency_ms<=200"]))


def test_a_microcontroller_beside_the_device_brings_its_memory_and_its_rules(request_for: Request) -> None:
    job = _modelled(request_for, space="catalogue", platforms=["stm32f746:limit=10s"])
    spec = find("stm32f746")
    assert {Limit("peak_bytes", float(spec.sram_bytes or 0)), Limit("flash_bytes", float(spec.flash_bytes or 0))} <= set(job.goals.limits)
    fit_device(job)
    arch = job.net.space.sample(np.random.default_rng(0))
    graph = trace(job.net.extract(arch).eval(), job.data.input_shape)
    assert all(spec.objection(op) is None for op in graph)
    assert feasible(job)(job.net, arch)
    strict = _modelled(request_for, space="catalogue", platforms=["stm32f746:limit=1us"])
    assert not feasible(strict)(strict.net, arch)


def test_what_nothing_here_can_tell_is_refused(request_for: Request) -> None:
    with pytest.raises(UserError, match=r"merit: no energy is known of this machine"):
        check_metrics(_job(request_for(objectives=["accuracy", "merit"])))
    with pytest.raises(UserError, match="expected precision"):
        check_metrics(_job(request_for(platforms=["edge-tpu"], precision="fp32")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--platform nowhere", ["platform", "'nowhere'"]),
        ("--platform host", ["the device itself"]),
        ("--platform pixel-3 --platform pixel-3:weight=2", ["given twice"]),
        ("--platform stm32f746 --threads 2", ["threads", "stm32f746"]),
        ("--platform pixel-3:limit=0", ["limit above 0"]),
        ("--objective weighted_latency_ms", ["--platform"]),
        ("--objective worst_latency --platform pixel-3 --limit latency=3", ["pixel-3 has none", "limit=MS"]),
        ("--objective worst_latency --platform pixel-3:limit=3", ["host has none", "latency_ms<=MS"]),
        ("--limit latency@pi=3", ["latency_ms@pi", "--platform pi"]),
        ("--limit latency@host=3", ["latency_ms@host", "own device"]),
        ("--limit peak@pixel-3=3", ["latency only"]),
        ("--platform pixel-3:limit=3 --limit latency@pixel-3=2", ["given twice"]),
        ("--composite 1,2", ["composite", "three"]),
        ("--composite=-1,1,1", ["composite", "at least 0"]),
        ("--merit 0,0,0", ["merit", "not all of them 0"]),
        ("--merit 1,x,1", ["--merit", "'x'"]),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "digits", "--out", str(tmp_path / "run"), *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_search_for_this_machine_and_a_described_one(request_for: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured here, modelled there: both are promised, judged on the exported files, and told for what they are."""
    request = request_for(
        platforms=["raspberry-pi-4:weight=2,limit=2ms"], limits=["latency_ms<=2"], baselines=False,
        objectives=["accuracy", "weighted_latency_ms"], composite=[1.0, 1.0, 1.0],
    )  # fmt: skip
    result = jobs.search(request)
    run = tmp_path / "run"
    assert result["status"] == "complete" and result["models"]
    (there,) = result["platforms"]
    assert there["name"] == "raspberry-pi-4" and there["measured"] is False and (there["weight"], there["limit_ms"]) == (2.0, 2.0)
    for record in result["models"]:
        metrics, platform = record["metrics"], record["platforms"]["raspberry-pi-4"]
        assert platform["measured"] is False and platform["runs"] == 0 < record["latency"]["runs"]
        modelled = ModelledDevice(find("raspberry-pi-4")).measure_many([run / record["file"]])[0].p50
        assert metrics["latency_ms@raspberry-pi-4"] == platform["p50"] == pytest.approx(modelled) and modelled <= 2
        assert metrics["weighted_latency_ms"] == pytest.approx(metrics["latency_ms"] + 2 * modelled)
        assert 0 < metrics["composite_cost"] < 3.5 and "latency_ms@raspberry-pi-4" in record["predicted"]
        card = (run / record["file"]).with_name("card.md").read_text()
        assert "Latency on raspberry-pi-4" in card and "not measured" in card and "latency_ms@raspberry-pi-4<=2" in card
    page = (run / "report.html").read_text()
    assert "Further device raspberry-pi-4" in page and "Latency on raspberry-pi-4" in page and "modelled, not measured" in page
    before = (run / "history.sqlite").stat().st_mtime_ns
    assert cli.main(["resume", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [r["metrics"] for r in again["models"]] == [r["metrics"] for r in result["models"]] and again["platforms"] == result["platforms"]
    assert (run / "history.sqlite").stat().st_mtime_ns == before
    assert cli.main(["report", str(run)]) == 0
    shown = capsys.readouterr().out
    assert (
        "raspberry-pi-4 ms (modelled)" in shown and "weighted ms" in shown and "at most 2.00 ms, modelled" in shown.replace("\u00a0", " ")
    )


def test_a_delivered_model_that_breaks_a_platforms_limit_is_refused() -> None:
    from sartor.deploy.verify import broken

    limit = Platform("pixel-3", limit_ms=3.0).limit
    assert limit is not None
    (found,) = broken([limit], {"latency_ms": 1.0, "latency_ms@pixel-3": 4.0})
    assert "latency_ms@pixel-3<=3" in str(found) and "33.3%" in str(found)
    assert broken([limit], {"latency_ms": 9.0, "latency_ms@pixel-3": 3.0}) == []
