"""Executing a plain torch network patch by patch, with the same numbers: the torch side of `sartor.hardware.patch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node, symbolic_trace
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.hardware._fx import _Shapes, build
from sartor.hardware.patch import PatchPlan, Region, _hull, back, tiles

Window = tuple[int, int, int, int]  # kernel, stride, padding, dilation along one axis


class Patched(nn.Module):
    """`module` with the stage of `plan` executed patch by patch: `forward(x)` maps `(batch, C, H, W)` to what `module` gives, to rounding.

    `module` must be in eval mode (batch statistics would depend on the patch), and `plan` come from its traced op graph.

    Raises:
        UserError: for a module in training mode, or layers of the stage whose windows are not symmetric or padded with something else
            than zeros.
    """

    def __init__(self, module: nn.Module, input_shape: Sequence[int], plan: PatchPlan) -> None:
        super().__init__()
        if module.training:
            raise UserError("expected a module in eval mode: batch normalisation over a patch differs from that over the picture")
        shape = (int(input_shape[0]), int(input_shape[1]), int(input_shape[2]))
        self.plan = plan
        self.traced: GraphModule = symbolic_trace(module)
        self._layers = dict(self.traced.named_modules())
        with torch.no_grad():
            shapes = _Shapes(self.traced)
            shapes.run(torch.zeros((1, *shape)))
        self.shapes = shapes.shapes
        ops = build(module, shape)
        self.source = (
            self._node_of(ops, plan.first - 1) if plan.first else next(n for n in self.traced.graph.nodes if n.op == "placeholder")
        )
        self.target = self._node_of(ops, plan.last)
        self.stage = self._between()
        self._windows = {node: self._window(node) for node in self.stage}

    def _node_of(self, ops: Sequence[Any], index: int) -> Node:
        """The last node of a fused op: what follows its layer without branching, as far as the op before its readers."""
        nodes = [n for n in self.traced.graph.nodes if str(n.target) == ops[index].name or n.name == ops[index].name]
        node: Node = nodes[sum(op.name == ops[index].name for op in ops[:index])]  # a layer may be called twice
        starts = {op.name for op in ops}
        while len(node.users) == 1:
            follower = next(iter(node.users))
            if follower.op == "output" or str(follower.target) in starts or follower.name in starts:
                break
            node = follower
        return node

    def _between(self) -> list[Node]:
        """Nodes that the target needs and that come after the source, in order."""
        wanted, queue = set[Node](), [self.target]
        while queue:
            node = queue.pop()
            if node not in wanted and node is not self.source:
                wanted.add(node)
                queue += node.all_input_nodes
        return [node for node in self.traced.graph.nodes if node in wanted]

    def forward(self, x: Tensor) -> Tensor:
        runner = Interpreter(self.traced)
        before = _Until(self.traced, self.source)
        image: Tensor = before.run(x)
        channels, height, width = self.shapes[self.target][1:]
        whole = image.new_empty((len(image), channels, height, width))
        for rows in tiles(height, self.plan.grid[0]):
            for columns in tiles(width, self.plan.grid[1]):
                whole[:, :, rows[0] : rows[1], columns[0] : columns[1]] = self._patch(image, (rows, columns))
        # What the stage holds inside is never alive as a whole; only its result enters the rest.
        return runner.run(x, initial_env={**dict.fromkeys(self.stage), self.target: whole})  # type: ignore[no-any-return]

    def _patch(self, image: Tensor, patch: Region) -> Tensor:
        regions = self.regions(patch)
        (top, bottom), (left, right) = regions[self.source]
        values: dict[Node, Tensor] = {self.source: image[:, :, top:bottom, left:right]}
        for node in self.stage:
            windows = self._windows[node]
            if windows is None:

                def cut(source: Node, node: Node = node) -> Tensor:
                    return _part(values[source], regions[source], regions[node])

                values[node] = _call(self._layers, node, cut)
            else:
                values[node] = self._slide(node, windows, values, regions)
        return values[self.target]

    def regions(self, patch: Region) -> dict[Node, Region]:
        """The part of each node's map that one patch of the target needs."""
        needed: dict[Node, Region] = {self.target: patch}
        for node in reversed(self.stage):
            for source in node.all_input_nodes:
                windows, region = self._windows[node], needed[node]
                if windows is not None:
                    sizes = self.shapes[source][2:]
                    rows, columns = (back(region[a], sizes[a], k, s, p, d) for a, (k, s, p, d) in enumerate(windows))
                    region = rows, columns
                needed[source] = _hull(needed[source], region) if source in needed else region
        return needed

    def _slide(self, node: Node, windows: tuple[Window, Window], values: dict[Node, Tensor], regions: dict[Node, Region]) -> Tensor:
        """A convolution or pooling of a patch: cut what it reads, pad what lies beyond the map, slide without further padding."""
        layer, source = self._layers[str(node.target)], node.all_input_nodes[0]
        reads, pads = [], []
        for axis, (kernel, stride, padding, dilation) in enumerate(windows):
            low, high = regions[node][axis]
            start, end = low * stride - padding, (high - 1) * stride - padding + dilation * (kernel - 1) + 1
            size = self.shapes[source][2 + axis]
            reads.append((max(start, 0), min(end, size)))
            pads.append((max(-start, 0), max(end - size, 0)))
        x = _part(values[source], regions[source], (reads[0], reads[1]))
        sides = [*pads[1], *pads[0]]
        if isinstance(layer, nn.MaxPool2d):
            return F.max_pool2d(F.pad(x, sides, value=float("-inf")), layer.kernel_size, layer.stride, 0, layer.dilation)
        padded = F.pad(x, sides)
        if isinstance(layer, nn.AvgPool2d):
            mean = F.avg_pool2d(padded, layer.kernel_size, layer.stride)
            if layer.count_include_pad:
                return mean
            return mean / F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), sides), layer.kernel_size, layer.stride)
        assert isinstance(layer, nn.Conv2d)
        return F.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)

    def _window(self, node: Node) -> tuple[Window, Window] | None:
        """Window of a convolution or pooling layer along height and width; None for a node that works value by value."""
        layer = self._layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            if "pool" in str(node.target) or "conv" in str(getattr(node.target, "__name__", "")):
                raise UserError(
                    f"expected convolutions and poolings of the stage to be layers, got the function {node.target} at {node.name}"
                )
            return None
        if getattr(layer, "ceil_mode", False) or getattr(layer, "padding_mode", "zeros") != "zeros" or layer.padding == "same":
            raise UserError(f"expected zero padding of a given width and no ceil_mode at {node.name}, got {layer}")
        padding = 0 if layer.padding == "valid" else layer.padding
        kernels, strides, paddings = (_pair(v) for v in (layer.kernel_size, layer.stride, padding))
        dilations = _pair(getattr(layer, "dilation", 1))
        rows, columns = ((kernels[a], strides[a], paddings[a], dilations[a]) for a in (0, 1))
        return rows, columns


class _Until(Interpreter):
    """Runs a graph as far as one node, and returns its value."""

    def __init__(self, module: GraphModule, last: Node) -> None:
        super().__init__(module)
        self.last, self.nodes = last, list(module.graph.nodes)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.args_iter = iter(args)
        self.env: dict[Node, Any] = {}
        for node in self.nodes:
            self.env[node] = self.run_node(node)
            if node is self.last:
                break
        return self.env[self.last]


def _part(value: Tensor, has: Region, wanted: Region) -> Tensor:
    """The `wanted` region of a map of which `value` holds the region `has`."""
    (top, bottom), (left, right) = wanted
    return value[:, :, top - has[0][0] : bottom - has[0][0], left - has[1][0] : right - has[1][0]]


def _call(layers: dict[str, nn.Module], node: Node, value_of: Any) -> Tensor:
    """Execute a node that works value by value on parts of its operands."""
    args = torch.fx.node.map_arg(node.args, value_of)
    kwargs = torch.fx.node.map_arg(node.kwargs, value_of)
    if node.op == "call_module":
        return layers[str(node.target)](*args, **kwargs)  # type: ignore[no-any-return]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)  # type: ignore[no-any-return]
    return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))
