from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sartor.errors import UserError
from sartor.hardware import OpGraph, trace
from sartor.hardware._lower import quantize_default
from sartor.hardware.exported import exported_graph
from sartor.hardware.onnx_graph import onnx_graph, precision_of

from .nets import Inverted, export, random_net

Fact = tuple[str, tuple[int, ...], int, int]


def facts(graph: OpGraph) -> list[Fact]:
    return [(op.signature, graph.sources(index), op.macs, op.params) for index, op in enumerate(graph)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_fx_trace_exported_program_and_file_agree_op_by_op(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    module, shape = random_net(seed)
    traced = trace(module, shape)
    path = tmp_path_factory.mktemp("agree") / "net.onnx"
    export(module, shape, str(path))
    assert facts(exported_graph(module, shape)) == facts(traced)
    assert facts(onnx_graph(path)) == facts(traced)


class _Everything(nn.Module):
    """Every activation and window there is, in the forms that the exporters write differently."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3 if n == 0 else 8, 8, 3, padding=1) for n in range(6)])
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.convs[0](x))
        x = F.silu(self.convs[1](x))
        y = self.convs[2](x)
        x = y * torch.sigmoid(y)
        x = F.hardswish(self.norm(x))
        x = F.max_pool2d(torch.sigmoid(self.convs[3](x)), 2)
        x = F.avg_pool2d(F.interpolate(self.convs[4](x), scale_factor=2.0), 2)
        x = F.relu(self.convs[5](x)) + x
        return self.head(x.mean((2, 3)))


def test_every_activation_and_window_agrees(tmp_path: Path) -> None:
    net = _Everything().eval()
    export(net, (3, 16, 16), str(tmp_path / "net.onnx"))
    expected = facts(trace(net, (3, 16, 16)))
    assert facts(exported_graph(net, (3, 16, 16))) == expected
    assert facts(onnx_graph(tmp_path / "net.onnx")) == expected
    assert {"relu6", "swish", "hardswish", "sigmoid", "affine"} <= {op.act for op in onnx_graph(tmp_path / "net.onnx")}


def test_quantised_file_has_the_same_work_and_integer_types(tmp_path: Path) -> None:
    module, shape = random_net(1)
    export(module, shape, str(tmp_path / "net.onnx"))
    images = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    quantize_fixed_name(tmp_path / "net.onnx", images, tmp_path / "int8.onnx")
    plain, quantised = onnx_graph(tmp_path / "net.onnx"), onnx_graph(tmp_path / "int8.onnx")
    assert (precision_of(plain), precision_of(quantised)) == ("fp32", "int8")
    assert (quantised.macs, quantised.params) == (plain.macs, plain.params)
    assert {op.dtype for op in quantised if op.kind == "conv"} == {"uint8"}


def quantize_fixed_name(source: Path, images: np.ndarray, out: Path) -> None:
    """`quantize_default` feeds an input named x."""
    model = onnx.load(source)
    for node in model.graph.node:
        node.input[:] = ["x" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "x"
    onnx.save(model, source.with_name("renamed.onnx"))
    quantize_default(source.with_name("renamed.onnx"), images, out)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


def test_foreign_operators_are_named_and_their_products_counted(tmp_path: Path) -> None:
    net, tokens = _Attention().eval(), torch.zeros(1, 12, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(tokens)
    torch.onnx.export(net, (tokens,), str(tmp_path / "net.onnx"), opset_version=17, dynamo=False)
    for graph in (exported_graph(net, (12, 16)), onnx_graph(tmp_path / "net.onnx")):
        assert graph.macs == counter.get_total_flops() // 2
        assert {"linear", "softmax"} <= {op.label.lower() for op in graph}
        assert [op.params for op in graph if op.label == "linear"] == [16 * 48 + 48, 16 * 16 + 16]


def test_convolutions_that_are_no_squares_are_counted_too(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (1, 3)), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 8, 8))
    export(net, (3, 8, 8), str(tmp_path / "net.onnx"))
    for graph in (exported_graph(net, (3, 8, 8)), onnx_graph(tmp_path / "net.onnx")):
        assert graph.macs == counter.get_total_flops() // 2
        assert graph.params == sum(p.numel() for p in net.parameters())


def test_graph_of_shapes_that_only_a_run_can_tell(tmp_path: Path) -> None:
    """A contributed operator, of which the ONNX package knows nothing."""
    nodes = [
        helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"),
        helper.make_node("GlobalAveragePool", ["y"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])], [helper.make_empty_tensor_value_info("z")]
    )
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    found = onnx_graph(tmp_path / "net.onnx")
    assert [(op.kind, op.label, op.out_shape) for op in found] == [("other", "Gelu", (4, 6, 6)), ("pool", "", (4, 1, 1))]


def _written(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)) -> Path:
    """An ONNX file with the input x (1, 4, 8, 8)."""
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])]
    arrays = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    leaving = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", ends, leaving, arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_what_subgraphs_read_by_name_is_read(tmp_path: Path) -> None:
    """A branch takes values of the graph around it by their names: they are no inputs of the node, and edges all the same."""

    def branch(name: str, kind: str) -> Any:
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in ("i", name)]
        inner = helper.make_graph([helper.make_node(kind, ["a"], ["i"])], name, [], ends[:1])
        outer = [helper.make_node("If", ["go"], [name], then_branch=inner, else_branch=inner)]
        return helper.make_graph(outer, name, [], ends[1:])

    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="first"),
        helper.make_node("If", ["go"], ["y"], name="fork", then_branch=branch("t", "Relu"), else_branch=branch("e", "Abs")),
        helper.make_node("Relu", ["a"], ["z"], name="beside"),
    ]
    graph = onnx_graph(_written(tmp_path / "net.onnx", nodes, {"go": np.array(True)}, ("y", "z")))
    found = [(op.name, op.kind, op.inputs) for op in graph]
    assert found == [("first", "other", (-1,)), ("fork", "other", (0,)), ("beside", "act", (0,))]


def test_sequences_of_tensors_are_read(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=1),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = onnx_graph(_written(tmp_path / "net.onnx", nodes, {}))
    assert [op.out_shape for op in graph] == [(256, 1, 1), (4, 8, 8), (4, 8, 8)] and graph.macs == 0


def test_what_cannot_be_run_for_its_shapes_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Reshape", ["n", "s"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(UserError, match="runs on a random input"):
        onnx_graph(_written(tmp_path / "net.onnx", nodes, {"s": np.array([7, 11])}))


def test_constants_in_other_files_are_not_fetched(tmp_path: Path) -> None:
    low = TensorProto(name="low", data_type=TensorProto.FLOAT, dims=[], data_location=TensorProto.EXTERNAL)
    entry = low.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    nodes = [helper.make_node("Constant", [], ["l"], value=low), helper.make_node("Clip", ["x", "l"], ["y"])]
    assert [op.label for op in onnx_graph(_written(tmp_path / "net.onnx", nodes, {}))] == ["Clip"]


def test_size_arithmetic_leaves_no_ops(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.conv(x))
            return self.linear(x.view(x.size(0), -1))  # Shape, Gather, Concat and Reshape in the file

    export(Flat().eval(), (3, 8, 8), str(tmp_path / "net.onnx"))
    assert [op.kind for op in onnx_graph(tmp_path / "net.onnx")] == ["conv", "linear"]
    assert onnx_graph(tmp_path / "net.onnx").ops[0].act == "relu"


def test_consumers_mirror_producers() -> None:
    graph = trace(Inverted(16, 16, 3, 5, 1, True, nn.ReLU), (16, 8, 8))
    for index in range(-1, len(graph)):
        assert graph.consumers(index) == tuple(i for i in range(len(graph)) if index in graph.sources(i))


def test_traffic_counts_every_operand_once() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1, 2))
    first, second = trace(net, (4, 6, 6))
    assert first.traffic(4, 4) == 4 * (4 * 36 + 8 * 36 + 4 * 8 * 9 + 8)
    assert second.traffic(1, 1) == 8 * 36 / 4 + 8 * 9 + 64 + 4 * 8


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="expected an ONNX file"):
        onnx_graph(path)


def test_free_sizes_are_asked_for(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)).eval()
    torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), str(tmp_path / "net.onnx"), opset_version=17, dynamo=False, input_names=["x"],
                      dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}})  # fmt: skip
    with pytest.raises(UserError, match="give input_shape"):
        onnx_graph(tmp_path / "net.onnx")
    assert onnx_graph(tmp_path / "net.onnx", (3, 10, 10)).ops[0].out_shape == (4, 8, 8)


def test_a_module_that_cannot_be_exported_is_refused() -> None:
    class ByValue(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"torch\.export accepts"):
        exported_graph(ByValue(), (3, 4, 4))
    with pytest.raises(UserError, match="positive sizes"):
        exported_graph(nn.Identity(), (0, 4))
