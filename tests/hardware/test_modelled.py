"""A device that is only described: every figure comes from its roofline, and it says that none was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sartor.errors import UserError
from sartor.hardware import trace
from sartor.hardware.calibrate import Quality
from sartor.hardware.devices import find
from sartor.hardware.kept import device_roofline, save_roofline
from sartor.hardware.modelled import ModelledDevice, ModelTable, note
from sartor.hardware.onnx_graph import onnx_graph
from sartor.hardware.roofline import Parameters, Roofline
from sartor.hardware.target import open_device

from .nets import Inverted, conv_bn, export, random_net


def test_a_device_without_an_agent_is_modelled_and_says_so() -> None:
    device = open_device("stm32f746")
    assert isinstance(device, ModelledDevice) and not device.measured
    about = device.describe("int8", 1)
    assert about["measured"] is False and about["version"] == "modelled" and about["runtime"] == "tflite-micro"
    assert "No latency of STM32F746" in note(find("stm32f746"))
    with pytest.raises(UserError, match="precision"):
        device.identity("bf16")
    with pytest.raises(UserError, match="threads between 1 and the 1 cores"):
        device.identity("int8", 2)
    with pytest.raises(UserError, match="batch 1"):
        device.measure_many([], batch=2)


def test_a_file_and_its_op_graph_take_the_same_modelled_time(tmp_path: Path) -> None:
    device = ModelledDevice(find("stm32f746"))
    table = device.table("unused", device.identity("fp32"))
    assert isinstance(table, ModelTable) and table.ensure([]) == 0
    for seed in (0, 1):
        torch.manual_seed(seed)
        net, shape = random_net(seed)
        file = tmp_path / f"{seed}.onnx"
        export(net, shape, str(file))
        clock = device.measure_many([file])[0]
        graph = trace(net, shape)
        assert clock.p50 == clock.p10 == clock.p90 == pytest.approx(table.predict(graph), rel=1e-6)
        assert clock.runs == 0 and clock.quiet is None
        assert table.predict(graph.ops) == pytest.approx(sum(table.price(op) for op in graph) + table.session_ms(shape))
        assert table.predict(graph) > 1e3 * 2 * graph.macs / find("stm32f746").peak_ops_per_s["fp32"]  # no faster than its peak


def test_a_search_and_a_profile_say_the_same_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime takes a residual sum into a convolution: the sum of prices knows nothing of it, the whole graph does."""
    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    net = nn.Sequential(conv_bn(3, 16, 3, act=nn.ReLU), Inverted(16, 16, 3, 3, 1, False, nn.ReLU)).eval()
    file, spec = tmp_path / "net.onnx", find("raspberry-pi-4")
    export(net, (3, 16, 16), str(file))
    device = ModelledDevice(spec)
    profiled = device_roofline(spec, "fp32").predict(onnx_graph(file))
    assert device.measure_many([file])[0].p50 == profiled
    table = device.table("unused", device.identity("fp32"))
    graph = trace(net, (3, 16, 16))
    assert table.predict(graph) == pytest.approx(profiled)
    assert profiled < 0.99 * table.predict(graph.ops)


def test_a_calibration_serves_until_the_file_gives_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    spec = find("raspberry-pi-4")
    fitted = replace(Roofline.of(spec, "fp32"), parameters=Parameters(dense=0.2), networks=10, quality=Quality(0.9, 0.05, 0.8, 10))
    save_roofline(fitted, spec.name)
    device = ModelledDevice(spec)
    assert device.roofline("fp32") == fitted and "calibrated on 10 networks" in note(spec, fitted) and "error of 5%" in note(spec, fitted)
    assert not device.roofline("int8").calibrated and not device.roofline("fp32", 2).calibrated
    other = spec.model_copy(update={"bandwidth_bytes_per_s": 1e9})
    assert ModelledDevice(other).roofline("fp32") == Roofline.of(other, "fp32")
