"""From a searchable module to its plain counterpart by torch.fx: every call of a searchable layer becomes a call of what it extracts to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from sartor.errors import UserError
from sartor.layers.base import Searchable, copy_of
from sartor.layers.choice import AnyArch


class _Bound(nn.Module):
    """`net` with its architecture filled in, so that only the input is left to trace."""

    def __init__(self, net: nn.Module, arch: AnyArch) -> None:
        super().__init__()
        self.net, self.arch = net, arch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.forward(x, self.arch)
        return out


class _Tracer(fx.Tracer):
    """Traces the Python of one module. Searchable layers with an `extract` of their own are leaves; others are traced through, but for
    those that `apart` names where they are called with one tensor."""

    def __init__(self, apart: Callable[[Searchable], bool]) -> None:
        super().__init__()
        self.apart = apart
        self.leaves: dict[str, tuple[Searchable, Mapping[str, int]]] = {}  # extracted after the trace, which records what happens in it
        self.names: dict[tuple[str, tuple[tuple[str, int], ...]], str] = {}

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(m, Searchable):
            return super().call_module(m, forward, args, kwargs)
        try:
            bound = inspect.signature(m.forward).bind(*args, **kwargs).arguments
            arch = bound["arch"]
        except (TypeError, KeyError):
            path = self.path_of_module(m).removeprefix("net.")
            raise UserError(f"the layer '{path}' ({type(m).__name__}) must be called as layer(x, arch)") from None
        first, tensors = next(iter(bound.values())), _tensors(bound.values())
        if traced_through(m) and not (self.apart(m) and len(tensors) == 1 and tensors[0] is first):
            return forward(*args, **kwargs)
        name = self._leaf(m, self.path_of_module(m).removeprefix("net."), arch)
        return self.create_proxy("call_module", name, (first,), {})

    def _leaf(self, m: Searchable, path: str, arch: Mapping[str, int]) -> str:
        """Name under which the plain counterpart stands: one for all calls with the same architecture, which share its weights."""
        given = arch.whole if isinstance(arch, Recorder) else arch
        key = path, tuple(sorted((c, given[c]) for c in given if isinstance(given[c], int)))
        if key not in self.names:
            name = path
            while name in self.leaves:
                name += "_again"
            self.names[key] = name
            self.leaves[name] = m, arch
        return self.names[key]


class Recorder(Mapping[str, Any]):
    """An architecture that notes which of its choices are read, in order."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self.whole = whole
        self.reads: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        self.reads[name] = value = self.whole[name]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


@dataclass(frozen=True)
class Outline:
    """The trace of one network: its graph, the searchable layers called in it with their architectures, and copies of everything else."""

    graph: fx.Graph
    leaves: dict[str, tuple[Searchable, Mapping[str, Any]]]
    parts: dict[str, nn.Module | Tensor]


def traced_through(layer: Searchable) -> bool:
    """Whether a layer is Python over others, without an `extract` of its own."""
    return type(layer).extract is Searchable.extract


def _tensors(values: Any) -> list[fx.Proxy]:
    """What is traced among arguments, and in lists and tuples of them."""
    nested = (_tensors(value) if isinstance(value, list | tuple) else [value] for value in values)
    return [value for part in nested for value in part if isinstance(value, fx.Proxy)]


def outline(net: nn.Module, arch: AnyArch, apart: Callable[[Searchable], bool] = lambda layer: False) -> Outline:
    """Trace the Python of `net` at `arch`. Layers that `apart` names are leaves as well, where they are called with one tensor.

    Raises:
        UserError: where `forward` depends on the values of `x`, or does what torch.fx cannot follow.
    """
    tracer = _Tracer(apart)
    bound = _Bound(net, arch)
    try:
        graph = tracer.trace(bound)
    except UserError:
        raise
    except Exception as error:  # whatever a user's forward raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{type(net).__name__}.forward cannot be traced with a fixed architecture: {reason}") from error
    parts: dict[str, nn.Module | Tensor] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or str(node.target) in tracer.leaves:
            continue
        found: Any = bound
        for step in str(node.target).split("."):
            found = getattr(found, step)
        node.target = str(node.target).removeprefix("net.")
        if node.target not in parts:
            parts[node.target] = copy_of(found) if isinstance(found, nn.Module) else _fresh(found)
    return Outline(graph, tracer.leaves, parts)


def traced(net: nn.Module, arch: Mapping[str, int]) -> fx.GraphModule:
    """The plain counterpart of `net`, whose `forward(x, arch)` is Python over searchable layers, ordinary modules and torch functions.

    Branches on `arch` are decided here; weights are copies. The result has the training mode of `net`.

    Raises:
        UserError: where `forward` depends on the values of `x`, or does what torch.fx cannot follow.
    """
    found = outline(net, arch)
    leaves = {name: layer.extract(local) for name, (layer, local) in found.leaves.items()}
    return fx.GraphModule({**found.parts, **leaves}, found.graph, type(net).__name__).train(net.training)


def _fresh(value: Tensor) -> Tensor:
    copied = value.detach().clone()
    return nn.Parameter(copied, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copied


__all__ = ["Outline", "Recorder", "outline", "traced", "traced_through"]
