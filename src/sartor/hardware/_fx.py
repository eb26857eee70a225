"""From a torch module to fused ops, by torch.fx. Use `sartor.hardware.graph.trace`; this file is the torch side of it."""

from __future__ import annotations

import copy
import operator
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Interpreter, Node, Tracer, symbolic_trace

from sartor.errors import UserError
from sartor.hardware._patterns import merge as _merge_squeeze_excite
from sartor.hardware.graph import Op, Shape

_ACTS: dict[Any, str] = {
    nn.ReLU: "relu", F.relu: "relu", torch.relu: "relu", "relu": "relu", F.relu_: "relu", torch.relu_: "relu", "relu_": "relu",
    nn.ReLU6: "relu6", F.relu6: "relu6",
    nn.Hardswish: "hardswish", F.hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid", F.hardsigmoid: "hardsigmoid",
    nn.SiLU: "swish", F.silu: "swish",
    nn.Sigmoid: "sigmoid", F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", "sigmoid": "sigmoid",
}  # fmt: skip
_THROUGH = {
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.ZeroPad2d, F.dropout, F.dropout2d, torch.flatten, torch.squeeze, torch.reshape,
    "flatten", "view", "reshape", "squeeze", "contiguous", "unsqueeze",
}  # fmt: skip
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MUL = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_FUSES = ("conv", "linear", "add")  # ops that absorb a following activation


