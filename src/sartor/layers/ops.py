"""Op graphs of a user's own network, one architecture after the other: every piece of Python runs once, every layer is lowered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from sartor.errors import UserError
from sartor.hardware._fx import _Builder, _Shapes
from sartor.hardware._patterns import merge
from sartor.hardware.graph import Op, OpGraph
from sartor.layers.base import Chain, ElasticDepth, OneOf, Searchable
from sartor.layers.catalogue import KINDS
from sartor.layers.conv import ConvBNAct
from sartor.layers.tracing import Outline, Recorder, outline, traced_through

CONTAINERS = (Chain, OneOf, ElasticDepth)  # their Python is traced, and their layers are lowered one by one; so is a user's own layer

READY = {*KINDS.values(), ConvBNAct}  # they list their fused ops themselves

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Ready:
    """Fused ops of a layer, wired among themselves; -1 is the layer's input, and the last op makes its output."""

    ops: tuple[Op, ...]
    out: Shape
    numel: int


@dataclass(frozen=True)
class _Lowered:
    """A trace with the shape of every tensor in it. `inside` has the traces of the searchable layers that it calls."""

    graph: fx.Graph
    modules: Mapping[str, nn.Module]
    shapes: Mapping[fx.Node, Shape]
    inside: Mapping[fx.Node, _Lowered | _Ready]
    out: Shape
    numel: int


class _Inliner(_Builder):
    """Builds ops through lowered layers as if their nodes stood in the outer graph, so that fusion crosses their borders."""

    def __init__(self, lowered: _Lowered) -> None:
        self.lowered, self.path = lowered, ""
        view: Any = _View(lowered)
        super().__init__(view, dict(lowered.shapes))

    def _visit(self, node: fx.Node) -> None:
        inner = self.lowered.inside.get(node)
        if inner is None:
            super()._visit(node)
        elif isinstance(inner, _Ready):
            self._append(node, inner)
        else:
            self._enter(node, inner)

    def _append(self, node: fx.Node, inner: _Ready) -> None:
        source, start = self.producer[node.all_input_nodes[0]], len(self.ops)
        for number, op in enumerate(inner.ops):
            inputs = tuple(source if i < 0 else start + i for i in op.inputs)
            self.ops.append(replace(op, inputs=inputs, name=f"{self.path}{node.target}.{op.name}"))
            if op.kind == "conv":
                self.normed.add(start + number)
        self._alias(node, len(self.ops) - 1 if inner.ops else source)

    def _enter(self, node: fx.Node, inner: _Lowered) -> None:
        last = self.producer[node.all_input_nodes[0]]
        outer = self.modules, self.shapes, self.lowered, self.path
        self.modules, self.shapes, self.lowered, self.path = dict(inner.modules), dict(inner.shapes), inner, f"{self.path}{node.target}."
        for step in inner.graph.nodes:
            if step.op == "placeholder":
                self.producer[step] = last
                self.single[last] = self.single.get(last, True) and len(step.users) == 1
            elif step.op == "output":
                last = self.producer[step.args[0]]
            elif step.op != "get_attr":
                self._visit(step)
        self.modules, self.shapes, self.lowered, self.path = outer
        self._alias(node, last)

    def _emit(self, node: fx.Node, sources: list[fx.Node], kind: str, **fields: Any) -> None:
        super()._emit(node, sources, kind, **fields)
        if self.path:
            self.ops[-1] = replace(self.ops[-1], name=self.path + self.ops[-1].name)


class _View:
    """What the builder reads of a traced module."""

    def __init__(self, lowered: _Lowered) -> None:
        self.graph, self.modules = lowered.graph, lowered.modules

    def named_modules(self) -> list[tuple[str, nn.Module]]:
        return list(self.modules.items())


class _Structure:
    """One way through the branches of a network or a container, and the shapes of steps met on it."""

    def __init__(self, found: Outline) -> None:
        self.outline = found
        self.modules = {name: part.eval() for name, part in found.parts.items() if isinstance(part, nn.Module)}
        own = [part for part in found.parts.values() if isinstance(part, nn.Parameter)]
        self.numel = sum(p.numel() for p in (*own, *(p for m in self.modules.values() for p in m.parameters())))
        self.known: dict[tuple[Any, ...], Shape] = {}

    def run(self, node: fx.Node, shapes: Mapping[fx.Node, Shape], values: Mapping[fx.Node, Any]) -> Any:
        """The value of one step that is no searchable layer, on the meta device."""
        if node.op == "get_attr":
            return self.outline.parts[str(node.target)]

        def load(source: fx.Node) -> Any:
            return torch.empty(shapes[source], device="meta") if source in shapes else values[source]

        args, kwargs = fx.node.map_arg(node.args, load), fx.node.map_arg(node.kwargs, load)
        with torch.device("meta"), torch.no_grad():
            if node.op == "call_module":
                return self.modules[str(node.target)](*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]  # call_function: the target is callable


