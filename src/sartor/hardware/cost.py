"""Costs as sums of factors: exact on discrete architectures, the exact expectation on independent mixtures.

With p_c the mixture of choice c, E[cost] = sum over factors f of sum over indices i of f's scope of prod_c p_c(i_c) * price(f, i).
Linearity of the expectation makes it exact for any number of factors; independence is needed only inside one factor's scope.
This is ProxylessNAS' expected latency (Cai et al. 2019, section 3.3.1, equation 2) for factors of any number of choices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError
from sartor.hardware.graph import Op

if TYPE_CHECKING:
    from torch import Tensor

Indices = tuple[int, ...]
Mixture = Mapping[int, Any]  # {option index: weight}, weights are floats or 0-dimensional tensors


@dataclass(frozen=True)
class Factor:
    """The ops that the choices in `scope` decide together. `ops` receives the indices of the options in scope order."""

    scope: tuple[str, ...]
    ops: Callable[[Indices], tuple[Op, ...]]
    _cache: dict[Indices, tuple[Op, ...]] = field(default_factory=dict, compare=False, repr=False)

    def at(self, indices: Indices) -> tuple[Op, ...]:
        """`ops(indices)`, computed once."""
        ops = self._cache.get(indices)
        if ops is None:
            ops = self._cache[indices] = tuple(self.ops(indices))
        return ops


MOST_COMBINATIONS = 1_000_000  # of options in one factor, beyond which nobody would wait for their list


def listable(factor: Factor, allowed: Mapping[str, Sequence[int]]) -> bool:
    """Whether the factor's choices have few enough combinations, of the options allowed, to list them."""
    return math.prod(len(allowed[name]) for name in factor.scope) <= MOST_COMBINATIONS


def combinations(factor: Factor, allowed: Mapping[str, Sequence[int]]) -> Iterator[Indices]:
    """Every combination of the factor's choices, of the options allowed.

    Raises:
        UserError: where they are too many, as in a space whose operations depend on the wiring of the whole network.
    """
    if not listable(factor, allowed):
        raise UserError(
            f"the operations of this space depend on {len(factor.scope)} choices together, which cannot be listed: search it on a device "
            "without restrictions of the space, and learn its expected cost (sartor.recipes.cost_term.Cost.learned)"
        )
    return itertools.product(*(allowed[name] for name in factor.scope))


class CostModel:
    """`cost` with prices remembered per factor and indices, for pricing many architectures with one price."""

    def __init__(self, factors: Iterable[Factor], price: Callable[[Op], float]) -> None:
        self.factors = tuple(factors)
        self.price = price
        self._prices: list[dict[Indices, float]] = [{} for _ in self.factors]

    def __call__(self, arch: Mapping[str, Any]) -> float | Tensor:
        """Cost of `arch`: choice -> option index, or {index: weight} for a mixture.

        Returns a float; a 0-dimensional tensor, differentiable in the weights, when weights are tensors.
        Raises UserError when a choice of a scope is missing.
        """
        total: Any = 0.0
        arch = dict(arch)  # a plain dictionary is read several times faster than other mappings
        for number, factor in enumerate(self.factors):
            values = _scope_values(factor, arch)
            try:
                total = total + self._prices[number][values]
                continue  # the common case of a search: a discrete architecture, priced before
            except (KeyError, TypeError):  # a mapping cannot be hashed
                pass
            if any(isinstance(value, Mapping) for value in values):
                total = total + self._expectation(number, [v if isinstance(v, Mapping) else {v: 1.0} for v in values])
            else:
                total = total + self._price(number, values)
        return total

    def _price(self, number: int, indices: Indices) -> float:
        known = self._prices[number]
        value = known.get(indices)
        if value is None:
            value = known[indices] = float(sum(self.price(op) for op in self.factors[number].at(indices)))
        return value

    def _expectation(self, number: int, mixtures: list[Mixture]) -> Any:
        import numpy as np

        shape = [len(mixture) for mixture in mixtures]
        scope = self.factors[number].scope
        at = combinations(self.factors[number], {name: list(mixture) for name, mixture in zip(scope, mixtures, strict=True)})
        prices = [self._price(number, indices) for indices in at]
        result: Any = np.array(prices, dtype=np.float64).reshape(shape)
        for mixture in reversed(mixtures):
            result = _contract_last(result, list(mixture.values()))
        return result if hasattr(result, "backward") else float(result)


def _scope_values(factor: Factor, arch: Mapping[str, Any]) -> Indices:
    try:
        return tuple([arch[choice] for choice in factor.scope])
    except KeyError as error:
        raise UserError(
            f"expected the architecture to set the choice {error.args[0]!r}, got only {', '.join(sorted(arch)) or 'nothing'}"
        ) from None


def _contract_last(values: Any, weights: list[Any]) -> Any:
    """`values` (..., n) times `weights` (n): (...). Tensors win over arrays, so gradients reach every weight."""
    import numpy as np

    tensor = next((weight for weight in weights if hasattr(weight, "backward")), None)
    if tensor is None and not hasattr(values, "backward"):
        return values @ np.array([float(weight) for weight in weights])
    import torch  # already loaded: a tensor exists

    if tensor is None:
        return values @ torch.tensor([float(weight) for weight in weights], dtype=values.dtype, device=values.device)
    vector = torch.stack([w if hasattr(w, "backward") else tensor.new_tensor(float(w)) for w in weights])
    if not hasattr(values, "backward"):
        values = torch.as_tensor(values, dtype=vector.dtype, device=vector.device)
    return values @ vector


def cost(factors: Iterable[Factor], price: Callable[[Op], float], arch: Mapping[str, Any]) -> float | Tensor:
    """Sum over `factors` of the price of their ops at `arch`; see `CostModel`, which is faster for many architectures.

    `arch` maps each choice to an option index, or to {index: weight}: then the exact expectation over independent choices.
    """
    return CostModel(factors, price)(arch)


def all_ops(factors: Iterable[Factor], options: Mapping[str, int]) -> list[Op]:
    """Every op that the factors can produce, one for each signature; `options` is the number of options of each choice.

    This is what a latency table of a whole space holds: `table.ensure(all_ops(net.factors(), {c: len(o) for c, o in choices.items()}))`.
    """
    found: dict[str, Op] = {}
    for factor in factors:
        for indices in combinations(factor, {name: range(count) for name, count in options.items()}):
            for op in factor.at(indices):
                found.setdefault(op.signature, op)
    return list(found.values())
