"""A cost that no table can hold, learned from single architectures: a constant, a table of each choice, tables of the pairs that matter.

Such a model is multilinear in the weights of a mixture, so its expectation under independent choices is exact for the model. It is a
functional analysis of variance cut off after pairs, fitted by ridge regression whose strength, like the number of pairs, is chosen by
generalised cross-validation (Golub, Heath & Wahba 1979, "Generalized cross-validation as a method for choosing a good ridge parameter").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.predictors.accuracy import kendall
from sartor.recipes.elimination import Floats, Potential

FEWEST = 40  # distinct architectures, of which a quarter judges
HELD_OUT = 0.25
COVERAGE = 0.9
DRAWS = 16  # of a mixture, that correct its expectation
WORST_ERROR, WORST_TAU = 0.1, 0.6  # a model beyond these would press a search to somewhere else than the limit

_ROUNDS, _PAIRS = 4, 30  # of choosing pairs, and at most so many in each
_SURE = 4.0  # standard deviations above chance of what a pair explains of the residuals
_LARGEST = 100_000  # entries of a pair's table, which has axes for what switches its choices on as well
_STRENGTHS = np.geomspace(1e-12, 1e2, 29)
Term = tuple[str, ...]  # one choice or two


@dataclass(frozen=True)
class Fit:
    """A learned cost on architectures that it did not learn from.

    Attributes:
        learned, held_out: numbers of architectures.
        pairs: of choices that have a table.
        median_error: median of the relative errors, a fraction.
        kendall_tau: rank correlation of learned and true cost.
        bound: at least `COVERAGE` of architectures drawn like these have an error of at most this, in the cost's unit (split conformal
            prediction; Lei et al. 2018, theorem 2.2); infinite where too few were held out.
    """

    learned: int
    held_out: int
    pairs: int
    median_error: float
    kendall_tau: float
    bound: float

    @property
    def good(self) -> bool:
        return self.median_error <= WORST_ERROR and self.kendall_tau >= WORST_TAU

    def sentence(self) -> str:
        """For people."""
        bound = f"{self.bound:,.0f}" if 1e3 <= self.bound < math.inf else f"{self.bound:.4g}"
        return (
            f"learned from {self.learned} architectures ({self.pairs} pairs of choices interact); on {self.held_out} others it is off "
            f"by {self.median_error:.1%} in the median and at most {bound} for {COVERAGE:.0%}, Kendall τ {self.kendall_tau:.2f}"
        )


@dataclass(frozen=True)
class Learned:
    """`constant` and `tables` add up to the model; `least` is the least cost that was seen."""

    constant: float
    tables: tuple[Potential, ...]
    least: float
    fit: Fit


def learn(space: Space, cost: Callable[[Arch], float], known: Callable[[Arch], float], *, samples: int, seed: int) -> Learned:
    """The model of ``cost(arch) - known(arch)``, judged on `cost`.

    Raises:
        UserError: for costs that are not finite, and fewer than `FEWEST` distinct architectures.
    """
    archs = drawn(space, samples, np.random.default_rng(seed))
    if len(archs) < FEWEST:
        raise UserError(f"expected at least {FEWEST} different architectures to learn a cost from, got {len(archs)}: tabulate it instead")
    truth = np.array([float(cost(arch)) for arch in archs])
    if not np.isfinite(truth).all():
        raise UserError("expected finite costs to learn from, got others: leave out the architectures that have none")
    before = np.array([float(known(arch)) for arch in archs])
    design = _Design(space, archs)
    count = round((1 - HELD_OUT) * len(archs))  # the archs are in random order
    terms, constant, weights = _fitted(design, truth - before, count)
    predicted = before + constant + design.columns(terms) @ weights
    pairs = sum(len(term) == 2 for term in terms)
    return Learned(constant, design.tables(terms, weights), float(truth.min()), _judged(predicted[count:], truth[count:], count, pairs))


def drawn(space: Space, count: int, rng: np.random.Generator) -> list[Arch]:
    """At most `count` distinct architectures, every second one with a taste for some labels in all of its choices.

    A search ends at networks that uniform draws hardly ever show, such as those of few kinds of operations.
    """
    labels = sorted({repr(label) for options in space.choices.values() for label in options})
    found: dict[Arch, None] = {}
    for number in range(4 * count):
        tastes = dict(zip(labels, rng.gamma(0.5, size=len(labels)) + 1e-3, strict=True)) if number % 2 else dict.fromkeys(labels, 1.0)
        values = {}
        for name, allowed in space.allowed.items():
            weights = np.array([tastes[repr(space.choices[name][i])] for i in allowed])
            values[name] = int(rng.choice(allowed, p=weights / weights.sum()))
        found[space.canonical(_switched(space, values))] = None
        if len(found) == count:
            break
    return list(found)


def _switched(space: Space, values: Mapping[str, int]) -> dict[str, int]:
    on = space.active(values)
    return {name: value for name, value in values.items() if name in on}


class Draws:
    """`DRAWS` architectures of a mixture, by the same random numbers every time: a mixture that changes little keeps most of them."""

    def __init__(self, space: Space, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.space, self.at = space, {name: rng.random(DRAWS) for name in space.choices}

    def __call__(self, mixture: Mapping[str, Any]) -> list[Arch]:
        picked = {}
        for name in self.space.choices:
            value = mixture[name]
            options = list(value) if isinstance(value, Mapping) else [int(value)]
            edges = np.cumsum([_number(weight) for weight in value.values()] if isinstance(value, Mapping) else [1.0])
            places = np.searchsorted(edges, self.at[name] * edges[-1], side="right")
            picked[name] = [options[min(int(place), len(options) - 1)] for place in places]
        archs = ({name: options[number] for name, options in picked.items()} for number in range(DRAWS))
        return [self.space.canonical(_switched(self.space, arch)) for arch in archs]


def _number(weight: Any) -> float:
    return float(weight.detach() if hasattr(weight, "detach") else weight)


class _Design:
    """Columns of architectures: of a choice one for each option, zero where it is switched off; of a pair their products."""

    def __init__(self, space: Space, archs: list[Arch]) -> None:
        self.space = space
        self.one_hot = space.encode(archs).astype(np.float64)
        self.names = [name for name, options in space.choices.items() if len(options) > 1]
        starts = np.cumsum([0, *(len(space.choices[name]) for name in self.names)])
        self.place = {name: slice(int(a), int(b)) for name, (a, b) in zip(self.names, itertools.pairwise(starts), strict=True)}
        self.singles: list[Term] = [(name,) for name in self.names if self._entries((name,)) <= _LARGEST]
        self.pairs: list[Term] = [pair for pair in itertools.combinations(self.names, 2) if self._entries(pair) <= _LARGEST]

    def columns(self, terms: list[Term]) -> Floats:
        """`(archs, columns of all terms)`."""
        blocks = []
        for term in terms:
            block = self.one_hot[:, self.place[term[0]]]
            for name in term[1:]:
                block = (block[:, :, None] * self.one_hot[:, None, self.place[name]]).reshape(len(block), -1)
            blocks.append(block)
        return np.concatenate(blocks, axis=1)

    def striking(self, residuals: Floats, taken: list[Term]) -> list[Term]:
        """The pairs whose means explain more of the `residuals` (of the first architectures) than chance does, the most first."""
        one_hot = self.one_hot[: len(residuals)]
        sums, counts = (one_hot * residuals[:, None]).T @ one_hot, one_hot.T @ one_hot
        explained = sums**2 / np.maximum(counts, 1.0) / max(float(residuals.var()), 1e-300)
        scores = {}
        for a, b in self.pairs:
            block = explained[self.place[a], self.place[b]]  # its sum is chi-squared by chance, with as many degrees of freedom as cells
            scores[a, b] = (float(block.sum()) - block.size) / math.sqrt(2.0 * block.size)
        ranked = sorted((pair for pair in scores if pair not in taken and scores[pair] > _SURE), key=lambda pair: -scores[pair])
        return list(ranked[:_PAIRS])

    def tables(self, terms: list[Term], weights: Floats) -> tuple[Potential, ...]:
        """Weights of the columns as tables that are zero where a choice of the term is switched off."""
        found, start = [], 0
        for term in terms:
            size = math.prod(len(self.space.choices[name]) for name in term)
            found.append(self._table(term, weights[start : start + size]))
            start += size
        return tuple(table for table in found if table.values.any())

    def _table(self, term: Term, weights: Floats) -> Potential:
        scope = self._scope(term)
        values = weights.reshape([len(self.space.choices[name]) if name in term else 1 for name in scope])
        for name in scope:
            for parent, wanted in self.space.conditions.get(name, {}).items():
                on = np.isin(np.arange(len(self.space.choices[parent])), list(wanted))
                values = values * on.reshape([-1 if other == parent else 1 for other in scope])
        return Potential(scope, values)

    def _scope(self, term: Term) -> Term:
        """The choices of a term and all that switch them on."""
        found, left = set(term), list(term)
        while left:
            news = set(self.space.conditions.get(left.pop(), ())) - found
            found |= news
            left += news
        return tuple(name for name in self.space.choices if name in found)

    def _entries(self, term: Term) -> int:
        return math.prod(len(self.space.choices[name]) for name in self._scope(term))


def _fitted(design: _Design, y: Floats, count: int) -> tuple[list[Term], float, Floats]:
    """Terms, constant and weights, learned from the first `count` architectures: pairs join as long as cross-validation gains by them."""
    terms = list(design.singles)
    best: tuple[float, list[Term], float, Floats] | None = None
    for _ in range(_ROUNDS + 1):
        columns = design.columns(terms)[:count]
        error, constant, weights = ridge(columns, y[:count])
        if best is not None and error >= best[0]:
            break
        best = error, terms, constant, weights
        news = design.striking(y[:count] - constant - columns @ weights, terms)
        if not news:
            break
        terms = [*terms, *news]
    assert best is not None
    return best[1:]


def ridge(columns: Floats, y: Floats) -> tuple[float, float, Floats]:
    """Regularised least squares of `y` `(n,)` on `columns` `(n, k)` with a free constant.

    Returns:
        The generalised cross-validation error (mean square) of the strength that has the least, the constant, and the weights `(k,)`.
    """
    count, mean, centre = len(y), columns.mean(axis=0), float(y.mean())
    centred = columns - mean
    square, vectors = np.linalg.eigh(centred.T @ centred)  # several times quicker than singular values where columns are fewer
    square = np.maximum(square, 0.0)
    kept = 1.0 / (square[:, None] + _STRENGTHS * max(float(square.max(initial=0.0)), 1e-300))  # (k, strengths)
    weights = vectors @ (kept * (vectors.T @ (centred.T @ (y - centre)))[:, None])
    errors = ((y[:, None] - centre - centred @ weights) ** 2).mean(axis=0)
    free = 1.0 - (1.0 + (square[:, None] * kept).sum(axis=0)) / count
    errors /= np.maximum(free, 1e-9) ** 2
    best = int(errors.argmin())
    return float(errors[best]), centre - float(mean @ weights[:, best]), weights[:, best]


def _judged(predicted: Floats, truth: Floats, learned: int, pairs: int) -> Fit:
    errors, scale = np.abs(predicted - truth), float(np.abs(truth).max())
    rank = math.ceil(COVERAGE * (len(truth) + 1))
    return Fit(
        learned=learned,
        held_out=len(truth),
        pairs=pairs,
        median_error=float(np.median(errors / np.maximum(np.abs(truth), max(1e-9 * scale, 1e-300)))),
        kendall_tau=1.0 if errors.max() <= 1e-6 * scale else kendall(predicted, truth),  # what is exact ranks exactly, ties and all
        bound=float(np.sort(errors)[rank - 1]) if rank <= len(truth) else math.inf,
    )


__all__ = ["COVERAGE", "DRAWS", "FEWEST", "Draws", "Fit", "Learned", "drawn", "learn", "ridge"]
