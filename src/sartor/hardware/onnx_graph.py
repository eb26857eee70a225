"""The op graph of any ONNX file, made here or elsewhere, fp32 or quantised: shapes, types, MACs, parameters and edges.

Operators that `Op` has a kind for are read as such and fused by the rules that `sartor.hardware.graph.trace` follows; every other one
is an op of kind `other` under its own name. Quantize and dequantize nodes are no ops: they give the ops their type.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware._assemble import Assembler, Dims
from sartor.hardware._subgraphs import reads
from sartor.hardware.graph import OpGraph

if TYPE_CHECKING:
    import onnx

_ACTS = {"Relu": "relu", "Sigmoid": "sigmoid", "HardSwish": "hardswish"}
_ALIASES = frozenset(
    {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "QuantizeLinear", "DequantizeLinear"}
)  # fmt: skip
_SIZES = frozenset({"Shape", "Size"})  # of static shapes: constants


def onnx_graph(file: Path | str, input_shape: Sequence[int] | None = None) -> OpGraph:
    """The op graph of an ONNX file for one image.

    `input_shape` (C, H, W) fills in sizes that the file leaves free; a free batch size is 1 always. No arithmetic is done unless the
    file's shapes cannot be inferred: then it runs once in ONNX Runtime. Op names are those of the nodes.

    Raises UserError for a file that is missing or no ONNX, and for free sizes that `input_shape` does not settle.
    """
    model = _load(Path(file))
    _fix_sizes(model, input_shape, str(file))
    try:
        return _Reader(model).graph()
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def precision_of(graph: OpGraph) -> str:
    """ "int8" when the multiplying ops of a graph put out 8-bit integers, else "fp16", "bf16" or "fp32": by what most MACs are."""
    names = {"uint8": "int8", "int8": "int8", "float16": "fp16", "bfloat16": "bf16"}
    weight: Counter[str] = Counter()
    for op in graph:
        weight[names.get(op.dtype, "fp32")] += op.macs + 1
    return weight.most_common(1)[0][0]


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    if not path.is_file():
        raise UserError(f"expected an ONNX file, got {path}, which does not exist or is no file")
    try:
        model = onnx.load(str(path), load_external_data=False)  # shapes are in the file itself
    except (DecodeError, ValueError, OSError) as error:
        raise UserError(f"expected an ONNX file, got {path}, which cannot be read as one: {str(error)[:200]}") from None
    if not model.graph.node:
        raise UserError(f"expected an ONNX file with a network in it, got {path}, which has no nodes")
    return model


def _fix_sizes(model: onnx.ModelProto, input_shape: Sequence[int] | None, where: str) -> None:
    given = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in given:
            continue
        dims = value.type.tensor_type.shape.dim
        for place, dim in enumerate(dims):
            if dim.dim_value > 0:
                continue
            if place == 0:
                size = 1
            elif input_shape is not None and place - 1 < len(input_shape) == len(dims) - 1:
                size = int(input_shape[place - 1])
            else:
                raise UserError(
                    f"{where}: expected only the batch size to be free, got {[d.dim_value or d.dim_param for d in dims]} for input "
                    f"{value.name!r}: give input_shape"
                )
            dim.Clear()
            dim.dim_value = size
    del model.graph.value_info[:]  # they may speak of the free sizes
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


class _Reader:
    """Walks the nodes of a model with fixed sizes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.arrays = {tensor.name: tensor for tensor in graph.initializer}
        self.constants: set[str] = set(self.arrays)
        self.made: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            self.made.update(dict.fromkeys(filter(None, node.output), node))
            if node.op_type in _SIZES or all(name in self.constants for name in reads(node)):
                self.constants.update(node.output)
            else:
                self.nodes.append(node)
        self.outputs = [value.name for value in graph.output]
        self.dims, self.types = self._shapes()
        readers = Counter(name for node in self.nodes for name in reads(node))
        readers.update(self.outputs)
        values: dict[Hashable, Dims] = dict(self.dims.items())
        counts: dict[Hashable, int] = dict(readers.items())
        self.to = Assembler(values, counts, self._effective_types())

    def graph(self) -> OpGraph:
        for value in self.model.graph.input:
            if value.name not in self.arrays:
                self.to.input(value.name, value.name)
        for node in self.nodes:
            self._visit(node)
        return self.to.graph(self.outputs)

    def _visit(self, node: onnx.NodeProto) -> None:
        sources = [name for name in reads(node) if self.to.knows(name)]
        if not sources:  # everything it reads was computed from sizes
            self.constants.update(node.output)
            return
        if node.domain in ("", "ai.onnx"):
            handler = _HANDLERS.get(node.op_type)
            if handler is not None and handler(self, node, sources):
                return
            if node.op_type in _ALIASES:
                self.to.alias(node.output[0], sources[0])
                return
        self._other(node, sources)

    def _other(self, node: onnx.NodeProto, sources: list[str], macs: int | None = None) -> bool:
        params = sum(self._numel(name) for name in node.input if name in self.constants and self._is_float(name))
        outs = [name for name in node.output if name and name in self.dims] or [node.output[0]]
        counted = _macs(self, node, sources) if macs is None else macs
        self.to.other(node.op_type, outs, sources, _name(node), counted, params)
        return True

    # ------------------------------------------------------------------------------------------------ facts

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        from onnx import helper

        return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)

    def value(self, name: str) -> np.ndarray | None:
        """Value of a constant that stands in the file itself; None for one that is computed or kept outside."""
        from onnx import TensorProto, numpy_helper

        if name in self.arrays:
            tensor = self.arrays[name]
            return None if tensor.data_location == TensorProto.EXTERNAL else np.asarray(numpy_helper.to_array(tensor))
        node = self.made.get(name)
        if node is not None and node.op_type == "Identity":
            return self.value(node.input[0])
        if node is not None and node.op_type == "Constant":
            found = self.attribute(node, "value", None)
            if found is not None and found.data_location != TensorProto.EXTERNAL:
                return np.asarray(numpy_helper.to_array(found))
            for key in ("value_float", "value_int", "value_floats", "value_ints"):
                if (number := self.attribute(node, key, None)) is not None:
                    return np.asarray(number)
        return None

    def _numel(self, name: str) -> int:
        return prod(self.dims.get(name, (0,)))

    def _is_float(self, name: str) -> bool:
        return self.types.get(name, "").startswith(("float", "bfloat"))

    def _effective_types(self) -> dict[Hashable, str]:
        """A float value that is only ever quantised is written as integers."""
        readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in reads(node):
                readers[name].append(node)
        found: dict[Hashable, str] = dict(self.types.items())
        for name, nodes in readers.items():
            if name not in self.outputs and nodes and all(node.op_type == "QuantizeLinear" for node in nodes):
                found[name] = self.types.get(nodes[0].output[0], "uint8")
        return found

    def _shapes(self) -> tuple[dict[str, Dims], dict[str, str]]:
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        except Exception:  # the inference has its own exceptions, and they differ by version
            inferred = self.model.graph
        dims: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in self.model.graph.initializer}
        types = {tensor.name: _type(tensor.data_type) for tensor in self.model.graph.initializer}
        for value in [*inferred.input, *inferred.value_info, *inferred.output]:
            tensor = value.type.tensor_type
            types[value.name] = _type(tensor.elem_type)
            sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
            if tensor.HasField("shape") and all(size >= 0 for size in sizes):
                dims[value.name] = tuple(sizes)
        needed = [name for node in self.nodes for name in (*node.input, *node.output) if name]
        if any(name not in dims for name in needed):
            for name, value in _run(self.model, [name for name in dict.fromkeys(needed) if name not in dims]).items():
                arrays = [np.asarray(part) for part in (value if isinstance(value, list) else [value])]
                # A sequence of tensors counts as one with all their values.
                dims[name] = (1, sum(array.size for array in arrays)) if isinstance(value, list) else arrays[0].shape
                types[name] = arrays[0].dtype.name if arrays else ""
        return dims, types


