"""What the weight-sharing methods are put together from: a trained supernet, an evaluator of its sub-nets, a search within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.goals import Goals, Limit, parse_limit
from sartor.methods.derivation import Derivation
from sartor.methods.parts import BUDGETS, copied, with_defaults
from sartor.predictors.accuracy import FEWEST, fit
from sartor.recipes.bilevel import SearchResult
from sartor.recipes.cost_term import Cost, mnasnet_reward
from sartor.recipes.doctor import probe_ranks, rank_disorder
from sartor.recipes.exchange import Accept, Bound
from sartor.recipes.one_shot import Exploration, Figure, OneShotResult, check_limits, coarse_to_fine, evolve, sub_net_metrics
from sartor.recipes.sandwich import train_sandwich
from sartor.recipes.shrinking import train_shrinking
from sartor.recipes.single_path import train_single_path
from sartor.recipes.top_k import evolve_top
from sartor.searchers import make_searcher
from sartor.trial import Trial

#: Part of a budget in seconds that training takes; evaluating sub-nets has the rest.
TRAINING = 0.8


_PREDICTED = "predicted"  # origin of a sub-net that was evaluated because its predicted accuracy is good

#: settings that belong to the exploration, not to the training
EXPLORING = ("limits", "costs", "evaluations", "images", "history", "on_trial", "spent", "ranks", "rank_epochs")


@dataclass(frozen=True)
class Exploring:
    """How the trained supernet is searched.

    Args:
        limits: such as "latency_ms<=2" or "params<=500K".
        costs: what is limited beside accuracy, params and macs.
        evaluations: sub-nets to evaluate.
        images: validation images for each; None for all.
        history, on_trial, spent: as in :class:`sartor.recipes.one_shot.Exploration`.
        ranks: networks to train by themselves after the supernet, at least 3, for the rank correlation in the result's notes; 0 for none.
        rank_epochs: of each of these trainings.
    """

    limits: str | Limit | Sequence[str | Limit] = ()
    costs: Sequence[Figure] = ()
    evaluations: int = 1000
    images: int | None = 1000
    history: Sequence[Trial] = ()
    on_trial: Callable[[Trial], None] | None = None
    spent: float | None = None
    ranks: int = 0
    rank_epochs: float = 2.0
    goals: Goals = field(init=False)

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise UserError(f"images= must be at least 1, or None for all, got {self.images}")
        if self.evaluations < 1:
            raise UserError(f"evaluations= must be at least 1, got {self.evaluations}")
        if self.ranks and self.ranks < 3:
            raise UserError(f"ranks= must be 0 or at least 3 networks, got {self.ranks}")
        limits = [self.limits] if isinstance(self.limits, str | Limit) else self.limits
        parsed = tuple(limit if isinstance(limit, Limit) else parse_limit(limit) for limit in limits)
        check_limits(parsed, self.costs)
        object.__setattr__(self, "goals", Goals(("accuracy",), parsed))


def exploring(settings: dict[str, Any]) -> Exploring:
    """Take the settings of the exploration out of a method's settings."""
    return Exploring(**{name: settings.pop(name) for name in EXPLORING if name in settings})


def budgeted(settings: Mapping[str, Any], **paper: Any) -> tuple[dict[str, Any], float | None]:
    """Settings of the training, under the paper's, and the seconds that are left for the exploration (None without a deadline)."""
    found = with_defaults(settings, **paper)
    seconds = found.get("seconds")
    if seconds is None:
        return found, None
    return {**found, "seconds": TRAINING * seconds}, (1 - TRAINING) * seconds


def concluded(
    net: Any, data: Any, trained: Any, how: Exploring, seconds: float | None, search: Callable[[Exploration], Trial], *, seed: int
) -> OneShotResult:
    """Search a trained supernet and put the result together."""
    explore = Exploration(
        sub_net_metrics(net, data, how.costs, images=how.images, seed=seed), how.goals, seconds, on_trial=how.on_trial, history=how.history,
        spent=how.spent,
    )  # fmt: skip
    best = search(explore)
    notes: tuple[str, ...] = ()
    if not how.goals.feasible(best.metrics):
        notes = (f"no evaluated architecture keeps {' and '.join(map(str, how.goals.limits))}; the nearest is given",)
    notes += _rank_notes(net, data, how, seed)
    spent = trained.seconds + math.fsum(t.seconds for t in explore.trials)
    return OneShotResult(best.arch, best.metrics, tuple(explore.trials), trained.steps, spent, net, notes=notes)


def _rank_notes(net: Any, data: Any, how: Exploring, seed: int) -> tuple[str, ...]:
    """What a check of the ranking came to, and the doctor's advice if it is bad."""
    if not how.ranks:
        return ()
    found = probe_ranks(net, data, nets=how.ranks, images=how.images, seed=seed, epochs=how.rank_epochs)
    tau, finding = found.kendall_tau, rank_disorder(found)
    seen = f"shared and stand-alone accuracy of {found.n} networks: Kendall's tau {tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]"
    return (seen, *([str(finding)] if finding else []))


