"""The op graph of a user's own `nn.Module` by torch.export, for what torch.fx cannot trace and layers that no search space has.

torch.export runs the module on tensors without values and records ATen operators, so that Python of any kind may stand in `forward` as
long as it does not depend on the values of tensors.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from sartor.errors import UserError
from sartor.hardware._assemble import Assembler, Dims
from sartor.hardware.graph import OpGraph

_ACTS = {
    "relu": "relu", "relu_": "relu", "hardswish": "hardswish", "hardswish_": "hardswish", "hardsigmoid": "hardsigmoid",
    "hardsigmoid_": "hardsigmoid", "silu": "swish", "silu_": "swish", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "relu6": "relu6",
    "relu6_": "relu6",
}  # fmt: skip
_ALIASES = frozenset({
    "view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "dropout", "dropout_", "feature_dropout", "clone",
    "alias", "detach", "detach_", "lift_fresh_copy", "to", "_to_copy", "unflatten", "identity", "view_as",
})  # fmt: skip


def exported_graph(module: nn.Module, input_shape: Sequence[int]) -> OpGraph:
    """The op graph of any module that torch.export accepts, in evaluation mode, for one image of `input_shape` (C, H, W).

    Shorter shapes, such as (features,) or (tokens, width), are allowed. Nothing is computed and the module is not changed. Operators
    that `Op` has no kind for become ops of kind `other`, named as in ATen.

    Raises UserError for a module that torch.export refuses, and for a shape that is not positive.
    """
    shape = tuple(int(size) for size in input_shape)
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise UserError(f"expected input_shape of one to four positive sizes, such as (channels, height, width), got {tuple(input_shape)}")
    twin = copy.deepcopy(module).eval()
    reference = next((p for p in twin.parameters() if p.is_floating_point()), torch.zeros(()))
    example = torch.zeros(1, *shape, dtype=reference.dtype, device=reference.device)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(twin, (example,), strict=False)
    except Exception as error:  # whatever a user's forward raises, and the exporter's own exceptions
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"expected a module that torch.export accepts with input {shape}, got {type(module).__name__}: {reason[:300]}"
        ) from error
    return _Reader(program).graph()


class _Reader:
    """Walks the ATen operators of an exported program."""

    def __init__(self, program: Any) -> None:
        self.nodes: list[Node] = list(program.graph.nodes)
        weights = {*program.graph_signature.inputs_to_parameters, *program.graph_signature.inputs_to_buffers}
        weights |= set(getattr(program.graph_signature, "inputs_to_lifted_tensor_constants", {}))
        self.constants: set[Node] = {node for node in self.nodes if node.op == "placeholder" and node.name in weights}
        self.live: list[Node] = []
        for node in self.nodes:
            if node.op == "call_function":
                if node.all_input_nodes and all(source in self.constants for source in node.all_input_nodes):
                    self.constants.add(node)
                elif node.all_input_nodes:
                    self.live.append(node)
                else:
                    self.constants.add(node)  # torch.arange, torch.zeros, …
        dims: dict[Any, Dims] = {}
        types: dict[Any, str] = {}
        for node in self.nodes:
            value = node.meta.get("val")
            first = value[0] if isinstance(value, tuple | list) and value else value
            if isinstance(first, torch.Tensor):
                dims[node] = tuple(int(size) for size in first.shape)
                types[node] = str(first.dtype).removeprefix("torch.")
        self.dims = dims
        reads: Counter[Any] = Counter(source for node in self.live for source in _arguments(node))
        self.outputs: list[Node] = [source for node in self.nodes if node.op == "output" for source in node.all_input_nodes]
        reads.update(self.outputs)
        self.to = Assembler(dims, reads, types)

    def graph(self) -> OpGraph:
        for node in self.nodes:
            if node.op == "placeholder" and node not in self.constants and node in self.dims:
                self.to.input(node, node.name)
        for node in self.live:
            self._visit(node)
        return self.to.graph(self.outputs)

    def _visit(self, node: Node) -> None:
        sources = [source for source in _arguments(node) if self.to.knows(source)]
        if not sources or node not in self.dims:
            return  # arithmetic on sizes
        kind = _kind(node)
        handler = _HANDLERS.get(kind)
        if handler is not None and handler(self, node, sources):
            return
        if kind in _ALIASES or kind == "getitem":
            self.to.alias(node, sources[0])
        elif kind in _ACTS:
            self.to.activation(node, sources[0], _ACTS[kind], _path(node))
        else:
            params = sum(prod(self.dims[source]) for source in _arguments(node) if source in self.constants and source in self.dims)
            self.to.other(kind, [node], sources, _path(node), _macs(self, node, kind), params)


def _arguments(node: Node) -> list[Node]:
    """Tensors a node reads, one entry for each time: x + x reads twice."""
    found: list[Node] = []

    def collect(value: Any) -> None:
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, tuple | list):
            for item in value:
                collect(item)

    collect(node.args)
    collect(list(node.kwargs.values()))
    return found


def _kind(node: Node) -> str:
    """`conv2d` for aten.conv2d.default."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet, "__name__", None) or getattr(target, "__name__", target))


