"""From a searchable module to its plain counterpart by torch.fx: every call of a searchable layer becomes a call of what it extracts to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from sartor.errors import UserError
from sartor.layers.base import Searchable, copy_of
from sartor.layers.choice import AnyArch

#: (searchable layer, architecture) -> the plain module that stands for it
Extract = Callable[[Searchable, Mapping[str, int]], nn.Module]


class _Bound(nn.Module):
    """`net` with its architecture filled in, so that only the input is left to trace."""

    def __init__(self, net: nn.Module, arch: AnyArch) -> None:
        super().__init__()
        self.net, self.arch = net, arch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.forward(x, self.arch)
        return out


class _Tracer(fx.Tracer):
    """Traces the Python of one module. Searchable layers with an `extract` of their own are leaves; others are traced through."""

    def __init__(self, through: tuple[type[Searchable], ...]) -> None:
        super().__init__()
        self.through = through
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
        if type(m).extract is Searchable.extract or isinstance(m, self.through):
            return forward(*args, **kwargs)
        name = self._leaf(m, self.path_of_module(m).removeprefix("net."), arch)
        return self.create_proxy("call_module", name, (next(iter(bound.values())),), {})

    def _leaf(self, m: Searchable, path: str, arch: Mapping[str, int]) -> str:
        """Name under which the plain counterpart stands: one for all calls with the same architecture, which share its weights."""
        key = path, tuple(sorted((c, arch[c]) for c in arch if isinstance(arch[c], int)))
        if key not in self.names:
            name = path
            while name in self.leaves:
                name += "_again"
            self.names[key] = name
            self.leaves[name] = m, arch
        return self.names[key]


def _extract(layer: Searchable, arch: Mapping[str, int]) -> nn.Module:
    return layer.extract(arch)


def traced(
    net: nn.Module, arch: Mapping[str, int], extract: Extract = _extract, through: tuple[type[Searchable], ...] = ()
) -> fx.GraphModule:
    """The plain counterpart of `net`, whose `forward(x, arch)` is Python over searchable layers, ordinary modules and torch functions.

    Branches on `arch` are decided here; weights are copies. The result has the training mode of `net`. Layers of the types `through` are
    traced through although they have an `extract` of their own.

    Raises:
        UserError: where `forward` depends on the values of `x`, or does what torch.fx cannot follow.
    """
    tracer = _Tracer(through)
    bound = _Bound(net, arch)
    try:
        graph = tracer.trace(bound)
    except UserError:
        raise
    except Exception as error:  # whatever a user's forward raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{type(net).__name__}.forward cannot be traced with a fixed architecture: {reason}") from error
    parts: dict[str, Any] = {name: extract(layer, local) for name, (layer, local) in tracer.leaves.items()}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or str(node.target) in tracer.leaves:
            continue
        found: Any = bound
        for step in str(node.target).split("."):
            found = getattr(found, step)
        node.target = str(node.target).removeprefix("net.")
        if node.target not in parts:
            parts[node.target] = copy_of(found) if isinstance(found, nn.Module) else _fresh(found)
    graph.lint()
    return fx.GraphModule(parts, graph, type(net).__name__).train(net.training)


def _fresh(value: Tensor) -> Tensor:
    copied = value.detach().clone()
    return nn.Parameter(copied, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copied


__all__ = ["Extract", "traced"]
