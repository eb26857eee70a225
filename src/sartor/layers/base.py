"""The protocol of searchable layers, and the combinators that do not own weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sartor.layers.choice import AnyArch, Choice, mix


class Searchable(nn.Module):
    """A layer that takes the architecture as an argument: ``layer(x, arch)``.

    No layer stores what is active, so that one set of weights serves many architectures at once. `choices()` lists the choices that
    the layer itself reads; `extract(arch)` returns the plain torch module that computes the same for a discrete architecture. A subclass
    whose `forward` is written from searchable layers and torch functions needs no `extract` of its own: by default it is traced.
    """

    def choices(self) -> tuple[Choice, ...]:
        return ()

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        raise NotImplementedError

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        from sartor.layers.tracing import traced

        return traced(self, arch)


def call(module: nn.Module, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
    """Run a searchable or an ordinary module."""
    out: Tensor = module(x, arch, drop_path) if isinstance(module, Searchable) else module(x)
    return out


def plain(module: nn.Module, arch: Mapping[str, int]) -> nn.Module:
    """The plain counterpart of a searchable or an ordinary module (which is copied, so that weights are not shared)."""
    if isinstance(module, Searchable):
        return module.extract(arch)
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(plain(m, arch) for m in module))
    return copy_of(module)


def copy_of(module: nn.Module) -> nn.Module:
    """A copy with its own weights."""
    import copy

    return copy.deepcopy(module)


class Chain(Searchable):
    """Modules one after the other; unlike `nn.Sequential` it passes the architecture on."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        for step in self.steps:
            x = call(step, x, arch, drop_path)
        return x

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return nn.Sequential(*(plain(step, arch) for step in self.steps))


class OneOf(Searchable):
    """One of several modules, each with weights of its own (DARTS, FBNet, ProxylessNAS).

    A mixture `{index: weight}` computes ``sum_i weight_i * option_i(x)`` over the options that take part, and no others. One with an
    attribute `zero` that is true carries nothing and is not computed beside others.
    """

    def __init__(self, name: str, options: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__()
        named = dict(options) if isinstance(options, Mapping) else {str(i): m for i, m in enumerate(options)}
        self.choice = Choice(name, tuple(named))
        self.options = nn.ModuleList(named.values())

    def choices(self) -> tuple[Choice, ...]:
        return (self.choice,)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        value = self.choice.value(arch)
        if isinstance(value, Mapping):
            value = {i: w for i, w in value.items() if not getattr(self.options[i], "zero", False)} or value
        return mix(value, lambda i: call(self.options[i], x, arch, drop_path))

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return plain(self.options[self.choice.options.index(self.choice.pick(arch))], arch)


class ElasticDepth(Searchable):
    """The first `d` of a list of blocks, `d` being the chosen depth; a mixture weighs the outputs after each depth."""

    def __init__(self, depth: Choice, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.depth = depth
        self.blocks = nn.ModuleList(blocks)

    def choices(self) -> tuple[Choice, ...]:
        return (self.depth,)

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        value = self.depth.value(arch)
        outputs: dict[int, Tensor] = {}
        wanted = {int(self.depth.options[i]): i for i in self.depth.support(arch)}
        if 0 in wanted:
            outputs[wanted[0]] = x
        for number, block in enumerate(list(self.blocks)[: max(wanted)], start=1):
            x = call(block, x, arch, drop_path)
            if number in wanted:
                outputs[wanted[number]] = x
        return mix(value, outputs.__getitem__)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return nn.Sequential(*(plain(block, arch) for block in list(self.blocks)[: int(self.depth.pick(arch))]))


def drop_path_of(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth: zero a residual branch for whole samples `(batch, ...)` with probability `rate`, and scale the others up."""
    keep = 1.0 - rate
    mask = torch.rand(x.shape[0], *([1] * (x.dim() - 1)), device=x.device) < keep
    return x * mask.to(x) / keep


_ACTIVATIONS: dict[str, Any] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "swish": lambda: nn.SiLU(inplace=True),
    "none": nn.Identity,
}
_FUNCTIONS: dict[str, Any] = {
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "hardswish": nn.functional.hardswish,
    "swish": nn.functional.silu,
    "none": lambda x: x,
}


def activation(name: str) -> nn.Module:
    """A plain activation module; the same names as in a space's options: relu, relu6, hardswish, swish, none."""
    module: nn.Module = _ACTIVATIONS[name]()
    return module


def activate(x: Tensor, choice: Choice, arch: AnyArch, *, inplace: bool = False) -> Tensor:
    """`x` through the chosen activation, or the mixture of activations. `inplace` may overwrite `x`, which saves a pass over memory."""
    value = choice.value(arch)
    if inplace and not isinstance(value, Mapping) and choice.options[int(value)] == "relu":  # a mixture needs `x` for its other terms
        return torch.relu_(x)
    return mix(value, lambda i: _FUNCTIONS[choice.options[i]](x))
