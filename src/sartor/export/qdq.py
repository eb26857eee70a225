"""Places QuantizeLinear / DequantizeLinear pairs so that onnxruntime fuses them into integer kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from sartor.export.calibrate import Method, Observed
from sartor.export.legalise import FLOAT, attribute

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# Operators with an integer kernel of their own ...
DIRECT = frozenset({"Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid", "HardSigmoid", "Relu"})
# ... and those that only move uint8 values, whose output therefore shares the scale of the input.
MOVES = frozenset({"MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})
ACTIVATIONS = frozenset({"Relu", "Clip"})


@dataclass
class Plan:
    """Which nodes run on integers and which tensors are therefore quantised (with tensors named as in the fp32 graph)."""

    model: onnx.ModelProto
    integer: list[bool]  # per node; activations that the producer's saturation replaces are in `absorbed` instead
    absorbed: dict[str, str] = field(default_factory=dict)  # producer's output -> name of the activation's output that replaces it
    quantised: list[str] = field(default_factory=list)  # in topological order
    weighted_inputs: list[str] = field(default_factory=list)


def plan(model: onnx.ModelProto) -> Plan:
    """Decide for a legalised `model`. What lies before the first layer with weights (normalisation, resizing) stays in float."""
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {v.name for v in [*inferred.value_info, *inferred.input, *inferred.output] if v.type.tensor_type.elem_type == FLOAT}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    outputs = {value.name for value in graph.output}
    behind: set[str] = set()
    result = Plan(model, [])
    swallowed: set[int] = set()
    for node in graph.node:
        weighted = _is_weighted(node, constants)
        inside = weighted or any(name in behind for name in node.input)
        if inside:
            behind.update(node.output)
        direct = node.op_type in DIRECT and inside and node.output[0] in floats and _direct_inputs(node, floats, constants)
        result.integer.append(weighted or direct)
        following = consumers[node.output[0]] if node.output else []
        if (weighted or direct) and len(following) == 1 and node.output[0] not in outputs and _absorbable(following[0], constants):
            result.absorbed[node.output[0]] = following[0].output[0]
            swallowed.add(id(following[0]))
    _choose_tensors(result, consumers, constants, outputs, swallowed)
    return result


def _choose_tensors(
    result: Plan,
    consumers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
    outputs: set[str],
    swallowed: set[int],
) -> None:
    nodes = result.model.graph.node
    result.integer = [flag and id(node) not in swallowed for flag, node in zip(result.integer, nodes, strict=True)]
    integer = {id(node) for flag, node in zip(result.integer, nodes, strict=True) if flag}

    def wanted(name: str) -> bool:
        return any(id(c) in integer or (c.op_type in MOVES and c.input[0] == name and wanted(c.output[0])) for c in consumers[name])

    chosen: dict[str, None] = {}
    for flag, node in zip(result.integer, nodes, strict=True):
        if flag:
            activations = [name for name in node.input if name and name not in constants]
            chosen.update(dict.fromkeys(activations))
            if node.op_type in WEIGHTED:
                result.weighted_inputs.append(node.input[0])
            out = result.absorbed.get(node.output[0], node.output[0])
            # A linear layer can hand out float, which spares the logits a rounding; a convolution cannot.
            if node.op_type in ("Conv", *DIRECT) or wanted(out):
                chosen[out] = None
        elif node.op_type in MOVES and node.input[0] in chosen:
            chosen[node.output[0]] = None
    result.quantised = list(chosen)


def _is_weighted(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type not in WEIGHTED or node.input[1] not in constants or any(name not in constants for name in node.input[2:]):
        return False
    if node.op_type == "Gemm":
        return bool((attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0)) == (1.0, 1.0, 0))
    return node.op_type == "Conv" or len(constants[node.input[1]].dims) == 2


def _direct_inputs(node: onnx.NodeProto, floats: set[str], constants: Mapping[str, onnx.TensorProto]) -> bool:
    return all(name in floats or (name in constants and constants[name].data_type == FLOAT) for name in node.input)


def _absorbable(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether saturation to a range that starts at 0 does the same as `node`: ReLU, or a Clip from 0 or below."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or any(name and name not in constants for name in node.input[1:]):
        return False
    low = numpy_helper.to_array(constants[node.input[1]]) if len(node.input) > 1 and node.input[1] else -np.inf
    high = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.inf
    return bool(low == 0 and high > 0)


def quantise_weight(weight: NDArray[np.float32], axis: int, limit: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric integers in [-limit, limit] with one scale per slice along `axis`; W is about q * scale."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others) / limit
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.clip(np.round(weight / scale.reshape(shape)), -limit, limit).astype(np.int8), scale


class Builder:
    """Emits the QDQ graph of a :class:`Plan`; `limit(node, weight shape)` is the largest weight integer of a layer."""

    def __init__(
        self, plan: Plan, observed: Mapping[str, Observed], method: Method, limit: Callable[[onnx.NodeProto, tuple[int, ...]], int]
    ) -> None:
        self.plan, self.observed, self.method, self.limit = plan, observed, method, limit
        self.constants = {i.name: numpy_helper.to_array(i) for i in plan.model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.quantised = set(plan.quantised)
        self.params: dict[str, tuple[str, str, float]] = {}  # tensor -> names of scale and zero point, scale
        self.as_integer: dict[str, str] = {}  # tensor -> the dequantised tensor that integer consumers read
        self.weight_error: dict[str, float] = {}

    def build(self) -> onnx.ModelProto:
        graph = self.plan.model.graph
        moved = {node.output[0]: node.input[0] for node in graph.node if node.op_type in MOVES and node.input[0] in self.quantised}
        for value in graph.input:
            self._pair(value.name, value.name)
        replaced = set(self.plan.absorbed.values())
        for flag, node in zip(self.plan.integer, graph.node, strict=True):
            if flag:
                self._integer(node)
            elif node.output[0] in replaced:
                continue
            elif node.output[0] in moved and node.output[0] in self.quantised:
                self._move(node)
            else:
                self.nodes.append(node)
                for name in node.output:
                    self._pair(name, name)
        for name in {name for node in self.nodes for name in node.input} & self.constants.keys():
            self._constant(name, self.constants[name])
        out = helper.make_graph(self.nodes, "int8", list(graph.input), list(graph.output), list(self.initializers.values()))
        result = helper.make_model(
            out, opset_imports=list(self.plan.model.opset_import), ir_version=self.plan.model.ir_version, producer_name="sartor"
        )
        return result

    def _integer(self, node: onnx.NodeProto) -> None:
        final = self.plan.absorbed.get(node.output[0], node.output[0])
        raw = f"{final}/raw" if final in self.quantised else final
        if node.op_type in WEIGHTED:
            inputs = self._weights(node)
        elif node.op_type == "HardSigmoid":
            inputs = self._scaled_plus(node.input[0], attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5), node.name)
        elif node.op_type == "Relu":
            # Adding nothing and saturating at 0: the vectorised QLinearAdd, where Relu alone would fall back to float.
            inputs = self._scaled_plus(node.input[0], 1.0, 0.0, node.name)
        else:
            inputs = [self._as_integer(name) for name in node.input]
        kind = "Add" if node.op_type in ("HardSigmoid", "Relu") else node.op_type
        attributes = {} if kind == "Add" else {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.nodes.append(helper.make_node(kind, inputs, [raw], name=node.name, **attributes))
        fixed = (0.0, 1.0) if node.op_type in ("HardSigmoid", "Sigmoid") else None
        self._pair(final, raw, fixed)

    def _move(self, node: onnx.NodeProto) -> None:
        source, out = node.input[0], node.output[0]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.output[0] = self.as_integer[source], f"{out}/raw"
        self.nodes.append(copy)
        self.params[out] = self.params[source]
        self._pair(out, f"{out}/raw")

    def _pair(self, name: str, raw: str, fixed: tuple[float, float] | None = None) -> None:
        """Q and DQ behind `raw`; where `raw` is the tensor itself (made in float), float consumers go on reading it."""
        if name not in self.quantised:
            return
        if name not in self.params:
            low, high = fixed or self.observed[name].range(self.method)
            scale = float(np.float32((high - low) / 255 if high > low else 1.0))
            zero = int(np.clip(round(-low / scale), 0, 255))
            self.params[name] = (self._constant(f"{name}/scale", np.float32(scale)), self._constant(f"{name}/zero", np.uint8(zero)), scale)
        scale_name, zero_name, _ = self.params[name]
        integer, back = f"{name}/q", name if raw != name else f"{name}/dq"
        self.nodes.append(helper.make_node("QuantizeLinear", [raw, scale_name, zero_name], [integer], name=integer))
        self.nodes.append(helper.make_node("DequantizeLinear", [integer, scale_name, zero_name], [back], name=f"{name}/dq"))
        self.as_integer[name] = back

    def _as_integer(self, name: str) -> str:
        return self._dequantised_constant(name, self.constants[name]) if name in self.constants else self.as_integer[name]

    def _dequantised_constant(self, name: str, value: NDArray[np.float32]) -> str:
        low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
        scale = np.float32((high - low) / 255 if high > low else 1.0)
        zero = round(-low / float(scale))
        integers = np.clip(np.round(value / scale) + zero, 0, 255).astype(np.uint8)
        parts = [self._constant(f"{name}/{part}", v) for part, v in (("q", integers), ("scale", scale), ("zero", np.uint8(zero)))]
        if all(node.name != f"{name}/dq" for node in self.nodes):
            self.nodes.append(helper.make_node("DequantizeLinear", parts, [f"{name}/dq"], name=f"{name}/dq"))
        return f"{name}/dq"

    def _scaled_plus(self, source: str, factor: float, term: float, name: str) -> list[str]:
        """Operands of factor * source + term: the factor is a second reading of the same integers, with another scale."""
        scaled = self.as_integer[source]
        if factor != 1:
            _, zero, scale = self.params[source]
            scaled = f"{name}/scaled"
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{source}/q", self._constant(f"{name}/scale", np.float32(scale * factor)), zero],
                    [scaled],
                    name=scaled,
                )
            )
        return [scaled, self._dequantised_constant(f"{name}/term", np.asarray(term, np.float32))]

    def _weights(self, node: onnx.NodeProto) -> list[str]:
        source, weight_name = node.input[0], node.input[1]
        weight = self.constants[weight_name].astype(np.float32)
        axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else 1
        limit = self.limit(node, weight.shape)
        integers, scale = quantise_weight(weight, axis, limit)
        input_scale = self.params[source][2]
        bias = self.constants[node.input[2]].astype(np.float64).reshape(-1) if len(node.input) > 2 else None
        if bias is not None and bias.size == weight.shape[axis]:
            # A channel with almost no weight but a bias (a dead BatchNorm channel) would overflow the int32 bias: widen its scale.
            floor = (np.abs(bias) / (input_scale * 2.0**30)).astype(np.float32)
            if np.any(scale < floor):
                scale = np.maximum(scale, floor)
                shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
                integers = np.clip(np.round(weight / scale.reshape(shape)), -limit, limit).astype(np.int8)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        difference = integers * scale.reshape(shape) - weight
        norm = float(np.linalg.norm(weight))
        self.weight_error[node.name or node.output[0]] = float(np.linalg.norm(difference)) / norm if norm else 0.0
        result = [self.as_integer[source], self._dequantised(f"{node.output[0]}/weight", integers, scale, axis)]
        bias = self._corrected(node, bias, difference, axis)
        if node.op_type != "MatMul" and bias is not None:
            step = input_scale * scale.astype(np.float64)
            result.append(self._dequantised(f"{node.output[0]}/bias", np.round(bias / step).astype(np.int32), step.astype(np.float32), 0))
        return result

    def _corrected(
        self, node: onnx.NodeProto, bias: NDArray[np.float64] | None, difference: NDArray[np.float32], axis: int
    ) -> NDArray[np.float64] | None:
        """The bias less what rounding the weights adds on average (Nagel et al. 2019, Data-Free Quantization, section 4.2)."""
        mean = self.observed[node.input[0]].mean
        if node.op_type == "Conv":
            groups = attribute(node, "group", 1)
            summed = difference.reshape(*difference.shape[:2], -1).sum(axis=2, dtype=np.float64)
            means = np.repeat(mean.reshape(groups, -1), summed.shape[0] // groups, axis=0)
            shift = (summed * means).sum(axis=1)
        elif node.op_type == "Gemm":
            shift = (difference if axis == 0 else difference.T).astype(np.float64) @ mean
        else:
            return bias
        return (np.zeros_like(shift) if bias is None else bias) - shift

    def _dequantised(self, name: str, integers: NDArray[np.int8] | NDArray[np.int32], scale: NDArray[np.float32], axis: int) -> str:
        zero = np.zeros(len(scale), integers.dtype)
        parts = [self._constant(f"{name}/{part}", value) for part, value in (("q", integers), ("scale", scale), ("zero", zero))]
        self.nodes.append(helper.make_node("DequantizeLinear", parts, [f"{name}/dq"], name=f"{name}/dq", axis=axis))
        return f"{name}/dq"

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
