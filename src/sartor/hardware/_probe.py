"""ONNX files in which the runtime meets ops as it meets them in a network: fp32 graphs with a convolution on either side of each op.

The neighbours fix what decides an op's kernels: its data layout, the quantisation of its inputs and outputs, and what fuses with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.graph import Op, Shape

if TYPE_CHECKING:
    import onnx

OPSET = 17
SOURCE, END = "src", "end"


class Builder:
    """Collects nodes and random weights of one probe file with a single input `x` (1, 1, H, W)."""

    def __init__(self, size: tuple[int, int], seed: int = 0) -> None:
        self.size = size
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: dict[str, tuple[int, ...]] = {}  # name -> shape

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...], scale: float = 0.05, offset: float = 0.0) -> str:
        from onnx import numpy_helper

        values = (self.rng.standard_normal(shape) * scale + offset).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, shape: Shape, channels: int, output: str, kernel: int = 1, stride: int = 1, groups: int = 1,
             padding: int = 0, dilation: int = 1) -> str:  # fmt: skip
        weight = self.weight(f"{output}.weight", (channels, shape[0] // groups, kernel, kernel))
        bias = self.weight(f"{output}.bias", (channels,))
        return self.node("Conv", [x, weight, bias], output, kernel_shape=[kernel] * 2, strides=[stride] * 2, group=groups,
                         pads=[padding] * 4, dilations=[dilation] * 2)  # fmt: skip

    def act(self, x: str, kind: str, output: str, channels: int) -> str:
        """An activation as the exporter writes it."""
        if kind == "relu6":
            low, high = (self.constant(f"{output}.{name}", np.array(bound, np.float32)) for name, bound in (("low", 0), ("high", 6)))
            return self.node("Clip", [x, low, high], output)
        if kind == "hardsigmoid":
            return self.node("HardSigmoid", [x], output, alpha=1 / 6, beta=0.5)
        if kind == "swish":
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{output}.gate")], output)
        if kind == "affine":
            names = [self.weight(f"{output}.{name}", (channels,), 0.01, 1.0) for name in ("scale", "shift", "mean", "var")]
            return self.node("BatchNormalization", [x, *names], output)
        simple = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid"}
        return self.node(simple[kind], [x], output)

    def model(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper

        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *self.size])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.outputs.items()]
        graph = helper.make_graph(self.nodes, "probe", [x], outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def probe(ops: Sequence[Op], seed: int = 0) -> onnx.ModelProto:
    """One file with all `ops`, which must share the height and width of their inputs.

    Op i reads convolutions named `src<i>_<n>_` and is read by a convolution named `end<i>_`, except for `linear`, which ends the net.
    """
    builder = Builder(ops[0].in_shape[1:], seed)
    for number, op in enumerate(ops):
        if op.in_shape[1:] != builder.size:
            raise UserError(f"expected ops with inputs of {builder.size}, got {op.signature}")
        sources = [
            builder.conv("x", (1, *builder.size), channels, f"{SOURCE}{number}_{place}_") for place, channels in enumerate(_operands(op))
        ]
        output = _WRITERS[op.kind](builder, op, sources, f"op{number}_")
        if op.act and op.kind != "se" and op.kind != "act":
            output = builder.act(output, op.act, f"op{number}_act", op.out_shape[0])
        if op.kind != "linear":
            output = builder.conv(output, op.out_shape, 8, f"{END}{number}_")
        builder.outputs[output] = (1, op.out_shape[0]) if op.kind == "linear" else (1, 8, *op.out_shape[1:])
    return builder.model()


def input_probe(shape: Shape, seed: int = 0) -> onnx.ModelProto:
    """A net of one convolution named `end0_` on an input of `shape`: what stands before it is the cost of the input."""
    from onnx import TensorProto, helper

    builder = Builder(shape[1:], seed)
    builder.outputs[builder.conv("x", shape, 8, f"{END}0_")] = (1, 8, *shape[1:])
    model = builder.model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape]))
    return model


def _operands(op: Op) -> list[int]:
    """Channels of each operand. Only the joined width of a concat is known: equal parts stand for the real ones."""
    if op.kind in ("add", "mul"):
        return [op.in_shape[0]] * 2
    if op.kind == "concat":
        count = max(2, len(op.inputs))
        return [op.in_shape[0] // count + (place < op.in_shape[0] % count) for place in range(count)]
    return [op.in_shape[0]]


def padding(op: Op) -> int:
    """Symmetric padding of a convolution or pool that turns the in shape into the out shape. Raises UserError if there is none."""
    reach = op.dilation * (op.kernel - 1)
    for candidate in (reach // 2, *range(reach + 1)):
        sizes = [(size + 2 * candidate - reach - 1) // op.stride + 1 for size in op.in_shape[1:]]
        if tuple(sizes) == op.out_shape[1:]:
            return candidate
    raise UserError(f"expected shapes that a symmetric padding connects, got {op.signature}")


def _conv(builder: Builder, op: Op, sources: list[str], name: str) -> str:
    return builder.conv(sources[0], op.in_shape, op.out_shape[0], name, op.kernel, op.stride, op.groups, padding(op), op.dilation)


def _linear(builder: Builder, op: Op, sources: list[str], name: str) -> str:
    flat = builder.node("Flatten", sources, f"{name}flat", axis=1)
    weight = builder.weight(f"{name}weight", (op.out_shape[0], op.in_shape[0]))
    return builder.node("Gemm", [flat, weight, builder.weight(f"{name}bias", (op.out_shape[0],))], name, transB=1)


def _squeeze_excite(builder: Builder, op: Op, sources: list[str], name: str) -> str:
    channels = op.in_shape[0]
    pooled = builder.node("GlobalAveragePool", sources, f"{name}pool")
    squeezed = builder.act(builder.conv(pooled, (channels, 1, 1), op.hidden, f"{name}reduce"), "relu", f"{name}relu", op.hidden)
    gate = builder.act(
        builder.conv(squeezed, (op.hidden, 1, 1), channels, f"{name}expand"), op.act or "hardsigmoid", f"{name}gate", channels
    )
    return builder.node("Mul", [sources[0], gate], name)


def _window(kind: str) -> Callable[[Builder, Op, list[str], str], str]:
    def write(builder: Builder, op: Op, sources: list[str], name: str) -> str:
        extra = {"count_include_pad": 1} if kind == "AveragePool" else {}
        return builder.node(kind, sources, name, kernel_shape=[op.kernel] * 2, strides=[op.stride] * 2, pads=[padding(op)] * 4, **extra)

    return write


def _plain(kind: str, **attributes: Any) -> Callable[[Builder, Op, list[str], str], str]:
    return lambda builder, op, sources, name: builder.node(kind, sources, name, **attributes)


def _resize(builder: Builder, op: Op, sources: list[str], name: str) -> str:
    sizes = builder.constant(f"{name}sizes", np.array([1, *op.out_shape], dtype=np.int64))
    return builder.node("Resize", [sources[0], "", "", sizes], name, mode="linear", coordinate_transformation_mode="half_pixel")


_WRITERS: dict[str, Callable[[Builder, Op, list[str], str], str]] = {
    "conv": _conv,
    "linear": _linear,
    "se": _squeeze_excite,
    "pool": _plain("GlobalAveragePool"),
    "maxpool": _window("MaxPool"),
    "avgpool": _window("AveragePool"),
    "add": _plain("Add"),
    "mul": _plain("Mul"),
    "concat": _plain("Concat", axis=1),
    "act": lambda builder, op, sources, name: builder.act(sources[0], op.act, name, op.in_shape[0]),
    "resize": _resize,
}