def _run(model: onnx.ModelProto, names: list[str]) -> dict[str, Any]:
    """Inner values of one run, for shapes that no inference knows (contributed operators, data-dependent sizes)."""
    from onnx import helper

    from sartor.hardware.measure import open_session, synthetic_input

    twin = type(model)()
    twin.CopyFrom(model)
    known = {value.name for value in twin.graph.output}
    twin.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = open_session(twin.SerializeToString(), optimise=False)
    feeds = synthetic_input(session)
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # the runtime has classes of its own, which differ by version
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"expected a network that runs on a random input, for not all of its shapes are known, got: {reason}") from error


def _type(elem_type: int) -> str:
    from onnx import TensorProto, helper

    if elem_type == TensorProto.BFLOAT16:
        return "bfloat16"
    try:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)).name) if elem_type else ""
    except (KeyError, TypeError):
        return ""


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _macs(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> int:
    """Multiply-accumulates of an operator that has no kind of its own, for one image; 0 for all that multiply no matrices."""
    dims, kind = reader.dims, node.op_type
    if kind in ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"):
        weight = dims[node.input[3 if kind == "QLinearConv" else 1]]
        positions = dims[node.input[0] if kind == "ConvTranspose" else node.output[0]][2:]
        return prod(weight) * prod(positions)
    if kind in ("MatMul", "MatMulInteger", "Gemm", "QLinearMatMul"):
        left, out = dims[node.input[0]], dims[node.output[0]]
        inner = left[0] if kind == "Gemm" and reader.attribute(node, "transA", 0) else left[-1]
        return prod(out[1:]) * inner if len(out) > 1 else prod(out) * inner
    if kind in ("LSTM", "GRU", "RNN"):
        return prod(dims[node.input[0]][:1]) * sum(prod(dims[name]) for name in node.input[1:3])  # (steps, batch, features)
    return 0


# ------------------------------------------------------------------------------------------------ handlers
# Each returns whether it took the node; what none takes becomes `other`.


def _conv(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    weight = reader.dims.get(node.input[3 if node.op_type == "QLinearConv" else 1], ())
    strides, dilations = reader.attribute(node, "strides", [1, 1]), reader.attribute(node, "dilations", [1, 1])
    if len(sources) != 1 or len(weight) != 4 or weight[2] != weight[3] or len(set(strides)) != 1 or len(set(dilations)) != 1:
        return False
    groups = reader.attribute(node, "group", 1)
    reader.to.emit("conv", node.output[0], sources, _name(node), kernel=weight[2], stride=strides[0], groups=groups, dilation=dilations[0])
    return True


def _linear(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    weight = reader.dims.get(node.input[1], ())
    if len(sources) != 1 or sources[0] != node.input[0] or len(weight) != 2 or reader.attribute(node, "transA", 0):
        return False
    features = (weight[1], weight[0]) if reader.attribute(node, "transB", 0) else (weight[0], weight[1])
    params = sum(reader._numel(name) for name in node.input[1:3] if name)
    reader.to.linear(node.output[0], sources[0], features, params, _name(node))
    return True


def _sum_or_product(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    out, kind = node.output[0], "add" if node.op_type in ("Add", "Sum") else "mul"
    if len(node.input) == 2 and len(sources) == 2 and node.op_type in ("Add", "Sum", "Mul"):
        reader.to.emit(kind, out, sources, _name(node))
        return True
    if len(node.input) != 2 or len(sources) != 1:
        return False
    constant = next((name for name in node.input if name not in sources), "")
    if not constant or (node.op_type == "Div" and constant == node.input[0]):
        return False
    dims, sizes = reader.dims[out], reader.dims.get(constant, ())
    channels = dims[1] if len(dims) > 1 else 1
    if prod(sizes) not in (1, channels, dims[-1]) or not reader._is_float(out):
        return False
    if node.op_type == "Add" and prod(sizes) > 1:
        reader.to.bias(out, sources[0], prod(sizes), _name(node))
    else:
        reader.to.affine(out, sources[0], _name(node))
    return True


def _activation(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    act = _ACTS.get(node.op_type, "")
    if node.op_type == "HardSigmoid" and abs(reader.attribute(node, "alpha", 0.2) - 1 / 6) < 1e-3:
        act = "hardsigmoid"
    if node.op_type == "Clip":
        act = {(0.0, 6.0): "relu6", (0.0, float("inf")): "relu"}.get(_clip_range(reader, node), "")
    if not act or not reader._is_float(node.output[0]):
        return False
    reader.to.activation(node.output[0], sources[0], act, _name(node))
    return True


def _clip_range(reader: _Reader, node: onnx.NodeProto) -> tuple[float, float]:
    bounds = [float(reader.attribute(node, "min", -np.inf)), float(reader.attribute(node, "max", np.inf))]  # opset < 11
    for place, name in enumerate(node.input[1:3]):
        value = reader.value(name) if name else None
        if value is not None:
            bounds[place] = float(value.reshape(-1)[0])
        elif name:
            return -1.0, -1.0  # not known here
    if bounds[1] >= 3e38:
        bounds[1] = float("inf")
    return bounds[0], bounds[1]


def _batch_norm(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    if len(sources) != 1:
        return False
    reader.to.affine(node.output[0], sources[0], _name(node))
    return True


def _pool(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    out, rank = node.output[0], len(reader.dims[sources[0]])
    if node.op_type == "GlobalAveragePool" and rank == 4:
        reader.to.emit("pool", out, sources, _name(node))
        return True
    if node.op_type == "ReduceMean":
        axes = reader.attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            found = reader.value(node.input[1])
            axes = None if found is None else found.reshape(-1).tolist()
        if rank == 4 and axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]:
            reader.to.emit("pool", out, sources, _name(node))
            return True
        return False
    kernel = reader.attribute(node, "kernel_shape", [])
    strides = reader.attribute(node, "strides", [1] * len(kernel))
    if rank != 4 or len(set(kernel)) != 1 or len(set(strides)) != 1 or node.op_type not in ("MaxPool", "AveragePool"):
        return False
    kind = "maxpool" if node.op_type == "MaxPool" else "avgpool"
    reader.to.emit(kind, out, sources, _name(node), kernel=kernel[0], stride=strides[0])
    return True


def _concat(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    rank = len(reader.dims[node.output[0]])
    if len(sources) != len(node.input) or rank < 2 or reader.attribute(node, "axis", 0) % rank != 1:
        return False
    reader.to.emit("concat", node.output[0], sources, _name(node))
    return True


def _resize(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    if len(reader.dims[node.output[0]]) != 4:
        return False
    reader.to.emit("resize", node.output[0], sources[:1], _name(node))
    return True


def _transpose(reader: _Reader, node: onnx.NodeProto, sources: list[str]) -> bool:
    dims = reader.dims[sources[0]]
    order = reader.attribute(node, "perm", list(range(len(dims)))[::-1])
    if [axis for axis in order if dims[axis] > 1] != sorted(axis for axis in order if dims[axis] > 1):
        return False  # it moves values
    reader.to.alias(node.output[0], sources[0])
    return True


_HANDLERS: dict[str, Callable[[_Reader, onnx.NodeProto, list[str]], bool]] = {
    "Conv": _conv, "QLinearConv": _conv, "Gemm": _linear, "MatMul": _linear,
    "Add": _sum_or_product, "Sum": _sum_or_product, "Mul": _sum_or_product, "Sub": _sum_or_product, "Div": _sum_or_product,
    "Relu": _activation, "Sigmoid": _activation, "HardSwish": _activation, "HardSigmoid": _activation, "Clip": _activation,
    "BatchNormalization": _batch_norm,
    "GlobalAveragePool": _pool, "ReduceMean": _pool, "MaxPool": _pool, "AveragePool": _pool,
    "Concat": _concat, "Resize": _resize, "Upsample": _resize, "Transpose": _transpose,
}  # fmt: skip