class _SeveralOutputs(Exception):
    """A layer that is Python over others returns several tensors, so that it is no step from one to one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class OpGraphs:
    """Op graph and parameter count of `net` for many architectures; equal to those of ``trace(net.extract(arch), input_shape)``.

    The Python of the network, and of each layer that is Python over others, runs once for each way through its branches: the choices that
    it reads are recorded in a tree. `net` must be on the meta device. Raises UserError for layers without an op kind, as `trace` does.
    """

    def __init__(self, net: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.net, self.input_shape = net, input_shape
        self._names: dict[int, tuple[str, ...]] = {}
        self._plain: dict[tuple[Any, ...], nn.Module] = {}
        self._layers: dict[tuple[Any, ...], _Lowered | _Ready] = {}
        self._trees: dict[int, dict[Any, Any]] = {}  # module -> {choice: {index: subtree}}, {None: structure} at the ends
        self._through: set[int] = set()  # layers that return more than a tensor: part of whatever calls them

    def __call__(self, arch: Mapping[str, int]) -> tuple[OpGraph, int]:
        """(op graph, number of parameters) of a discrete architecture."""
        try:
            lowered = self._resolve(self.net, arch, (1, *self.input_shape))
        except _SeveralOutputs as error:
            self._through.add(id(error.layer))
            self._trees.clear()
            return self(arch)
        return OpGraph(tuple(merge(_Inliner(lowered).ops)), self.input_shape), lowered.numel

    def _resolve(self, module: nn.Module, arch: Mapping[str, int], shape: Shape) -> _Lowered:
        """Trace of a network or container at `arch`, put together from what is known."""
        structure = self._structure(module, arch)
        shapes: dict[fx.Node, Shape] = {}
        values: dict[fx.Node, Any] = {}  # what is no tensor: sizes, tuples of tensors
        inside: dict[fx.Node, _Lowered | _Ready] = {}
        numel: dict[str, int] = {}  # by name: a layer called twice has its weights once
        out = shape
        for node in structure.outline.graph.nodes:
            if node.op == "placeholder":
                shapes[node] = shape
            elif node.op == "output":
                out = shapes.get(node.args[0], shape)
            elif node.op == "call_module" and node.target in structure.outline.leaves:
                layer, local = structure.outline.leaves[node.target]
                local = arch if isinstance(local, Recorder) else local
                inside[node] = self._layer(layer, local, shapes[node.all_input_nodes[0]])
                shapes[node], numel[node.target] = inside[node].out, inside[node].numel
            else:
                self._step(structure, node, shapes, values)
        total = structure.numel + sum(numel.values())
        return _Lowered(structure.outline.graph, structure.modules, shapes, inside, out, total)

    @staticmethod
    def _step(structure: _Structure, node: fx.Node, shapes: dict[fx.Node, Shape], values: dict[fx.Node, Any]) -> None:
        key = node, tuple(shapes.get(source) for source in node.all_input_nodes)
        known = structure.known.get(key)
        if known is not None:
            shapes[node] = known
            return
        value = structure.run(node, shapes, values)
        if not isinstance(value, torch.Tensor):
            values[node] = value
            return
        shapes[node] = tuple(value.shape)
        if None not in key[1]:
            structure.known[key] = shapes[node]

    def _structure(self, module: nn.Module, arch: Mapping[str, int]) -> _Structure:
        tree = place = self._trees.setdefault(id(module), {})
        while place and None not in place:
            (choice, branches), *_ = place.items()
            place = branches.setdefault(arch[choice], {})
        if not place:
            recorder = Recorder(arch)
            with torch.device("meta"), torch.no_grad():
                found = _Structure(outline(module, recorder, lambda layer: id(layer) not in self._through))
            if module is not self.net and not isinstance(next(reversed(found.outline.graph.nodes)).args[0], fx.Node):
                raise _SeveralOutputs(module)
            place = tree
            for choice, index in recorder.reads.items():
                place = place.setdefault(choice, {}).setdefault(index, {})
            place[None] = found
        structure: _Structure = place[None]
        return structure

    def _layer(self, layer: Searchable, arch: Mapping[str, int], shape: Shape) -> _Lowered | _Ready:
        if isinstance(layer, CONTAINERS) or traced_through(layer):
            return self._resolve(layer, arch, shape)
        local = self._key(layer, arch)
        if (*local, shape) not in self._layers:
            if type(layer) in READY:
                self._layers[(*local, shape)] = _ready(layer, arch, shape)
                return self._layers[(*local, shape)]
            if local not in self._plain:
                with torch.device("meta"), torch.no_grad():
                    self._plain[local] = nn.Sequential(layer.extract(arch)).eval()  # in a sequence a lone torch layer is traced as one call
            self._layers[(*local, shape)] = _lower(self._plain[local], shape)
        return self._layers[(*local, shape)]

    def _key(self, layer: Searchable, arch: Mapping[str, int]) -> tuple[Any, ...]:
        """What decides the ops of a layer: what it says itself (`structure(arch)`, equal in twins), or itself and the choices it reads."""
        structure = getattr(layer, "structure", None)
        if callable(structure):
            return type(layer), structure(arch)
        if id(layer) not in self._names:
            read = (c.name for m in layer.modules() if isinstance(m, Searchable) for c in m.choices() if not c.fixed)
            self._names[id(layer)] = tuple(dict.fromkeys(read))
        return id(layer), tuple(arch[name] for name in self._names[id(layer)])


def _ready(layer: Any, arch: Mapping[str, int], shape: Shape) -> _Ready:
    ops = tuple(layer.ops(arch, (shape[2], shape[3])))
    if ops and ops[0].in_shape != shape[1:]:
        raise UserError(f"a {type(layer).__name__} made for {ops[0].in_shape[0]} channels is given {shape[1]}; let both follow one Choice")
    numel = sum(op.params + (op.out_shape[0] if op.kind == "conv" else 0) for op in ops)
    return _Ready(ops, (1, *ops[-1].out_shape) if ops else shape, numel)


def _lower(plain: nn.Module, shape: Shape) -> _Lowered:
    traced = fx.symbolic_trace(plain)
    shapes = _Shapes(traced)
    with torch.no_grad():
        out = shapes.run(torch.empty(shape, device="meta"))
    modules = dict(traced.named_modules())
    return _Lowered(traced.graph, modules, shapes.shapes, {}, tuple(out.shape), sum(p.numel() for p in plain.parameters()))
