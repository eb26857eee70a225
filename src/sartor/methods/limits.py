"""A limit for any gradient method: on the network that is derived, not a wish."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.arch import Arch
    from sartor.goals import Goals
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.exchange import Bound

#: Parameters by which the methods that have no `terms` take limits themselves; the others take `limits=`.
_OWN = {"enas": "cost= and target=", "proxylessnas-reinforce": "cost= and target="}


def limited(
    method: str | Callable[..., SearchResult],
    net: Any,
    data: SearchData,
    *,
    cost: Cost,
    target: float,
    fill: float = 0.85,
    accept: Callable[[Arch], bool] | None = None,
    others: Sequence[Bound] = (),
    rate: float = 0.05,
    rho: float = 5.0,
    **settings: Any,
) -> SearchResult:
    """``limited(gdas, net, data, cost=latency, target=2.0, seconds=240)``: `method` with ``cost(arch) <= target`` for what it derives.

    During the search the expected cost is pressed to the target (:class:`sartor.recipes.cost_term.Target`); every derivation is the most
    probable architecture whose cost is at most the target, and at least ``fill`` of it where there is any
    (:func:`sartor.recipes.projection.within`). Strengths that are still soft hardly tell the most probable one from the next. So at the end
    of a search that no stop and no rule of its method decided, where the data have validation images, others are drawn from the strengths
    within the limits, and the one that does best on these images, with shared weights, is taken (as ENAS derives: Pham et al. 2018, section
    2.2). At the thin ends of a space the few that fill a target may be bad ones: where the best does no better than random ones within the
    limits, it gives way to the most probable one of any cost, if that does better. A note says so. A learned cost presses by its model and
    is kept in truth; the notes of the result tell how good the model is.

    Args:
        method: that searches by gradient (takes `terms`), or the name of one: :data:`sartor.methods.GRADIENT`.
        cost: over the choices of ``net.space``.
        accept: a further condition on what is derived.
        others: bounds on other costs, for what is derived.
        rate, rho: of the target's control.
        settings: of the method.

    Raises:
        UserError: for another method, a `cost` that is none, and a limit that no architecture keeps, before anything is trained.
    """
    from sartor.methods.derivation import Derivation
    from sartor.methods.parts import relaxed_space
    from sartor.recipes.cost_term import Target

    search = _by_gradient(method)
    check_cost("limited", cost, optional=False)
    check_positive("limited", "target", target)
    space = net.space if getattr(net, "relaxed", None) is not None else relaxed_space(net)[0]  # what cannot be mixed is settled
    derive = Derivation(space, cost, target, fill, accept, others)
    derive({})  # out of reach: say so now
    bounded = copy.copy(net)
    bounded.derive = derive
    term = priced(net, Target(cost, target, rate=rate, rho=rho))
    found = search(bounded, data, terms=[*settings.pop("terms", ()), term], **settings)
    loss = _shared_error(found.net, data)
    if loss is not None and found.stopped is None and not found.by_rule:
        found = _reconsidered(found, *derive.best(found.policy.strengths(), loss), loss)
    return found if cost.fit is None else replace(found, notes=(*found.notes, f"the expected {cost.name} is {cost.fit.sentence()}"))


def _by_gradient(method: str | Callable[..., SearchResult]) -> Callable[..., SearchResult]:
    """The method that was given or named. One that :mod:`sartor.methods` does not know is taken as it is.

    Raises:
        UserError: for an unknown name, and for a method that takes no `terms`, saying how it takes limits.
    """
    from sartor.errors import UserError
    from sartor.methods import GRADIENT, METHODS

    expected = f"limited: expected a method that searches by gradient ({', '.join(n for n in METHODS if n in GRADIENT)})"
    if (method not in METHODS) if isinstance(method, str) else not callable(method):
        raise UserError(f"{expected}, got {method!r}")
    found = METHODS[method] if isinstance(method, str) else method
    bare = getattr(found, "func", found)  # of a functools.partial
    name = next((name for name, known in METHODS.items() if known is bare), None)
    if name is not None and name not in GRADIENT:
        raise UserError(f"{expected}, got {name}, which takes limits itself: give it {_OWN.get(name, 'limits=')}")
    return found


def check_cost(method: str, cost: Any, *, optional: bool = True) -> None:
    """Raises UserError for what is no :class:`sartor.recipes.cost_term.Cost`: the name of a metric alone has no figures."""
    from sartor.errors import UserError
    from sartor.recipes.cost_term import Cost

    if not (isinstance(cost, Cost) or (optional and cost is None)):
        raise UserError(
            f"{method}: cost must be a sartor.recipes.cost_term.Cost, such as Cost.of_macs(net.space, net.factors()), got {cost!r}"
        )


def check_positive(method: str, name: str, value: Any) -> None:
    """Raises UserError for what is no finite number above zero."""
    from sartor.errors import UserError

    if not (isinstance(value, Real) and 0 < float(value) < math.inf):
        raise UserError(f"{method}: {name} must be a finite number above zero, got {value!r}")


def _shared_error(net: Any, data: Any) -> Callable[[Arch], float] | None:
    """Error of a sub-net on validation images with the weights of the trained network; None without images, or where no sub-net can be
    taken out of it (partial channels)."""
    from sartor.errors import UserError
    from sartor.evaluators.supernet import SupernetEvaluator

    if not hasattr(net, "extract") or not len(getattr(data, "validation", ())):
        return None
    try:
        net.extract(next(iter(net.space)))
    except UserError:
        return None
    found: list[SupernetEvaluator] = []  # made when first asked for

    def error(arch: Arch) -> float:
        if not found:
            found.append(SupernetEvaluator(net, data))
        return 1.0 - found[0](arch)["accuracy"]

    return error


def _reconsidered(found: SearchResult, arch: Arch, how: str | None, error: Callable[[Arch], float]) -> SearchResult:
    from sartor.methods.derivation import GAVE_WAY

    if how is None or arch == found.arch:
        return found
    better = f"is better on validation images with the weights of the search (wrong on {error(arch):.1%}, not {error(found.arch):.1%})"
    if how == GAVE_WAY:
        note = f"what fills the limit is no better than random networks within it; the most probable one of any cost {better} and is taken"
    else:
        note = f"of networks drawn from what the search has learned, within the limit, one {better} than the most probable and is taken"
    return replace(found, arch=arch, notes=(*found.notes, note))


def goal_limit(goals: Goals, costs: Sequence[Cost], figures: Callable[[Arch], Mapping[str, float]] | None = None) -> dict[str, Any]:
    """The limits of a search as settings of :func:`limited`: ``limited(gdas, net, data, **goal_limit(goals, costs, job.predicted))``.

    The first limit that has a cost among `costs` (by metric; a throughput by its latency) is pressed for in the loss, others that have one
    bound what is derived; all limits on what `figures` predicts, and it predicts every kind of cost, must hold for it. Limits on accuracy
    are left to others.

    Returns:
        `cost`, `target`, `others` and `accept`; empty where no limit has a cost.
    """
    from sartor.recipes.exchange import Bound

    known = {cost.name: cost for cost in costs}
    found: dict[str, Any] = {}
    for limit in goals.limits:
        name = "latency_ms" if limit.metric == "throughput" else limit.metric
        if name in known and (limit.upper or limit.metric == "throughput"):
            target = 1e3 / limit.bound if limit.metric == "throughput" else limit.bound
            if found:
                found["others"].append(Bound(known[name], target))
            else:
                found = {"cost": known[name], "target": target, "others": []}
    if found and figures is not None:
        predict = figures
        found["accept"] = lambda arch: goals.excess(predict(arch)) == 0.0
    return found


def priced(net: Any, term: Any) -> Any:
    """A cost term over the choices of `net.space` for a policy that may mix over the network's relaxed choices."""
    from sartor.methods.derivation import lifted
    from sartor.recipes.cost_term import Lifted

    if getattr(net, "relaxed", None) is None:
        return term
    return Lifted(term, lambda mixture: lifted(net.space, mixture, normalised=True))


__all__ = ["check_cost", "check_positive", "goal_limit", "limited", "priced"]
