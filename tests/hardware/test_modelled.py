"""A device that is only described: every figure comes from its roofline, and it says that none was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sartor.errors import UserError
from sartor.hardware import trace
from sartor.hardware.devices import find
from sartor.hardware.modelled import ModelledDevice, ModelTable, note
from sartor.hardware.target import open_device

from .nets import export, random_net


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
        assert table.predict(graph) == pytest.approx(sum(table.price(op) for op in graph) + table.session_ms(shape))
        assert table.predict(graph) > 1e3 * 2 * graph.macs / find("stm32f746").peak_ops_per_s["fp32"]  # no faster than its peak
