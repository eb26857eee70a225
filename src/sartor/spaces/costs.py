"""Costs of a chain of parts without building it: factors for any price, and parameters, multiply-accumulates and peak bytes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.hardware.cost import Factor
from sartor.hardware.graph import Op, OpGraph
from sartor.hardware.memory import peak_bytes
from sartor.layers.choice import Choice

Indices = tuple[int, ...]


class Zeros(dict[str, int]):
    """An architecture of which only some choices are known; the others cannot matter."""

    def __missing__(self, name: str) -> int:
        return 0


@dataclass(frozen=True)
class Part:
    """A stretch of a network that one tensor enters and one leaves: its ops, and the choices that decide them.

    `ops` gives the ops of a discrete architecture; those named `role` depend on the choices `common` and `roles[role]` only. The choices
    `shapeless` (kernel sizes, activations) change no tensor's size.
    """

    common: tuple[Choice, ...]
    roles: Mapping[str, tuple[Choice, ...]]
    ops: Callable[[Mapping[str, int]], list[Op]]
    shapeless: frozenset[str] = frozenset()

    def scope(self, role: str) -> tuple[str, ...]:
        """Names of the choices that decide the ops of one role."""
        return tuple(dict.fromkeys(c.name for c in (*self.common, *self.roles[role]) if not c.fixed))

    def factors(self) -> list[Factor]:
        """One factor a role."""
        return [Factor(self.scope(role), self._of(role)) for role in self.roles]

    def _of(self, role: str) -> Callable[[Indices], tuple[Op, ...]]:
        names = self.scope(role)

        def ops(indices: Indices) -> tuple[Op, ...]:
            return tuple(op for op in self.ops(Zeros(zip(names, indices, strict=True))) if op.name == role)

        return ops

    def peak(self, arch: Mapping[str, int]) -> int:
        """Peak bytes of int8 activations while the part runs."""
        ops = self.ops(arch)
        return peak_bytes(OpGraph(tuple(ops), ops[0].in_shape)) if ops else 0

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the choices that can change the size of a tensor."""
        every = (name for role in self.roles for name in self.scope(role))
        return tuple(name for name in dict.fromkeys(every) if name not in self.shapeless)


class ChainCosts:
    """Costs of networks made of parts one after the other. What was computed for one architecture is looked up for the next.

    Parameters are counted as in torch: batch normalisation has two numbers a channel where a folded convolution has one.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(parts)

    @cached_property
    def factors(self) -> list[Factor]:
        return [factor for part in self.parts for factor in part.factors()]

    @cached_property
    def _sums(self) -> list[tuple[Callable[[dict[str, int]], Indices], dict[Indices, tuple[int, int]], Factor]]:
        return [(_values_of(factor.scope), {}, factor) for factor in self.factors]

    @cached_property
    def _peaks(self) -> list[tuple[Callable[[dict[str, int]], Indices], dict[Indices, int], Part]]:
        return [(_values_of(part.sizes), {}, part) for part in self.parts]

    def __call__(self, arch: Mapping[str, int]) -> dict[str, float]:
        """`params`, `macs` and `peak_bytes` (int8 activations) of a discrete architecture.

        Raises:
            UserError: if a choice is missing or is a mixture.
        """
        values = arch.as_dict() if isinstance(arch, Arch) else dict(arch)
        params = macs = peak = 0
        try:
            for take, known, factor in self._sums:
                key = take(values)
                if key not in known:
                    ops = factor.at(key)
                    known[key] = sum(_numel(op) for op in ops), sum(op.macs for op in ops)
                numel, products = known[key]
                params += numel
                macs += products
            for take, peaks, part in self._peaks:
                key = take(values)
                if key not in peaks:
                    peaks[key] = part.peak(values)
                if peaks[key] > peak:
                    peak = peaks[key]
        except KeyError as error:
            raise UserError(f"the architecture has no choice {error}; costs need every choice") from None
        except TypeError:
            raise UserError("costs are those of one architecture, got a mixture; use sartor.hardware.cost for its expectation") from None
        return {"params": float(params), "macs": float(macs), "peak_bytes": float(peak)}


def _numel(op: Op) -> int:
    return op.params + (op.out_shape[0] if op.kind == "conv" else 0)


def _values_of(names: tuple[str, ...]) -> Callable[[dict[str, int]], Any]:
    """The values of `names` as a tuple, faster than a comprehension."""
    if len(names) > 1:
        return itemgetter(*names)
    return (lambda values: (values[names[0]],)) if names else (lambda values: ())
