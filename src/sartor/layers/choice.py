"""Named choices and the channel counts that follow from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sartor.errors import UserError

#: What an architecture holds for a choice: the index of an option, or a sparse mixture {index: weight}.
Value = int | Mapping[int, float | Tensor]
AnyArch = Mapping[str, Value]


@dataclass(frozen=True)
class Choice:
    """A named list of options. With one option it is a constant: it is not part of the space and needs no entry in an architecture."""

    name: str
    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise UserError(f"choice '{self.name}' has no options; give at least one")

    @property
    def fixed(self) -> bool:
        return len(self.options) == 1

    def value(self, arch: AnyArch) -> Value:
        """Index or mixture that `arch` holds for this choice (0 if there is only one option).

        Raises:
            UserError: where `arch` has no entry for it.
        """
        if len(self.options) == 1:
            return 0
        try:
            return arch[self.name]
        except KeyError:
            raise UserError(f"the architecture has no choice '{self.name}', which a layer reads; it has: {', '.join(arch)}") from None

    def support(self, arch: AnyArch) -> tuple[int, ...]:
        """Indices that take part."""
        value = self.value(arch)
        return tuple(value) if isinstance(value, Mapping) else (int(value),)

    def pick(self, arch: AnyArch) -> Any:
        """The chosen option itself.

        Raises:
            UserError: where `arch` holds a mixture: some choices (resolution) are sampled, never mixed.
        """
        value = self.value(arch)
        if isinstance(value, Mapping):
            raise UserError(f"choice '{self.name}' must be one option here, but the architecture holds a mixture")
        return self.options[int(value)]


def mix(value: Value, term: Callable[[int], Tensor]) -> Tensor:
    """``sum_i weight_i * term(i)`` over a mixture, or ``term(i)`` for an index: the sparse mixture in one line."""
    if not isinstance(value, Mapping):
        return term(int(value))
    total: Tensor | None = None
    for index, weight in value.items():
        part = weight * term(index)
        total = part if total is None else total + part
    assert total is not None, "an empty mixture has no value"
    return total


class Width:
    """A channel count that depends on choices, e.g. 4 x the width of the stage before.

    `scope` lists the choices, `table` maps their option indices to a number of channels.
    """

    def __init__(self, scope: tuple[Choice, ...], channels: Callable[..., int]) -> None:
        self.scope = tuple(c for c in scope if not c.fixed)
        self.table: dict[tuple[int, ...], int] = {}
        for indices in itertools.product(*(range(len(c.options)) for c in scope)):
            key = tuple(i for i, c in zip(indices, scope, strict=True) if not c.fixed)
            self.table[key] = channels(*(c.options[i] for i, c in zip(indices, scope, strict=True)))
        self.max = max(self.table.values())
        self.min = min(self.table.values())

    @staticmethod
    def of(width: int | Choice | Width) -> Width:
        """A number, a choice among numbers, or a width as it is."""
        if isinstance(width, Width):
            return width
        if isinstance(width, Choice):
            return Width((width,), int)
        return Width((), lambda: int(width))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.scope)

    def at(self, arch: AnyArch) -> int:
        """Channels to compute: the chosen count, or the largest that takes part in a mixture."""
        if not self.scope:
            return self.max
        values: list[Any] = [c.value(arch) for c in self.scope]
        try:  # the discrete case, which is the common one; a mixture is not hashable
            return self.table[tuple(values)]
        except TypeError:
            pass
        return max(self.table[key] for key in itertools.product(*(c.support(arch) for c in self.scope)))

    def mask(self, arch: AnyArch) -> Tensor | None:
        """Weight of each of the `at(arch)` channels, shape `(channels,)`; None for a discrete architecture.

        FBNetV2 (Wan et al. 2020, section 3.1): the channel mask is the mixture of the options' zero-one masks. It belongs after batch
        normalisation and activation: before them its gradient vanishes, because normalisation undoes any scale.
        """
        values = [c.value(arch) for c in self.scope]
        if not any(isinstance(v, Mapping) for v in values):
            return None
        columns: list[Tensor] = []
        channels = torch.arange(self.at(arch))
        for key in itertools.product(*(c.support(arch) for c in self.scope)):
            weight: float | Tensor = 1.0
            for index, value in zip(key, values, strict=True):
                weight = weight * (value[index] if isinstance(value, Mapping) else 1.0)
            columns.append(weight * (channels < self.table[key]).float())
        return torch.stack(columns).sum(0)

    def apply_mask(self, x: Tensor, arch: AnyArch) -> Tensor:
        """`x` `(batch, channels, ...)` with its channels weighted by :meth:`mask`."""
        mask = self.mask(arch)
        return x if mask is None else x * mask.to(x).view(1, -1, *([1] * (x.dim() - 2)))


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never more than 10 % below it (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
