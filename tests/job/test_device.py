"""A search for a microcontroller that is not here: the space is chosen and restricted, memory planned, and nothing claims a measurement."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sartor import job as jobs
from sartor.errors import UserError
from sartor.goals import Limit
from sartor.hardware import trace, weight_bytes
from sartor.hardware.arena import place
from sartor.job.context import Job
from sartor.job.device_space import check_metrics, feasible, fit_device, notes
from sartor.job.ladder import ladder_of, rung
from sartor.request import SearchRequest

from .test_parts import _Memory

Request = Callable[..., SearchRequest]


def _job(request: SearchRequest) -> Job:
    job = Job(request, Path("unused"))
    job.__dict__["state"] = _Memory()
    return job


def test_a_microcontroller_gets_its_own_space_and_limits(request_for: Request) -> None:
    job = _job(request_for(device="stm32f746", limits=["peak_bytes<=100KB"]))
    assert job.request.space == "mcu" and job.spec is not None and not job.target.measured
    assert set(job.goals.limits) == {Limit("peak_bytes", 100 * 1024), Limit("flash_bytes", float(job.spec.flash_bytes or 0))}
    assert request_for(device="stm32f746", space="catalogue").space == "catalogue"
    assert request_for().space == "mobile"
    assert _job(request_for()).goals.limits == ()


def test_the_space_is_chosen_within_the_limits_and_remembered(request_for: Request) -> None:
    job = _job(request_for(device="stm32f746", limits=["peak_bytes<=3KB", "flash_bytes<=12KB"]))
    fit_device(job)
    chosen = job.state["space"]
    assert len(chosen["rows"]) >= 6 and chosen["multiplier"] < 1.5
    assert job.data.input_shape == (1, chosen["size"], chosen["size"]) and job.net.spec.name == "mcu"
    keeps = feasible(job)
    draws = [job.net.space.sample(np.random.default_rng(i)) for i in range(40)]
    shares = [keeps(job.net, arch) for arch in draws]
    assert any(shares) and not all(shares)
    for arch, kept in zip(draws[:6], shares, strict=False):
        figures = job.graph_figures(job.net.extract(arch))
        predicted = job.predicted(arch)
        assert predicted["flash_bytes"] == figures["flash_bytes"] and predicted["macs"] == figures["macs"]
        assert predicted["peak_bytes"] <= figures["peak_bytes"] <= 1.1 * predicted["peak_bytes"] + 64  # placed, with alignment
        assert kept == (predicted["peak_bytes"] <= 3 * 1024 and predicted["flash_bytes"] <= 12 * 1024)
    said = " ".join(notes(job))
    assert "TinyNAS looked at" in said and "No latency of STM32F746" in said and "no power meter" in said
    again = _job(job.request)
    again.__dict__["state"] = job.state  # as after an interruption
    assert again.net.space.fingerprint == job.net.space.fingerprint


def test_what_the_device_does_badly_is_left_out_and_told(request_for: Request) -> None:
    job = _job(request_for(device="stm32f746", space="catalogue"))
    before = job.net.space.size
    fit_device(job)
    removed = job.state["restriction"]["removed"]
    assert {option for choice, option, _ in removed if choice.endswith(".kind")} == {"mbconv_g2"}
    assert job.net.space.size < before and any("grouped" in line for line in notes(job))
    rng = np.random.default_rng(0)
    for _ in range(5):
        graph = trace(job.net.extract(job.net.space.sample(rng)).eval(), job.data.input_shape)
        assert all(job.spec.objection(op) is None for op in graph)


def test_rules_of_convenience_give_way_where_nothing_would_be_left(request_for: Request) -> None:
    job = _job(request_for(device="hexagon-685"))  # vectors of 128 bytes: no width of a small space fills them
    fit_device(job)
    assert any("rule of convenience was waived" in line and "lanes" in line for line in notes(job))
    graph = trace(job.net.extract(job.net.space.sample(np.random.default_rng(0))).eval(), job.data.input_shape)
    assert all(job.spec.objection(op) is None for op in graph)


def test_what_every_network_has_is_told_and_does_not_refuse_the_search(request_for: Request) -> None:
    job = _job(request_for(device="eyeriss"))
    fit_device(job)
    assert any("every network of it has this: linear is unfriendly" in line for line in notes(job)) and job.net.space.size > 1


def test_energy_follows_the_model_of_the_device(request_for: Request) -> None:
    job = _job(request_for(device="stm32f746", objectives=["accuracy", "energy_mj"]))
    fit_device(job)
    arch = job.net.space.sample(np.random.default_rng(1))
    found, module = job.predicted(arch), job.net.extract(arch).eval()
    pj = job.spec.energy.pj_per_op["int8"]
    expected = 2 * found["macs"] * pj * 1e-9 + job.spec.energy.static_w * found["latency_ms"]
    assert found["energy_mj"] == pytest.approx(expected) and found["edp"] == pytest.approx(expected * found["latency_ms"])
    assert job.dynamic_mj(module) == pytest.approx(job.dynamic_mj(arch))
    with pytest.raises(UserError, match="no energy is known of this machine"):
        check_metrics(_job(request_for(objectives=["accuracy", "energy_mj"])))
    with pytest.raises(UserError, match="precision int8"):
        check_metrics(_job(request_for(limits=["quantisation_error<=1%"], precision="fp32")))


@pytest.mark.parametrize(("threads", "share"), [(1, 0.25), (2, 0.5), (4, 1.0)])
def test_only_the_cores_that_work_switch(request_for: Request, threads: int, share: float) -> None:
    job = _job(request_for(device="raspberry-pi-4", threads=threads))
    assert job.spec is not None and job.spec.cores == 4 and job.energy is not None and job.energy.power_w is not None
    arch = job.net.space.sample(np.random.default_rng(1))
    module = job.net.extract(arch).eval()
    working_ms = sum(job.price(op) for op in trace(module, job.data.input_shape))
    assert job.dynamic_mj(module) == pytest.approx(job.energy.power_w * share * working_ms)
    assert job.dynamic_mj(arch) == pytest.approx(job.dynamic_mj(module))


def test_the_rivals_are_the_largest_mobilenet_v2_within_the_limits(request_for: Request) -> None:
    job = _job(request_for(device="stm32f746", limits=["flash_bytes<=200KB"]))
    name, smaller = ladder_of(job)
    assert float(smaller.rpartition("-")[2]) < float(name.rpartition("-")[2])
    module = rung(job, name)
    graph = trace(module.eval(), job.data.input_shape)
    assert 100 * 1024 < weight_bytes(graph) <= 200 * 1024
    assert place(graph).bytes <= job.spec.sram_bytes
    assert len(ladder_of(_job(request_for()))) > 3
    assert ladder_of(_job(request_for(device="stm32f746", limits=["flash_bytes<=2KB"]))) == {}


def _integers(file: Path) -> float:
    """The share of a `.tflite` file's tensors with more than one value that hold integers; its input and output are float."""
    from ai_edge_litert.interpreter import Interpreter

    tensors = [t for t in Interpreter(model_path=str(file)).get_tensor_details() if np.prod(t["shape"]) > 1]
    return float(np.mean([np.issubdtype(t["dtype"], np.integer) for t in tensors]))


