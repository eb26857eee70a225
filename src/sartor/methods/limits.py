"""A limit for any gradient method: on the network that is derived, not a wish."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.arch import Arch, Space
    from sartor.goals import Goals
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.exchange import Bound

Strengths = Mapping[str, Any]

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
    (:func:`sartor.recipes.projection.within`). At the thin ends of a space the few that fill it may be bad ones. So at the end of a search
    that no stop and no rule of its method decided, one that does no better on validation images, with shared weights, than random ones
    within the limits gives way to the most probable one, if that does better; a note says so. A learned cost presses by its model and is
    kept in truth; the notes of the result tell how good the model is.

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
    from sartor.methods.parts import relaxed_space
    from sartor.recipes.cost_term import Target

    search = _by_gradient(method)
    check_cost("limited", cost, optional=False)
    check_positive("limited", "target", target)
    space = net.space if getattr(net, "relaxed", None) is not None else relaxed_space(net)[0]  # what cannot be mixed is settled
    derive = derivation_within(space, cost, target, fill=fill, accept=accept, others=others)
    derive({})  # out of reach: say so now
    bounded = copy.copy(net)
    bounded.derive = derive
    term = priced(net, Target(cost, target, rate=rate, rho=rho))
    found = search(bounded, data, terms=[*settings.pop("terms", ()), term], **settings)
    strengths, loss = found.policy.strengths(), _shared_error(found.net, data)
    if loss is not None and found.stopped is None and not found.by_rule:
        final = derivation_within(space, cost, target, fill=fill, accept=accept, others=others, loss=loss)
        found = _reconsidered(found, final(strengths), cost, target)
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
    found: list[SupernetEvaluator] = []  # made when first asked for, which is seldom

    def error(arch: Arch) -> float:
        if not found:
            found.append(SupernetEvaluator(net, data))
        return 1.0 - found[0](arch)["accuracy"]

    return error


def _reconsidered(found: SearchResult, arch: Arch, cost: Cost, target: float) -> SearchResult:
    if arch == found.arch:
        return found
    filled, used = (f"{float(cost(a)):.4g} of {target:.4g} {cost.unit}".rstrip() for a in (found.arch, arch))
    note = (
        f"the derived network that fills the limit ({cost.name} {filled}) is no better on validation images than random ones within it;"
        f" the most probable one within it, which is better, is taken ({used})"
    )
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
    """How strengths become the most probable architecture within a target.

    Options that the strengths leave out were dropped by the method and come back only if the target cannot be kept without them.

    Args:
        loss: where it is given, the most probable architecture that fills the target gives way to the most probable one within it if that
            has a lower loss, and random ones within the limits have one as low as the filling one's, on average.
    """
    from sartor.errors import UserError
    from sartor.recipes.exchange import Bound
    from sartor.recipes.projection import within

    def most_probable(strengths: Strengths, fill: float) -> Arch:
        whole = lifted(space, strengths)
        kept = {
            name: [space.choices[name][i] for i in allowed if i in strengths[name]]
            for name, allowed in space.allowed.items()
            if isinstance(strengths.get(name), Mapping) and any(i in strengths[name] for i in allowed)
        }
        try:
            return within(space.restrict(kept), whole, cost, target, fill=fill, accept=accept, others=others).arch
        except UserError:
            return within(space, whole, cost, target, fill=fill, accept=accept, others=others).arch

    def derive(strengths: Strengths) -> Arch:
        filling = most_probable(strengths, fill)
        if loss is None or not fill or filling == (free := most_probable(strengths, 0.0)):
            return filling
        if loss(free) >= loss(filling):
            return filling
        rivals = _random_within(space, [Bound(cost, target), *others], accept) or [free]
        return filling if loss(filling) < sum(map(loss, rivals)) / len(rivals) else free

    return derive


def _random_within(
    space: Space, bounds: Sequence[Bound], accept: Callable[[Arch], bool] | None, most: int = 16, draws: int = 800
) -> list[Arch]:
    """Up to `most` architectures within the limits, of so many drawn uniformly; the same every time."""
    import numpy as np

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


def priced(net: Any, term: Any) -> Any:
    """A cost term over the choices of `net.space` for a policy that may mix over the network's relaxed choices."""
    from sartor.recipes.cost_term import Lifted

    if getattr(net, "relaxed", None) is None:
        return term
    return Lifted(term, lambda mixture: lifted(net.space, mixture, normalised=True))


__all__ = ["check_cost", "check_positive", "derivation_within", "goal_limit", "lifted", "limited", "priced"]
