from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sartor.errors import UserError
from sartor.hardware import trace
from sartor.hardware.fusion import RULES, executed, kinds, observed, rules

from .nets import Inverted, Residual, conv_bn, export, random_net

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
needs_litert = pytest.mark.skipif(find_spec("litert_torch") is None, reason="the extra litert is not installed")


class Head(nn.Module):
    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.pool, self.linear = body, nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(torch.flatten(self.pool(self.body(x)), 1))
        return out


ACTS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "swish": nn.SiLU, "hardsigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid
}  # fmt: skip


def net(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    acts = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "hardswish": nn.Hardswish,
        "swish": nn.SiLU,
        "hardsigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
    }
    if name in acts:
        return Head(nn.Sequential(conv_bn(8, 16, 3, act=acts[name]), conv_bn(16, 16, 1)), 16).eval(), (8, 16, 16)
    body: dict[str, nn.Module] = {
        "inverted": Inverted(16, 16, 3, 5, 1, False, nn.ReLU),
        "squeeze": Inverted(16, 16, 3, 5, 1, True, nn.Hardswish),
        "residual": nn.Sequential(conv_bn(16, 16, 3), Residual(16, 16, 2), Residual(16, 16, 1)),
        "affine": nn.Sequential(
            nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)
        ),
    }
    return Head(body[name], 16).eval(), (16, 16, 16)


NETS = (*ACTS, "inverted", "squeeze", "residual", "affine")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("fusion")
    found = {}
    torch.manual_seed(0)
    for name in NETS:
        module, shape = net(name)
        export(module, shape, str(folder / f"{name}.onnx"))
        found[name, "fp32"] = folder / f"{name}.onnx"
    return found


@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_runs_what_the_rules_say(name: str, files: dict[tuple[str, str], Path]) -> None:
    assert kinds(executed(trace(*net(name)), "onnxruntime", "fp32")) == observed(files[name, "fp32"], "onnxruntime")


@needs_openvino
@pytest.mark.parametrize("name", NETS)
def test_openvino_runs_what_the_rules_say(name: str, files: dict[tuple[str, str], Path]) -> None:
    assert kinds(executed(trace(*net(name)), "openvino", "fp32")) == observed(files[name, "fp32"], "openvino")


@pytest.mark.slow
@needs_litert
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", sorted({*NETS} - {"hardsigmoid"}))  # there its product lies in the weights of the next convolution
def test_litert_runs_what_the_rules_say(name: str, precision: str, tmp_path: Path) -> None:
    from sartor.export.litert import to_tflite

    torch.manual_seed(0)
    module, shape = net(name)
    images = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    path = to_tflite(module, shape, tmp_path / "net.tflite", images if precision == "int8" else None)
    assert observed(path, "litert") == kinds(executed(trace(module, shape), "litert", precision))


XNNPACK = {"Conv2d": "conv", "DepthwiseConv2d": "conv", "FullyConnected": "linear", "GlobalAvgPooling2d": "pool", "MaxPooling2d": "maxpool",
           **dict.fromkeys(("Add", "Multiply", "Div", "Clamp", "Hardswish", "Sigmoid"), "elementwise")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
@pytest.mark.parametrize("name", NETS)
def test_executorch_runs_what_the_rules_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with the nodes of the XNNPACK graph that a program holds, and what runs outside of it."""
    import executorch.backends.xnnpack.xnnpack_preprocess as preprocess
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    nodes: list[str] = []
    write = preprocess.serialize_xnnpack_binary

    def watched(graph: Any, *given: Any) -> Any:
        nodes.extend(type(node.xnode_union).__name__.removeprefix("XNN") for node in graph.xnodes)
        return write(graph, *given)

    monkeypatch.setattr(preprocess, "serialize_xnnpack_binary", watched)
    torch.manual_seed(0)
    module, shape = net(name)
    exported = torch.export.export(module, (torch.zeros(1, *shape),), strict=False)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).exported_program()
    found = Counter(XNNPACK[node] for node in nodes if node in XNNPACK)
    found.update("avgpool" for node in program.graph.nodes if "avg_pool2d" in str(node.target))
    assert found == kinds(executed(trace(module, shape), "executorch", "fp32"))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000))
def test_onnxruntime_on_any_network(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    module, shape = random_net(seed)
    path = tmp_path_factory.mktemp("any") / "net.onnx"
    export(module, shape, str(path))
    assert kinds(executed(trace(module, shape), "onnxruntime", "fp32")) == observed(path, "onnxruntime")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(RULES)))
def test_lowering_keeps_work_weights_and_result(seed: int, pair: tuple[str, str]) -> None:
    module, shape = random_net(seed)
    graph = trace(module, shape)
    lowered = executed(graph, *pair)
    assert (lowered.macs, lowered.params) == (graph.macs, graph.params)
    assert lowered.ops[-1].out_shape == graph.ops[-1].out_shape and len(lowered) >= 1
    for index, op in enumerate(lowered):
        made = [lowered.input_shape if s < 0 else lowered.ops[s].out_shape for s in lowered.sources(index)]
        if op.kind in ("conv", "act", "pool"):
            assert op.in_shape == made[0]


def test_eager_torch_runs_one_kernel_an_op() -> None:
    """Against the profiler's own count of operators."""
    from torch.profiler import ProfilerActivity, profile

    from sartor.hardware.runtimes.eager import _folded

    module, shape = net("squeeze")
    ready = _folded(module)
    with profile(activities=[ProfilerActivity.CPU]) as found, torch.no_grad():
        ready(torch.zeros(1, *shape))
    count = {event.key: event.count for event in found.key_averages()}
    wanted = kinds(executed(trace(module, shape), "torch", "fp32"))
    elementwise = sum(count.get(f"aten::{name}", 0) for name in ("relu", "hardswish", "hardsigmoid", "mul", "add", "hardswish_", "relu_"))
    assert (count["aten::conv2d"], count["aten::linear"]) == (wanted["conv"], wanted["linear"])
    assert count["aten::adaptive_avg_pool2d"] == wanted["pool"] and elementwise == wanted["elementwise"]


def test_a_sum_runs_in_the_convolution_where_the_other_operand_is_ready() -> None:
    ops = executed(trace(*net("residual")), "onnxruntime", "fp32").ops
    sums = [op for op in ops if op.kind == "conv" and len(op.inputs) == 2]
    assert len(sums) == 2 and all(op.act == "relu" and op.signature.endswith(":relu") and ":add" in op.signature for op in sums)
    assert all(source < index for index, op in enumerate(ops) for source in op.inputs)


def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="fusion rules"):
        rules("onnxruntime", "fp16")
    with pytest.raises(UserError, match="reports what it runs"):
        observed("x.onnx", "executorch")
