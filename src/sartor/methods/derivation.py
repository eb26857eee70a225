"""From the strengths that a search has learned to an architecture within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.cost_term import Cost
from sartor.recipes.exchange import Bound
from sartor.recipes.projection import within

Strengths = Mapping[str, Any]

#: Architectures that are drawn from the strengths, beside the most probable one, where a loss is there to choose by.
DRAWN = 16
_ASKED = 10_000  # architectures whose further condition is asked for, after which no more are drawn: two derivations at their worst

#: How an architecture was found that is not the most probable one.
BY_DRAWING, GAVE_WAY = "by drawing", "gave way"


@dataclass(frozen=True)
class Derivation:
    """How strengths become the most probable architecture within a target, at least `fill` of it where there is any.

    Options that the strengths leave out were dropped by the method; they come back only if the target cannot be kept, or filled, without.

    Args:
        accept: a further condition on what is derived.
        others: bounds on other costs.
    """

    space: Space
    cost: Cost
    target: float
    fill: float = 0.85
    accept: Callable[[Arch], bool] | None = None
    others: Sequence[Bound] = ()

    def __call__(self, strengths: Strengths) -> Arch:
        return self._most_probable(strengths, self.fill, self.accept)

    def best(self, strengths: Strengths, loss: Callable[[Arch], float]) -> tuple[Arch, str | None]:
        """The architecture with the lowest loss of the most probable one and :data:`DRAWN` drawn from the strengths, all within the target.

        Where random ones within the limits have a loss as low on average, which the best of many seldom meets, the most probable one of any
        cost is taken instead if that has a lower one.

        Returns:
            The architecture, and how it was found where it is not the most probable one: :data:`BY_DRAWING` or :data:`GAVE_WAY`.
        """
        known: dict[Arch, bool] = {}
        accept = self.accept

        def remembered(arch: Arch) -> bool:
            if arch not in known:
                known[arch] = accept is None or accept(arch)
            return known[arch]

        filling = self._most_probable(strengths, self.fill, remembered)
        drawn = self._drawn(strengths, remembered, known)
        best = min(dict.fromkeys([filling, *drawn]), key=loss)
        how = None if best == filling else BY_DRAWING
        if not self.fill or filling == (free := self._most_probable(strengths, 0.0, remembered)) or loss(free) >= loss(best):
            return best, how
        rivals = _random_within(self.space, [Bound(self.cost, self.target), *self.others], remembered) or [free]
        return (best, how) if loss(best) < sum(map(loss, rivals)) / len(rivals) else (free, GAVE_WAY)

    def _drawn(self, strengths: Strengths, accept: Callable[[Arch], bool], asked: Mapping[Arch, bool]) -> list[Arch]:
        rng, found = np.random.default_rng(0), list[Arch]()
        while len(found) < DRAWN and len(asked) <= _ASKED:
            try:
                found.append(self._most_probable(_perturbed(strengths, rng), self.fill, accept))
            except UserError:  # conditions so hard that they were met from the strengths as they are, and not from here
                break
        return found

    def _most_probable(self, strengths: Strengths, fill: float, accept: Callable[[Arch], bool] | None) -> Arch:
        space, whole = self.space, lifted(self.space, strengths)
        kept = {
            name: [space.choices[name][i] for i in allowed if i in strengths[name]]
            for name, allowed in space.allowed.items()
            if isinstance(strengths.get(name), Mapping) and any(i in strengths[name] for i in allowed)
        }
        narrowed, bounds = space.restrict(kept), [Bound(self.cost, self.target), *self.others]
        try:
            found = within(narrowed, whole, self.cost, self.target, fill=fill, accept=accept, others=self.others).arch
            if narrowed.allowed == space.allowed or any(float(b.cost(found)) >= fill * b.at_most for b in bounds):
                return found
        except UserError:
            pass
        return within(space, whole, self.cost, self.target, fill=fill, accept=accept, others=self.others).arch


def _perturbed(strengths: Strengths, rng: np.random.Generator) -> dict[str, Any]:
    """Strengths under Gumbel noise: their most probable architecture is a draw from them, and within limits nearly one from those within
    (perturb and maximise: Papandreou & Yuille 2011, "Perturb-and-MAP random fields", section 3).

    The strongest option of a choice has the sum of its row: 1 for probabilities, so that what a choice switches on does not make it less
    likely; what strengths say of edges against each other (PC-DARTS, FairDARTS) stays."""
    found: dict[str, Any] = {}
    for name, row in strengths.items():
        if isinstance(row, Mapping):
            noisy = {i: float(weight) * math.exp(rng.gumbel()) for i, weight in row.items()}
            scale = sum(float(weight) for weight in row.values()) / (max(noisy.values()) or 1.0)
            row = {i: weight * scale for i, weight in noisy.items()}
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


__all__ = ["BY_DRAWING", "DRAWN", "GAVE_WAY", "Derivation", "Strengths", "lifted"]