def _path(node: Node) -> str:
    """Path of the module that the operator stands in, and the operator's own name where that is no single layer."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("", ""))[0] if stack else ""
    return str(path).removeprefix("L['self'].") or node.name


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, default)


def _one(value: Any) -> int | None:
    """The size of a square; None for a rectangle."""
    sizes = set(value) if isinstance(value, tuple | list) else {value}
    return int(sizes.pop()) if len(sizes) == 1 else None


def _macs(reader: _Reader, node: Node, kind: str) -> int:
    dims = reader.dims
    if kind in ("matmul", "bmm", "mm"):
        left = dims[_arguments(node)[0]]
        return prod(dims[node][1:] if len(dims[node]) > 2 or kind != "mm" else dims[node]) * left[-1]
    if kind.startswith("conv"):
        x, weight = _arguments(node)[:2]
        return prod(dims[weight]) * prod(dims[x if "transpose" in kind else node][2:])
    if kind == "scaled_dot_product_attention":
        query, key, value = (dims[source] for source in _arguments(node)[:3])
        return prod(query[1:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


# ------------------------------------------------------------------------------------------------ handlers
# Each returns whether it took the node; what none takes becomes `other`.


def _conv(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    weight = reader.dims[_arguments(node)[1]]
    stride, dilation = _one(_argument(node, 3, "stride", 1)), _one(_argument(node, 5, "dilation", 1))
    if len(weight) != 4 or weight[2] != weight[3] or stride is None or dilation is None:
        return False
    groups = _argument(node, 6, "groups", 1)
    reader.to.emit("conv", node, sources[:1], _path(node), kernel=weight[2], stride=stride, dilation=dilation, groups=int(groups))
    return True


def _linear(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    inputs = _arguments(node)
    if len(sources) != 1:
        return False
    rows, columns = reader.dims[inputs[1]]
    reader.to.linear(node, sources[0], (columns, rows), sum(prod(reader.dims[weight]) for weight in inputs[1:]), _path(node))
    return True


def _batch_norm(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    reader.to.affine(node, sources[0], _path(node))
    return True


def _sum_or_product(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    kind = _kind(node).rstrip("_")
    if len(sources) == 2:
        if kind not in ("add", "mul"):
            return False
        reader.to.emit(kind, node, sources, _path(node))
        return True
    constant = next((source for source in _arguments(node) if source not in sources), None)
    dims = reader.dims[node]
    count = 1 if constant is None else prod(reader.dims[constant])
    if count not in (1, dims[1] if len(dims) > 1 else 1, dims[-1]) or (kind == "div" and node.args[0] not in sources):
        return False
    if kind == "add" and count > 1:
        reader.to.bias(node, sources[0], count, _path(node))
    else:
        reader.to.affine(node, sources[0], _path(node))
    return True


def _concat(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    rank = len(reader.dims[node])
    if len(sources) != len(_arguments(node)) or rank < 2 or _argument(node, 1, "dim", 0) % rank != 1:
        return False
    reader.to.emit("concat", node, sources, _path(node))
    return True


def _pool(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    kind, dims = _kind(node), reader.dims[sources[0]]
    if kind == "adaptive_avg_pool2d" and reader.dims[node][2:] == (1, 1):
        reader.to.emit("pool", node, sources, _path(node))
        return True
    if kind == "mean":
        axes = _argument(node, 1, "dim", None)
        if len(dims) != 4 or not isinstance(axes, tuple | list) or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            return False
        reader.to.emit("pool", node, sources, _path(node))
        return True
    if kind not in ("max_pool2d", "avg_pool2d"):
        return False
    window = _argument(node, 1, "kernel_size", None)
    kernel, stride = _one(window), _one(_argument(node, 2, "stride", None) or window)
    if kernel is None or stride is None:
        return False
    reader.to.emit("maxpool" if kind == "max_pool2d" else "avgpool", node, sources, _path(node), kernel=kernel, stride=stride)
    return True


def _resize(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    if len(reader.dims[node]) != 4:
        return False
    reader.to.emit("resize", node, sources[:1], _path(node))
    return True


def _hardtanh(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    low, high = _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
    if _kind(node).startswith("clamp"):
        low, high = _argument(node, 1, "min", None), _argument(node, 2, "max", None)
    act = {(0.0, 6.0): "relu6", (0.0, None): "relu"}.get((low, high), "")
    if act:
        reader.to.activation(node, sources[0], act, _path(node))
    return bool(act)


def _permute(reader: _Reader, node: Node, sources: list[Node]) -> bool:
    before, after = reader.dims[sources[0]], reader.dims[node]
    if [size for size in before if size > 1] != [size for size in after if size > 1] or len({size for size in before if size > 1}) < len(
        [size for size in before if size > 1]
    ):
        return False  # it moves values, or equal sizes hide whether it does
    reader.to.alias(node, sources[0])
    return True


_HANDLERS: dict[str, Callable[[_Reader, Node, list[Node]], bool]] = {
    "conv2d": _conv, "convolution": _conv, "linear": _linear,
    "batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _sum_or_product, "add_": _sum_or_product, "mul": _sum_or_product, "mul_": _sum_or_product, "sub": _sum_or_product,
    "div": _sum_or_product, "cat": _concat, "concat": _concat,
    "adaptive_avg_pool2d": _pool, "mean": _pool, "max_pool2d": _pool, "avg_pool2d": _pool,
    "upsample_bilinear2d": _resize, "upsample_nearest2d": _resize, "upsample_bicubic2d": _resize,
    "hardtanh": _hardtanh, "hardtanh_": _hardtanh, "clamp": _hardtanh, "clamp_": _hardtanh, "clamp_min": _hardtanh,
    "permute": _permute, "transpose": _permute,
}  # fmt: skip