def excess_over_limits(net: Any, how: Exploring) -> Callable[[Arch], float]:
    """By how much an architecture breaks the limits on what is known of it without an evaluation: params, macs and the given costs."""

    def excess(arch: Arch) -> float:
        if not how.goals.limits:
            return 0.0
        return how.goals.excess({**net.costs(arch), **{cost.name: float(cost(arch)) for cost in how.costs}})

    return excess


def agreed(cost: Cost | None, target: float | None, exponent: float, others: Sequence[Bound] = ()) -> list[str | float]:
    """What a checkpoint of a search by :func:`limited_reward` must agree in."""
    if cost is None or target is None:
        return []
    return [cost.name, float(target), exponent, *(part for bound in others for part in (bound.cost.name, float(bound.at_most)))]


def predicted_first(explore: Exploration, net: Any, costs: Sequence[Figure], *, samples: int, rounds: int, seed: int) -> Trial:
    """Learn accuracy from `samples` sub-nets, evolve on the prediction, then evaluate what it likes best (Cai et al. 2020, section 3.4).

    `rounds` generations of 100 are imagined, which takes seconds for any limits; a quarter as many as `samples` are then evaluated. The
    :data:`FEWEST` that a predictor needs are evaluated whatever the deadline; in a smaller space the best of all is taken.
    """
    space = net.space
    evolve(explore, make_searcher("random", space, explore.goals), max(FEWEST, samples), seed=seed, least=FEWEST)
    known = [t for t in explore.trials if t.meta.get("origin") != _PREDICTED]  # those may be in a history, and were no samples
    if len(known) < FEWEST:
        return explore.best()
    predictor = fit(space.encode([t.arch for t in known]), [t.metrics["accuracy"] for t in known], seed=seed)

    def guess(arch: Arch) -> dict[str, float]:
        mean, _ = predictor.predict(space.encode([arch]))
        return {**net.costs(arch), "accuracy": float(mean[0]), **{c.name: float(c(arch)) for c in costs}}

    imagined = Exploration(guess, explore.goals)
    evolve(imagined, make_searcher("genetic", space, explore.goals, population=100), 100 * rounds, batch=100, seed=seed)
    ranked = sorted(imagined.trials, key=lambda t: (explore.goals.violation(t.metrics), -t.metrics["accuracy"]))
    seen = {t.arch for t in known}
    for trial in [t for t in ranked if t.arch not in seen][: max(1, samples // 4)]:
        if explore.over:
            break
        explore(trial.arch, {"origin": _PREDICTED})
    return explore.best()


def refuse_few(samples: int, evaluations: int) -> None:
    """Refuse so few evaluations that no predictor of accuracy can learn from their part, before anything is trained."""
    if samples < FEWEST:
        least = -(-FEWEST * 5 // 4)
        raise UserError(f"evaluations= must be at least {least}, got {evaluations}: four fifths teach a predictor, which needs {FEWEST}")


def limited_reward(
    net: Any,
    cost: Cost | None,
    target: float | None,
    exponent: float,
    *,
    accept: Accept | None = None,
    others: Sequence[Bound] = (),
) -> tuple[Callable[[Mapping[str, Any]], Arch] | None, Accept | None, Callable[[Arch, float], float] | None]:
    """(derive, accept, reward) of a search by reward, whose policy draws from `net.space`: all None without a cost.

    Raises:
        UserError: for one of cost and target without the other, further conditions without them, and a target out of reach.
    """
    if (cost is None) != (target is None):
        raise UserError("a cost and a target go together: give both, or neither")
    if cost is None or target is None:
        if accept is not None or others:
            raise UserError("accept= and others= belong to a limit: give cost= and target= too")
        return None, None, None
    bounds = [Bound(cost, target), *others]
    derive = Derivation(net.space, cost, target, 0.0, accept, others)
    derive({})  # out of reach: say so now

    def fits(arch: Arch) -> bool:
        return all(bound.holds(arch) for bound in bounds) and (accept is None or accept(arch))

    return derive, fits, mnasnet_reward(cost, target, exponent=exponent)


__all__ = [
    "BUDGETS", "Accept", "Cost", "Exploration", "Exploring", "OneShotResult", "SearchResult", "agreed", "budgeted", "coarse_to_fine",
    "concluded", "copied", "evolve", "evolve_top", "excess_over_limits", "exploring", "limited_reward", "make_searcher", "predicted_first",
    "refuse_few", "train_sandwich", "train_shrinking", "train_single_path",
]  # fmt: skip
