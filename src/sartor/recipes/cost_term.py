"""Hardware in the loss: exact expected costs of a policy, and the terms by which they enter the loss of the architecture parameters.

A cost is a sum of tables over a few choices each, so its expectation under independent choices is exact and multilinear in the policy's
weights, hence differentiable (ProxylessNAS, Cai et al. 2019, section 3.3.1, equation 2, for tables of any number of choices). Where too
many choices decide an op together the tables are learned: see :mod:`sartor.recipes.surrogate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.hardware.cost import CostModel, Factor, combinations, listable
from sartor.hardware.graph import Op
from sartor.recipes.elimination import Potential
from sartor.recipes.surrogate import Draws, Fit, learn


class Cost:
    """A cost of architectures: ``cost(arch)`` is a float for indices, and for mixtures the exact expectation over independent choices.

    Args:
        name: as in a limit, e.g. "latency_ms".
        tables: over option indices; their sum, and `constant`, is the cost.
        unit: for people.

    The expectation is a 0-dimensional tensor, differentiable in the weights, where weights are tensors; else a float. `fit` is None, unless
    the tables were learned: then mixtures are told by them, see :meth:`learned`, and single architectures by the true cost all the same.
    """

    fit: Fit | None = None
    _true: Callable[[Arch], float] | None = None
    _draws: Callable[[Mapping[str, Any]], list[Arch]] | None = None
    _least = -math.inf

    def __init__(self, name: str, tables: Iterable[Potential], *, constant: float = 0.0, unit: str = "") -> None:
        self.name, self.tables, self.constant, self.unit = name, tuple(tables), float(constant), unit
        self._tensors: dict[tuple[int, torch.dtype], Tensor] = {}
        for table in self.tables:
            if not np.isfinite(table.values).all():
                raise UserError(f"the cost {name} has values that are not finite in its table over {', '.join(table.scope)}; fill them in")

    @staticmethod
    def of_factors(
        space: Space, factors: Iterable[Factor], price: Callable[[Op], float], *, name: str, constant: float = 0.0, unit: str = ""
    ) -> Cost:
        """The price of every op of a network, tabulated: ``Cost.of_factors(net.space, net.factors(), table.price, name="latency_ms",
        constant=table.session_ms(net.input_shape), unit="ms")``. Options that the space does not allow are not priced. What factors of too
        many combinations add is :meth:`learned`, which may be refused.
        """
        factors, tables = tuple(factors), list[Potential]()
        for factor in factors:
            if not listable(factor, space.allowed):
                continue
            values = np.zeros([len(space.choices[c]) for c in factor.scope])
            for at in combinations(factor, space.allowed):
                values[at] = sum(price(op) for op in factor.at(at))
            if values.any():
                tables.append(Potential(factor.scope, values))
        exact = Cost(name, tables, constant=constant, unit=unit)
        if all(listable(factor, space.allowed) for factor in factors):
            return exact
        model = CostModel(factors, price)
        return Cost.learned(space, lambda arch: float(model(arch)) + constant, name=name, unit=unit, known=exact)

    @staticmethod
    def learned(
        space: Space,
        cost: Callable[[Arch], float],
        *,
        name: str,
        unit: str = "",
        known: Cost | None = None,
        samples: int = 2000,
        seed: int = 0,
    ) -> Cost:
        """A cost in which choices interact beyond what tables can hold, from the true cost of `samples` architectures.

        The expectation of a mixture, and its gradient, is that of a model with tables of single choices and of the pairs that matter,
        corrected by its mean error on a few draws of the mixture: at a decided one it is the truth. `fit` tells how good the bare model is
        on a quarter of the samples, which it did not learn from. The cost of a single architecture is the true one.

        Args:
            known: a part of the cost that has exact tables.

        Raises:
            UserError: where the model is too bad to press a search to a limit: off by more than 10 % in the median, or Kendall τ below 0.6.
        """
        known = known if known is not None else Cost(name, [], unit=unit)
        model = learn(space, cost, known, samples=samples, seed=seed)
        if not model.fit.good:
            raise UserError(
                f"the choices of this space interact in {name} beyond what a model of pairs can tell ({model.fit.sentence()}): "
                "search it by a strategy that proposes single architectures (evolution, nsga2, bayes, random), or without this limit"
            )
        found = Cost(name, [*known.tables, *model.tables], constant=known.constant + model.constant, unit=unit)
        found.fit, found._true, found._draws = model.fit, lru_cache(maxsize=10_000)(cost), Draws(space, seed)
        found._least = 0.5 * model.least if model.least > 0 else -math.inf
        return found

    @staticmethod
    def of_params(space: Space, factors: Iterable[Factor]) -> Cost:
        """Parameters as delivered, batch normalisation folded in."""
        return Cost.of_factors(space, factors, lambda op: float(op.params), name="params")

    @staticmethod
    def of_macs(space: Space, factors: Iterable[Factor]) -> Cost:
        """Multiply-accumulates of one inference."""
        return Cost.of_factors(space, factors, lambda op: float(op.macs), name="macs")

    @staticmethod
    def of_table(scope: Sequence[str], values: np.ndarray, *, name: str, unit: str = "") -> Cost:
        """A cost known for every combination of the choices of `scope` (a tabular benchmark): `values` has one axis for each of them."""
        if values.ndim != len(scope):
            raise UserError(f"expected a table with one axis for each of {len(scope)} choices, got {values.ndim} axes")
        return Cost(name, [Potential(tuple(scope), np.asarray(values, dtype=np.float64))], unit=unit)

    def __call__(self, arch: Mapping[str, Any]) -> Any:
        """Cost of indices, or expectation of a mixture {index: weight}.

        Raises:
            UserError: if a choice is missing.
        """
        if self._true is None:
            return self.estimate(arch)
        if not any(isinstance(value, Mapping) for value in arch.values()):
            return float(self._true(Arch(arch)))
        total, draws = self.estimate(arch), self._draws(arch) if self._draws is not None else []
        if draws:
            total = total + math.fsum(float(self._true(draw)) - float(self.estimate(draw)) for draw in draws) / len(draws)
        if total < self._least:  # no architecture is that cheap, and terms take logarithms
            return total * 0.0 + self._least
        return total

    def estimate(self, arch: Mapping[str, Any]) -> Any:
        """What the tables say; of a learned cost neither the true one nor corrected by it, but quick."""
        total: Any = self.constant
        for number, table in enumerate(self.tables):
            try:
                values = [arch[name] for name in table.scope]
            except KeyError as error:
                raise UserError(f"the cost {self.name} depends on the choice {error}, which the architecture has not") from None
            total = total + self._of_table(number, table, values)
        return total

    def _of_table(self, number: int, table: Potential, values: list[Any]) -> Any:
        mixed = [v for v in values if isinstance(v, Mapping)]
        if not mixed:
            return float(table.values[tuple(values)])
        weight = next((w for v in mixed for w in v.values() if isinstance(w, Tensor)), None)
        if weight is None:
            result: Any = table.values
            for value in reversed(values):
                result = result @ _dense(value, result.shape[-1]) if isinstance(value, Mapping) else result[..., value]
            return float(result)
        result = self._tensor(number, table, weight)
        for value in reversed(values):
            if isinstance(value, Mapping):
                picked = result if len(value) == result.shape[-1] and list(value) == list(range(len(value))) else result[..., list(value)]
                result = picked @ torch.stack([w if isinstance(w, Tensor) else weight.new_tensor(float(w)) for w in value.values()])
            else:
                result = result[..., value]
        return result

    def _tensor(self, number: int, table: Potential, like: Tensor) -> Tensor:
        key = number, like.dtype
        if key not in self._tensors:
            self._tensors[key] = torch.as_tensor(table.values, dtype=like.dtype)
        return self._tensors[key].to(like.device)


def _dense(value: Mapping[int, Any], options: int) -> np.ndarray:
    weights = np.zeros(options)
    for index, weight in value.items():
        weights[index] = float(weight)
    return weights


# -- terms -----------------------------------------------------------------------------------------------------------------


class Term(Protocol):
    """How an expected cost enters the loss of the architecture step: ``term(loss, mixture)`` is the loss to descend, `update` is called
    with the mixture after each step. A term's state is in its `state_dict`."""

    cost: Cost

    def __call__(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor: ...

    def update(self, mixture: Mapping[str, Any]) -> None: ...


class Additive(nn.Module):
    """``CE + weight * E[cost]`` (ProxylessNAS, Cai et al. 2019, equation 3; its weight decay belongs to the optimiser).

    Args:
        weight: loss per unit of the cost; with `scale` (e.g. the cost of a reference network) per multiple of it.
    """

    def __init__(self, cost: Cost, weight: float, *, scale: float = 1.0) -> None:
        super().__init__()
        if not (weight >= 0 and scale > 0):
            raise UserError(f"expected a cost weight of zero or more and a scale above zero, got {weight} and {scale}")
        self.cost, self.weight = cost, weight
        self._scale = scale  # a measured latency, as it may be, moves a little: no setting that a checkpoint must agree in

    def forward(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor:
        return loss + self.weight / self._scale * self.cost(mixture)

    def update(self, mixture: Mapping[str, Any]) -> None:
        """A fixed weight has nothing to learn."""


class FBNetTerm(nn.Module):
    """``CE * a * log(LAT)^b`` with LAT in microseconds (FBNet, Wu et al. 2019, section 3.1, equation 2; a = 0.2, b = 0.6).

    Args:
        microseconds: microseconds in one unit of the cost, 1000 for a latency in ms. Other costs need a unit in which they exceed 1.

    Raises:
        UserError: where the expected cost is 1 or less in that unit: its logarithm would not be positive, and its power not a number.
    """

    def __init__(self, cost: Cost, *, a: float = 0.2, b: float = 0.6, microseconds: float = 1000.0) -> None:
        super().__init__()
        self.cost, self.a, self.b, self.microseconds = cost, a, b, microseconds

    def forward(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor:
        latency_us = self.cost(mixture) * self.microseconds
        value = float(torch.as_tensor(latency_us).detach())
        if value <= 1.0:
            raise UserError(
                f"FBNet's loss takes the logarithm of a latency above 1 microsecond, got {value:.3g}; check the unit of {self.cost.name}"
            )
        return loss * self.a * torch.log(torch.as_tensor(latency_us)) ** self.b

    def update(self, mixture: Mapping[str, Any]) -> None:
        """a and b are fixed."""


class Target(nn.Module):
    """Meets ``E[cost] <= target`` by control of its multiplier: an augmented Lagrangian in the log-ratio ``h = log(E[cost] / target)``.

    The loss is ``CE + (max(0, m + rho h)^2 - m^2) / (2 rho)``, whose gradient adds ``max(0, m + rho h)`` times that of h; after each step
    ``m <- max(0, m + rate h)`` (dual ascent; Nocedal & Wright 2006, section 17.4). The log-ratio has no unit, so the same settings serve
    milliseconds and parameters.

    Args:
        target: in the unit of the cost.
        rate: of dual ascent.
        rho: of the quadratic penalty, which damps the oscillation of the multiplier; with 5 a small policy under Adam settled within 5 % of
            its target for learning rates from 0.003 to 0.05, with 1 it overshot.

    Attributes:
        multiplier: buffer, part of the checkpoint.
    """

    multiplier: Tensor

    def __init__(self, cost: Cost, target: float, *, rate: float = 0.05, rho: float = 5.0) -> None:
        super().__init__()
        if not (target > 0 and math.isfinite(target)) or rate < 0 or rho <= 0:
            raise UserError(f"target on {cost.name}: expected target > 0, rate >= 0 and rho > 0, got {target}, {rate} and {rho}")
        self.cost, self.target, self.rate, self.rho = cost, float(target), rate, rho
        self.register_buffer("multiplier", torch.zeros((), dtype=torch.float64))

    def _log_ratio(self, mixture: Mapping[str, Any]) -> Tensor:
        return torch.log(torch.as_tensor(self.cost(mixture)) / self.target)

    def forward(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor:
        multiplier = float(self.multiplier)
        pressure = torch.clamp(multiplier + self.rho * self._log_ratio(mixture), min=0.0)
        return loss + (pressure**2 - multiplier**2) / (2.0 * self.rho)

    @torch.no_grad()
    def update(self, mixture: Mapping[str, Any]) -> None:
        self.multiplier.add_(self.rate * float(self._log_ratio(mixture))).clamp_(min=0.0)


class Lifted(nn.Module):
    """A term that is given ``lift(mixture)``, for networks whose policy mixes over other choices than their architectures have."""

    def __init__(self, term: nn.Module, lift: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        super().__init__()
        self.term, self.lift = term, lift

    def forward(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor:
        out: Tensor = self.term(loss, self.lift(mixture))
        return out

    def update(self, mixture: Mapping[str, Any]) -> None:
        self.term.update(self.lift(mixture))  # type: ignore[operator]  # every term has it


def mnasnet_reward(
    cost: Cost, target: float, *, exponent: float = -0.07, hard: bool = False
) -> Callable[[Mapping[str, int], float], float]:
    """``accuracy * (cost / target)^w`` for a search by reward (MnasNet, Tan et al. 2019, equation 2; also ProxylessNAS' for REINFORCE).

    `exponent` is w; with `hard` it is 0 where the target is met, and -1 where it is not (the paper's other setting).
    """
    if not target > 0 or exponent > 0:
        raise UserError(f"expected a target above zero and an exponent of zero or less, got {target} and {exponent}")

    def reward(arch: Mapping[str, int], accuracy: float) -> float:
        ratio = float(cost(arch)) / target
        power = (0.0 if ratio <= 1 else -1.0) if hard else exponent
        return float(accuracy * ratio**power)

    return reward


__all__ = ["Additive", "Cost", "FBNetTerm", "Lifted", "Target", "Term", "mnasnet_reward"]
