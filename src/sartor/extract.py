"""The user's own network: its space from its layers, its plain counterpart by tracing, and the base class that makes it searchable.

A network is an ordinary torch module whose ``forward(x, arch)`` is written from sartor layers, torch layers and Python branches on `arch`.
Nothing is declared twice: the choices are those of its layers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.hardware.cost import Factor
from sartor.hardware.graph import OpGraph
from sartor.hardware.memory import peak_bytes
from sartor.layers.base import Searchable
from sartor.layers.discover import space_of
from sartor.layers.ops import OpGraphs
from sartor.layers.scopes import learn_factors
from sartor.layers.tracing import traced


def extract(net: nn.Module, arch: Mapping[str, int]) -> nn.Module:
    """The plain torch module that computes ``net(x, arch)`` for a discrete architecture, with weights of its own.

    A network with an `extract` of its own (MobileNet) uses it; any other is traced with torch.fx, so that branches on `arch` are decided
    and every searchable layer becomes ordinary torch layers.

    Raises:
        UserError: if `forward` branches on the values of its input, or `arch` lacks a choice or holds a mixture.
    """
    own = getattr(net, "extract", None)
    plain: nn.Module = own(arch) if callable(own) else traced(net, arch)
    return plain


class Net(Searchable):
    """Base class of a user's own searchable network.

    Write ``__init__(self, input_shape, classes)`` (which calls this one with both) and ``forward(self, x, arch)`` with logits
    `(batch, classes)`; a third argument `drop_path` is passed if `forward` takes it. Everything else follows from the layers: `space`,
    `extract`, `largest`, `smallest`, `costs`, `factors`. Choices that `forward` itself reads are kept as attributes; `conditions` may say
    when they exist. Call :func:`check` once on a new network.

    Attributes:
        input_shape: (C, H, W) of one image.
        classes: number of classes.
    """

    conditions: Mapping[str, Mapping[str, Sequence[Any]]] = {}

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.input_shape: tuple[int, int, int] = (int(input_shape[0]), int(input_shape[1]), int(input_shape[2]))
        self.classes = int(classes)
        self._graphs: dict[Arch, tuple[OpGraph, int]] = {}

    def __call__(self, x: torch.Tensor, arch: Mapping[str, Any], drop_path: float = 0.0) -> torch.Tensor:
        """Logits `(batch, classes)`."""
        out: torch.Tensor = super().__call__(x, arch, drop_path) if self._takes_drop_path else super().__call__(x, arch)
        return out

    @cached_property
    def _takes_drop_path(self) -> bool:
        return "drop_path" in inspect.signature(self.forward).parameters

    @cached_property
    def space(self) -> Space:
        return space_of(self)

    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        """The plain network of a discrete architecture; its batch norms must be calibrated before it is evaluated."""
        return traced(self, self.space.canonical(arch))

    # -- costs -------------------------------------------------------------------------------------------------------

    @cached_property
    def _op_graphs(self) -> OpGraphs:
        return OpGraphs(copy.deepcopy(self).to("meta"), self.input_shape)

    def _graph(self, arch: Mapping[str, int]) -> tuple[OpGraph, int]:
        key = self.space.canonical(arch)
        if key not in self._graphs:
            if len(self._graphs) >= 20_000:
                self._graphs.clear()
            with _explained(self, key):
                self._graphs[key] = self._op_graphs(key)
        return self._graphs[key]

    def graph(self, arch: Mapping[str, int]) -> OpGraph:
        """The fused op graph of a discrete architecture: that of ``trace(self.extract(arch), self.input_shape)``."""
        return self._graph(arch)[0]

    def costs(self, arch: Mapping[str, int]) -> dict[str, float]:
        """Parameters as in torch, multiply-accumulates, and peak bytes of int8 activations, without building the network."""
        graph, numel = self._graph(arch)
        return {"params": float(numel), "macs": float(graph.macs), "peak_bytes": float(peak_bytes(graph))}

    def factors(self) -> list[Factor]:
        """The ops of the network as factors over few choices each; see :func:`sartor.layers.scopes.learn_factors`."""
        return self._factors

    @cached_property
    def _factors(self) -> list[Factor]:
        return learn_factors(self.space, self.graph, (self.smallest, self.largest))

    # -- extremes ----------------------------------------------------------------------------------------------------

    def extreme(self, largest: bool, kinds: Mapping[str, int] | None = None) -> Arch:
        """The architecture with most (or fewest) multiply-accumulates, then parameters, by coordinate ascent; `kinds` are kept fixed."""
        sign = 1.0 if largest else -1.0
        space, fixed = self.space, dict(kinds or {})

        def score(arch: Arch) -> tuple[float, float]:
            graph, numel = self._graph(arch)
            return sign * graph.macs, sign * numel

        best = space.canonical({name: fixed.get(name, allowed[-1 if largest else 0]) for name, allowed in space.allowed.items()})
        improved = True
        while improved:
            improved = False
            for name in space.choices:
                for other in space.neighbours(best, only=name) if name not in fixed else ():
                    if score(other) > score(best):
                        best, improved = other, True
        return best

    def extremes(self, rng: np.random.Generator) -> tuple[Arch, Arch]:
        """The largest and the smallest architecture for one sandwich step, with named options (labels that are text) drawn at random."""
        drawn = {
            name: int(rng.choice(self.space.allowed[name]))
            for name, options in self.space.choices.items()
            if all(isinstance(option, str) for option in options)
        }
        found = []
        for extreme, end in ((self.largest, -1), (self.smallest, 0)):
            on = self.space.active(
                extreme
            )  # what an extreme has switched off, and a drawn option may switch on, takes its last or first option
            values = {name: extreme[name] if name in on else allowed[end] for name, allowed in self.space.allowed.items()}
            found.append(self.space.canonical({**values, **drawn}))
        return found[0], found[1]

    @cached_property
    def largest(self) -> Arch:
        return self.extreme(True)

    @cached_property
    def smallest(self) -> Arch:
        return self.extreme(False)


# -- checking a user's network ---------------------------------------------------------------------------------------------


@contextmanager
def _explained(net: Net, arch: Mapping[str, int]) -> Iterator[None]:
    """What torch says of shapes that do not fit is the mistake of whoever wrote `forward`."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200].rstrip(".")
        at = net.space.labels(arch)
        raise UserError(f"{type(net).__name__}.forward fails for images of {net.input_shape} at {at}: {said}") from error