@pytest.mark.slow
def test_a_search_for_a_microcontroller_delivers_models_that_fit(request_for: Request, tmp_path: Path) -> None:
    limits = ["peak_bytes<=6KB", "flash_bytes<=24KB", "quantisation_error<=5%", "energy_mj<=100"]
    result = jobs.search(request_for(device="stm32f746", limits=limits, minutes=0.2))
    assert result["status"] == "complete" and result["models"] and not result["device"]["measured"]
    assert any("No latency of STM32F746" in line for line in result["notes"]) and result["chosen_space"]["multiplier"] > 0
    for record in result["models"]:
        figures = record["metrics"]
        assert figures["peak_bytes"] <= 6 * 1024 and figures["flash_bytes"] <= 24 * 1024 and figures["energy_mj"] <= 100
        assert 0 < figures["quantisation_error"] == max(record["weight_error"].values()) <= 0.05
        assert record["latency"]["runs"] == 0  # modelled
        assert record["memory"]["in_place_bytes"] <= record["memory"]["best_order_bytes"] <= record["memory"]["peak_bytes"]
        assert (tmp_path / "run" / record["file"]).is_file()
    assert not result["baselines"] and any("No hand-designed rival" in line for line in result["notes"])  # 24 KB hold no MobileNetV2
    written = [record for record in result["models"] if (tmp_path / "run" / "models" / record["name"] / "model.tflite").is_file()]
    assert len(written) == (len(result["models"]) if find_spec("litert_torch") else 0)
    assert any("No .tflite file" in line for line in result["notes"]) == (not written)
    for record in written:
        assert _integers(tmp_path / "run" / record["tflite"]) > 0.9
        assert abs(record["tflite_test"]["accuracy"] - record["test"]["accuracy"]) < 0.15
    assert any("Test accuracy of the .tflite files" in line for line in result["notes"]) == bool(written)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No latency of STM32F746" in page and "TinyNAS" in page
