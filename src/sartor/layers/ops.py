"""Op graphs of a user's own network, one architecture after the other: each layer is lowered once per local choice and input shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from sartor.hardware._fx import _Builder, _merge_squeeze_excite, _Shapes
from sartor.hardware.graph import OpGraph
from sartor.layers.base import Chain, ElasticDepth, OneOf, Searchable
from sartor.layers.tracing import traced

Inner = tuple[fx.GraphModule, dict[fx.Node, tuple[int, ...]], tuple[int, ...]]  # traced layer, shapes inside, shape of its output


class _Lowered(nn.Module):
    """Stands for a plain layer on the meta device in the trace of a whole network; its own trace is kept for each input shape."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain.eval()
        self.numel = sum(p.numel() for p in plain.parameters())
        self.known: dict[tuple[int, ...], Inner] = {}

    def at(self, shape: tuple[int, ...]) -> Inner:
        if shape not in self.known:
            module = nn.Sequential(self.plain)  # a lone torch layer is traced as one call
            graph = fx.symbolic_trace(module)
            shapes = _Shapes(graph)
            with torch.no_grad():
                out = shapes.run(torch.empty(shape, device="meta"))
            self.known[shape] = graph, shapes.shapes, tuple(out.shape)
        return self.known[shape]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(self.at(tuple(x.shape))[2])


class _Inliner(_Builder):
    """Builds ops through lowered layers as if their nodes stood in the outer graph, so that fusion crosses their borders."""

    def _visit(self, node: fx.Node) -> None:
        layer = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, _Lowered):
            self._enter(node, layer)
        else:
            super()._visit(node)

    def _enter(self, node: fx.Node, layer: _Lowered) -> None:
        source = node.all_input_nodes[0]
        graph, shapes, _ = layer.at(self.shapes[source])
        outer, start, last = (self.modules, self.shapes), len(self.ops), self.producer[source]
        self.modules, self.shapes = dict(graph.named_modules()), shapes
        for inner in graph.graph.nodes:
            if inner.op == "placeholder":
                self.producer[inner] = last
                self.single[last] = self.single.get(last, True) and len(inner.users) == 1
            elif inner.op == "output":
                last = self.producer[inner.args[0]]
            else:
                super()._visit(inner)
        self.modules, self.shapes = outer
        for index in range(start, len(self.ops)):
            inside = self.ops[index].name.removeprefix("0").removeprefix(".")
            self.ops[index] = replace(self.ops[index], name=f"{node.target}.{inside}" if inside else str(node.target))
        self._alias(node, last)


class OpGraphs:
    """Op graph and parameter count of `net` for many architectures; equal to those of ``trace(net.extract(arch), input_shape)``.

    `net` must be on the meta device. Raises UserError for layers without an op kind, as `trace` does.
    """

    def __init__(self, net: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.net, self.input_shape = net, input_shape
        self._layers: dict[tuple[int, tuple[int, ...]], _Lowered] = {}
        self._names: dict[int, tuple[str, ...]] = {}

    def __call__(self, arch: Mapping[str, int]) -> tuple[OpGraph, int]:
        """(op graph, number of parameters) of a discrete architecture."""
        with torch.device("meta"), torch.no_grad():
            module = traced(self.net, arch, self._lower, (Chain, OneOf, ElasticDepth)).eval()
            shapes = _Shapes(module)
            shapes.run(torch.empty((1, *self.input_shape)))
        ops = _merge_squeeze_excite(_Inliner(module, shapes.shapes).ops)
        return OpGraph(tuple(ops), self.input_shape), sum(p.numel() for p in module.parameters())

    def _lower(self, layer: Searchable, arch: Mapping[str, int]) -> nn.Module:
        if id(layer) not in self._names:
            found: dict[str, Any] = {}
            for module in layer.modules():
                if isinstance(module, Searchable):
                    found.update((c.name, c) for c in module.choices() if not c.fixed)
            self._names[id(layer)] = tuple(found)
        key = id(layer), tuple(arch[name] for name in self._names[id(layer)])
        if key not in self._layers:
            self._layers[key] = _Lowered(layer.extract(arch))
        return self._layers[key]
