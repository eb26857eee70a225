"""A genetic algorithm with one figure of merit: selection, crossover, mutation, and the fitness `a·Acc + b/Lat + c/Size`.

The operators are the textbook's (Eiben & Smith 2015, Introduction to Evolutionary Computing, chapters 4 and 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sartor.arch import Space
from sartor.errors import UserError
from sartor.goals import Goals, metric_name, metric_of
from sartor.searchers.constraints import deductions
from sartor.searchers.generations import Generations
from sartor.searchers.variation import whole
from sartor.trial import Proposal, Trial


@dataclass(frozen=True)
class _Population:
    """Members, best first, with their figures."""

    trials: tuple[Trial, ...] = ()
    fitness: tuple[float, ...] = ()
    violation: tuple[float, ...] = ()


class GeneticAlgorithm:
    """Selection by fitness, uniform crossover, mutation, and an elite that survives; otherwise the children replace their parents.

    Feasible before infeasible, less violation before more, then more fitness before less. Trials that lack a metric come last.

    Args:
        population: members, and children a generation; at least 2.
        elite: how many of the best go on beside the children; 0 is the plain generational model.
        selection: "tournament" (the best of `tournament` drawn with replacement) or "roulette" (proportional to the fitness above that of
            the worst feasible member).
        fitness: metric -> weight: `weight * value` where more is better, `weight / value` where less is better, so
            `{"accuracy": a, "latency_ms": b, "file_bytes": c}` is `a·Acc + b/Lat + c/Size` with latency in ms and size in bytes. None
            for weight 1 on each objective.
        crossover_rate, mutation_rate: as in :class:`Generations`.

    Raises:
        UserError: for settings out of range, and unknown metrics.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        population: int = 50,
        elite: int = 2,
        selection: Literal["tournament", "roulette"] = "tournament",
        tournament: int = 3,
        fitness: Mapping[str, float] | None = None,
        crossover_rate: float = 0.9,
        mutation_rate: float | None = None,
    ) -> None:
        whole("genetic", "tournament", tournament, 1)
        whole("genetic", "elite", elite, 0)
        if selection not in ("tournament", "roulette"):
            raise UserError(f"genetic: selection must be 'tournament' or 'roulette', got {selection!r}")
        if elite > population:
            raise UserError(f"genetic: elite must not exceed the population of {population}, got {elite}")
        weights = {metric_name(name): float(w) for name, w in (fitness or dict.fromkeys(goals.objectives, 1.0)).items()}
        if not all(math.isfinite(w) and w >= 0 for w in weights.values()) or not any(weights.values()):
            raise UserError(f"genetic: the weights of the fitness must be finite, at least 0 and not all 0, got {weights}")
        self._goals, self._weights = goals, weights
        self._size, self._elite, self._selection, self._tournament = population, elite, selection, tournament
        self._generations = Generations(
            "genetic",
            space,
            size=population,
            start=_Population,
            select=self._select,
            mates=lambda members, rng: (self._pick(members, rng), self._pick(members, rng)),
            crossover_rate=crossover_rate,
            mutation_rate=mutation_rate,
        )

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        return self._generations.ask(history, pending, n, rng)

    def fitness(self, trial: Trial) -> float:
        """`a·Acc + b/Lat + c/Size`, less what softer limits deduct; -inf where a metric is missing, or a divisor not above zero."""
        total = 0.0
        for name, weight in self._weights.items():
            value = trial.metrics.get(name, math.nan) if trial.status == "complete" else math.nan
            more = metric_of(name).direction == "max"
            if weight and (not math.isfinite(value) or (not more and value <= 0)):
                return -math.inf
            total += (weight * value if more else weight / value) if weight else 0.0
        return total - float(deductions(self._goals, [trial])[0])

    def _select(self, parents: _Population, children: list[Trial], generation: int) -> _Population:
        """The elite of all and, beside it, the best of the children: `population` in all."""
        merged = [*parents.trials, *children]
        fitness = [*parents.fitness, *map(self.fitness, children)]
        violations = self._goals.table(merged)[1].tolist()
        order = sorted(range(len(merged)), key=lambda i: (violations[i], -fitness[i]))
        elite = order[: self._elite]
        young = [i for i in order[self._elite :] if i >= len(parents.trials)]
        kept = sorted([*elite, *young][: self._size], key=lambda i: (violations[i], -fitness[i]))
        return _Population(tuple(merged[i] for i in kept), tuple(fitness[i] for i in kept), tuple(violations[i] for i in kept))

    def _pick(self, members: _Population, rng: np.random.Generator) -> Trial:
        count = len(members.trials)
        if self._selection == "tournament":
            return members.trials[int(rng.integers(count, size=self._tournament).min())]  # they are sorted: the first is the best
        fitness = np.array([f if v == 0 else -math.inf for f, v in zip(members.fitness, members.violation, strict=True)])
        sane = np.isfinite(fitness)
        share = np.where(sane, fitness - (fitness[sane].min() if sane.any() else 0.0), 0.0)
        total = share.sum()
        return members.trials[int(rng.choice(count, p=share / total)) if total > 0 else int(rng.integers(count))]