def check_logits(net: Net, arch: Arch, images: int = 2) -> None:
    """One forward pass at `arch`: refuse a network that fails, or whose output is not `(images, net.classes)`. Cheap, unlike :func:`check`.

    Raises:
        UserError: naming the shape that came, or what torch says.
    """
    training = net.training
    try:
        with _explained(net, arch):
            found = _run(net.eval(), torch.zeros(images, *net.input_shape), arch)
    finally:
        net.train(training)
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    if shape != (images, net.classes):
        at = net.space.labels(arch)
        raise UserError(f"{type(net).__name__}.forward must return logits of shape {(images, net.classes)}, got {shape} at {at}")


def check(net: Net, *, archs: int = 8, batch: int = 8, seed: int = 0, tolerance: float = 1e-4, effects: bool = True) -> None:
    """Verify on random architectures that `net` keeps the promises the search relies on; say in one sentence what is wrong.

    1. no layer remembers an architecture: another forward pass in between changes nothing;
    2. one-hot mixtures equal indices, for every choice that can be mixed;
    3. the extracted plain network computes the same with batch statistics, shares no weights and has none that are dead;
    4. no choice is without effect: each changes the output or the costs of some architecture.

    `tolerance` is relative to the largest output; without `effects` the fourth is left out. A search checks the others before it begins.
    Raises UserError at the first promise that is broken.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *net.input_shape, generator=generator)
    _check_layers(net)
    training, net = net.training, net.eval()
    try:
        sampled = [net.space.sample(rng) for _ in range(archs)]
        for arch in sampled:
            _check_forward(net, x, arch, net.space.sample(rng), tolerance)
            _check_one_hot(net, x, arch, tolerance)
            _check_extract(net, x, arch, tolerance)
        if effects:
            _check_effects(net, x, sampled)
    finally:
        net.train(training)


def _check_layers(net: nn.Module) -> None:
    for path, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"'{path}' is a {type(module).__name__} with running statistics, which many architectures cannot share; "
                "use ElasticBatchNorm2d or ConvBNAct"
            )


def _run(net: Net, x: torch.Tensor, arch: Mapping[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return net(x, arch)


def _differs(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return a.shape != b.shape or not bool((a - b).abs().max() <= tolerance * max(1e-6, float(b.abs().max())))


def _check_forward(net: Net, x: torch.Tensor, arch: Arch, other: Arch, tolerance: float) -> None:
    check_logits(net, arch, len(x))
    first = _run(net, x, arch)
    _run(net, x, other)
    if _differs(_run(net, x, arch), first, tolerance):
        raise UserError(f"{type(net).__name__} gives another output for the same input and architecture: it draws at random or keeps state")


def _check_one_hot(net: Net, x: torch.Tensor, arch: Arch, tolerance: float) -> None:
    expected = _run(net, x, arch)
    for name in net.space.active(arch):
        try:
            mixed = _run(net, x, {**arch, name: {arch[name]: 1.0}})
        except UserError:
            continue  # a choice that an ordinary branch reads is sampled, never mixed
        if _differs(mixed, expected, tolerance):
            raise UserError(f"the mixture {{{arch[name]}: 1.0}} of choice '{name}' does not equal its option {arch[name]} at {arch}")


def _check_extract(net: Net, x: torch.Tensor, arch: Arch, tolerance: float) -> None:
    plain = net.extract(arch).eval()
    for module in plain.modules():
        if isinstance(module, Searchable):
            raise UserError(
                f"extract left a searchable {type(module).__name__} in the plain network; its own extract must return torch layers"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    out = plain(x)
    if _differs(out.detach(), _run(net, x, arch), tolerance):
        raise UserError(
            f"the extracted network does not compute what {type(net).__name__}.forward computes at {arch}; compare the two layer by layer"
        )
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in plain.parameters() if p.numel()}
    if shared:
        raise UserError(f"the extracted network shares weights with {type(net).__name__}; extract must copy them")
    names, parameters = zip(*plain.named_parameters(), strict=True)
    for name, grad in zip(names, torch.autograd.grad(out.square().sum(), parameters, allow_unused=True), strict=True):
        if grad is None:
            raise UserError(f"the extracted network has weights that nothing uses: '{name}' at {arch}")


def _check_effects(net: Net, x: torch.Tensor, sampled: Sequence[Arch]) -> None:
    idle = dict.fromkeys(net.space.choices, False)  # choice -> whether it was seen switched on
    for arch in [*sampled, net.largest, net.smallest]:
        for name in [name for name in idle if name in net.space.active(arch)]:
            idle[name] = True
            others = net.space.neighbours(arch, only=name)
            if not others or any(_matters(net, x, arch, other) for other in others):
                del idle[name]
    ignored = next((name for name, seen in idle.items() if seen), None)
    if ignored is not None:
        raise UserError(f"choice '{ignored}' has no effect: {type(net).__name__}.forward ignores it; use it or take it away")


def _matters(net: Net, x: torch.Tensor, arch: Arch, other: Arch) -> bool:
    if [op.signature for op in net.graph(arch)] != [op.signature for op in net.graph(other)]:
        return True
    return not torch.equal(_run(net, x, arch), _run(net, x, other))


__all__ = ["Net", "check", "check_logits", "extract", "space_of"]
