"""From the strengths that a search has learned to an architecture within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sartor.arch import Arch, Space
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.exchange import Bound

Strengths = Mapping[str, Any]

#: Architectures that are drawn from the strengths, beside the most probable one, where a loss is there to choose by.
DRAWN = 16


def derivation_within(
    space: Space,
    cost: Cost,
    target: float,
    *,
    fill: float = 0.85,
    accept: Callable[[Arch], bool] | None = None,
    others: Sequence[Bound] = (),
    loss: Callable[[Arch], float] | None = None,
) -> Callable[[Strengths], Arch]:
    """How strengths become the most probable architecture within a target, at least `fill` of it where there is any.

    Options that the strengths leave out were dropped by the method; they come back only if the target cannot be kept, or filled, without.

    Args:
        loss: where it is given, :data:`DRAWN` more are drawn from the strengths, likewise within the target, and the one with the lowest
            loss is taken. It gives way to the most probable one of any cost within the target if that has a lower loss, and random ones
            within the limits have one as low as its own, on average.
    """
    from sartor.errors import UserError
    from sartor.recipes.exchange import Bound
    from sartor.recipes.projection import within

    bounds = [Bound(cost, target), *others]

    def most_probable(strengths: Strengths, fill: float) -> Arch:
        whole = lifted(space, strengths)
        kept = {
            name: [space.choices[name][i] for i in allowed if i in strengths[name]]
            for name, allowed in space.allowed.items()
            if isinstance(strengths.get(name), Mapping) and any(i in strengths[name] for i in allowed)
        }
        narrowed = space.restrict(kept)
        try:
            found = within(narrowed, whole, cost, target, fill=fill, accept=accept, others=others).arch
            if narrowed.allowed == space.allowed or any(float(b.cost(found)) >= fill * b.at_most for b in bounds):
                return found
        except UserError:
            pass
        return within(space, whole, cost, target, fill=fill, accept=accept, others=others).arch

    def drawn(strengths: Strengths) -> list[Arch]:
        rng, found = np.random.default_rng(0), []
        for _ in range(DRAWN):
            try:
                found.append(most_probable(_perturbed(strengths, rng), fill))
            except UserError:  # conditions so hard that they were met from the strengths as they are, and not from here
                break
        return found

    def derive(strengths: Strengths) -> Arch:
        filling = most_probable(strengths, fill)
        if loss is None:
            return filling
        best = min(dict.fromkeys([filling, *drawn(strengths)]), key=loss)
        if not fill or filling == (free := most_probable(strengths, 0.0)) or loss(free) >= loss(best):
            return best
        rivals = _random_within(space, bounds, accept) or [free]
        return best if loss(best) < sum(map(loss, rivals)) / len(rivals) else free

    return derive


def _perturbed(strengths: Strengths, rng: np.random.Generator) -> dict[str, Any]:
    """Strengths under Gumbel noise: their most probable architecture is a draw from them, and within limits nearly one from those within
    (perturb and maximise: Papandreou & Yuille 2011, "Perturb-and-MAP random fields", section 3)."""
    found: dict[str, Any] = {}
    for name, row in strengths.items():
        if isinstance(row, Mapping):
            noisy = {i: float(weight) * math.exp(rng.gumbel()) for i, weight in row.items()}
            total = sum(noisy.values()) or 1.0
            row = {i: weight / total for i, weight in noisy.items()}
        found[name] = row
    return found


def _random_within(
    space: Space, bounds: Sequence[Bound], accept: Callable[[Arch], bool] | None, most: int = 16, draws: int = 800
) -> list[Arch]:
    """Up to `most` architectures within the limits, of so many drawn uniformly; the same every time."""
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        arch = space.sample(rng)
        likely = all(float(bound.cost.estimate(arch)) <= bound.at_most for bound in bounds)  # a true cost that is learned takes long
        if likely and all(bound.holds(arch) for bound in bounds) and (accept is None or accept(arch)):
            found.append(arch)
            if len(found) == most:
                break
    return found


def lifted(space: Space, mixture: Strengths, *, normalised: bool = False) -> dict[str, Any]:
    """A mixture over a network's relaxed choices as one over the choices of its architectures.

    A relaxation may have options that no architecture has (DARTS' `none`), which are left out, and may lack choices that architectures have
    (the two inputs of a node in DARTS), which are uniform: the most probable architecture is then the paper's derivation, the inputs whose
    strongest operations are strongest. `normalised` makes every row sum to 1, as an expectation needs.
    """
    found: dict[str, Any] = {}
    for name, allowed in space.allowed.items():
        value = mixture.get(name)
        if not isinstance(value, Mapping):
            found[name] = int(value) if value in allowed else dict.fromkeys(allowed, 1.0 / len(allowed))
            continue
        row = {i: value[i] for i in allowed if i in value} or dict.fromkeys(allowed, 1.0 / len(allowed))
        if normalised and len(row) < len(value):
            total = sum(row.values())
            row = {i: weight / total for i, weight in row.items()}
        found[name] = row
    return found


__all__ = ["DRAWN", "Strengths", "derivation_within", "lifted"]