class _Shapes(Interpreter):
    """Runs the graph on the meta device and keeps the shape of every tensor."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def build(module: nn.Module, input_shape: Shape) -> list[Op]:
    """Fused ops of `module` in execution order; see `sartor.hardware.graph.trace`."""
    twin = copy.deepcopy(module).to("meta").eval()
    if Tracer().is_leaf_module(twin, ""):
        twin = nn.Sequential(twin)  # a lone layer: tracing it would show its inside
    try:
        traced = symbolic_trace(twin)
        shapes = _Shapes(traced)
        with torch.no_grad():
            shapes.run(torch.empty((1, *input_shape), device="meta"))
    except Exception as error:  # whatever a user's forward raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"expected a module that torch.fx can trace with input {input_shape}, got {type(module).__name__}: {reason}"
        ) from error
    return _merge_squeeze_excite(_Builder(traced, shapes.shapes).ops)


class _Builder:
    def __init__(self, traced: GraphModule, shapes: dict[Node, tuple[int, ...]]) -> None:
        self.modules = dict(traced.named_modules())
        self.shapes = shapes
        self.ops: list[Op] = []
        self.producer: dict[Node, int] = {}  # node -> op that makes its value, -1 for the graph's input
        self.normed: set[int] = set()
        self.single: dict[int, bool] = {}  # op -> its value has one reader, so that it can absorb it
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                self.producer[node] = -1
            elif node.op in ("call_module", "call_function", "call_method"):
                self._visit(node)

    def _visit(self, node: Node) -> None:
        layer = self.modules[str(node.target)] if node.op == "call_module" else None
        key: Any = type(layer) if layer is not None else node.target
        sources = [source for source in node.all_input_nodes if source in self.producer]
        if not sources or node not in self.shapes:
            return  # arithmetic on sizes, or on constants
        if key in _THROUGH:
            self._alias(node, self.producer[sources[0]])
        elif key in _ACTS:
            self._activation(node, sources[0], _ACTS[key])
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            self._batch_norm(node, sources[0])
        elif isinstance(layer, nn.Conv2d):
            self._emit(node, sources, "conv", kernel=self._square(layer.kernel_size, node), stride=self._square(layer.stride, node),
                       groups=layer.groups, dilation=self._square(layer.dilation, node))  # fmt: skip
        elif isinstance(layer, nn.Linear):
            self._linear(node, sources, layer)
        elif key in _ADD and len(sources) == 2:
            self._emit(node, sources, "add")
        elif key in _MUL and len(sources) == 2:
            self._emit(node, sources, "mul")
        elif key in (torch.cat, torch.concat):
            self._emit(node, sources, "concat")
        elif key is torch.mean or key == "mean" or self._pool_kind(key):
            self._pool(node, sources, layer, key)
        elif key is F.interpolate or isinstance(layer, nn.Upsample):
            self._emit(node, sources, "resize")
        else:
            name = key.__name__ if hasattr(key, "__name__") else str(key)
            raise UserError(
                f"expected only layers with an op kind in the module, got {name} at {node.name}: replace it or cost it separately"
            )

    def _shape(self, node: Node) -> Shape:
        shape = self.shapes[node][1:]
        if len(shape) > 3:
            raise UserError(f"expected feature maps (batch, channels, height, width), got shape {self.shapes[node]} at {node.name}")
        padded = (*shape, 1, 1, 1)[:3]
        return (padded[0], padded[1], padded[2])

    @staticmethod
    def _square(value: Any, node: Node) -> int:
        sizes = set(value) if isinstance(value, tuple | list) else {value}
        if len(sizes) != 1:
            raise UserError(f"expected a square kernel, stride and dilation, got {value} at {node.name}")
        return int(sizes.pop())

    def _emit(self, node: Node, sources: list[Node], kind: str, **fields: Any) -> None:
        shape = self._shape(sources[0])
        if kind == "concat":
            shape = (sum(self._shape(source)[0] for source in sources), *shape[1:])
        if kind in ("add", "mul"):
            shape = max((self._shape(source) for source in sources), key=prod)  # the smaller operand is broadcast
        name = str(node.target) if node.op == "call_module" else node.name
        op = Op(kind, shape, self._shape(node), inputs=tuple(self.producer[s] for s in sources), name=name, **fields)
        self.ops.append(op)
        self._alias(node, len(self.ops) - 1)

    def _linear(self, node: Node, sources: list[Node], layer: nn.Linear) -> None:
        rows = prod(self.shapes[node][1:-1])
        if rows == 1:
            return self._emit(node, sources, "linear")
        params = sum(p.numel() for p in layer.parameters())
        self._emit(node, sources, "other", label="linear", own_macs=rows * layer.in_features * layer.out_features, own_params=params)

    def _alias(self, node: Node, producer: int) -> None:
        self.producer[node] = producer
        # A value that several read has several readers, whatever passes it on unchanged to one of them.
        self.single[producer] = self.single.get(producer, True) and len(node.users) == 1

    def _absorbs(self, producer: int) -> bool:
        return producer >= 0 and self.single[producer] and not self.ops[producer].act and self.ops[producer].kind in _FUSES

    def _activation(self, node: Node, source: Node, act: str) -> None:
        producer = self.producer[source]
        if self._absorbs(producer):
            self.ops[producer] = replace(self.ops[producer], act=act)
            self._alias(node, producer)
        else:
            self._emit(node, [source], "act", act=act)

    def _batch_norm(self, node: Node, source: Node) -> None:
        producer = self.producer[source]
        if self._absorbs(producer) and self.ops[producer].kind != "add" and producer not in self.normed:
            self.normed.add(producer)
            self._alias(node, producer)
        else:
            self._emit(node, [source], "act", act="affine")

    @staticmethod
    def _pool_kind(key: Any) -> str:
        name = key if isinstance(key, str) else getattr(key, "__name__", "")
        return {
            "AdaptiveAvgPool2d": "pool", "adaptive_avg_pool2d": "pool", "MaxPool2d": "maxpool", "max_pool2d": "maxpool",
            "boolean_dispatch": "maxpool", "AvgPool2d": "avgpool", "avg_pool2d": "avgpool",
        }.get(name, "")  # fmt: skip

    def _pool(self, node: Node, sources: list[Node], layer: nn.Module | None, key: Any) -> None:
        kind = self._pool_kind(key) or "pool"
        if kind == "pool":
            shape = self._shape(node)
            if shape[1:] != (1, 1):
                raise UserError(f"expected adaptive and mean pooling to reduce to 1x1, got {shape} at {node.name}")
            return self._emit(node, sources, "pool")
        kernel: Any
        stride: Any
        if layer is not None:
            kernel, stride = layer.kernel_size, layer.stride
        else:
            kernel = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else None)
            stride = node.kwargs.get("stride", node.args[2] if len(node.args) > 2 else None) or kernel
        self._emit(node, sources, kind, kernel=self._square(kernel, node), stride=self._square(stride, node))
