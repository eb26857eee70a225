"""A limit for any gradient method: on the network that is derived, not a wish."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.arch import Arch, Space
    from sartor.goals import Goals
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.exchange import Bound

Strengths = Mapping[str, Any]


def limited(
    method: Callable[..., SearchResult],
    net: Any,
    data: SearchData,
    *,
    cost: Cost,
    target: float,
    fill: float = 0.85,
    forgo: float = math.inf,
    accept: Callable[[Arch], bool] | None = None,
    others: Sequence[Bound] = (),
    rate: float = 0.05,
    rho: float = 5.0,
    **settings: Any,
) -> SearchResult:
    """``limited(gdas, net, data, cost=latency, target=2.0, seconds=240)``: `method` with ``cost(arch) <= target`` for what it derives.

    During the search the expected cost is pressed to the target (:class:`sartor.recipes.cost_term.Target`); every derivation is the most
    probable architecture whose cost is at most the target, and at least ``fill`` of it where there is any
    (:func:`sartor.recipes.projection.within`). A learned cost presses by its model and is kept in truth; the notes of the result tell how
    good the model is.

    Args:
        method: of :data:`sartor.methods.METHODS` that searches by gradient (takes `terms`).
        cost: over the choices of ``net.space``.
        forgo: log-probability, in nats, that filling the target may cost; 3 is an architecture 20 times less probable. Without bound, a
            target where few architectures are is filled by one that the search may have ruled out.
        accept: a further condition on what is derived.
        others: bounds on other costs, for what is derived.
        rate, rho: of the target's control.
        settings: of the method.

    Raises:
        UserError: if no architecture keeps the limit, before anything is trained.
    """
    from sartor.methods.parts import relaxed_space
    from sartor.recipes.cost_term import Lifted, Target

    space = net.space if getattr(net, "relaxed", None) is not None else relaxed_space(net)[0]  # what cannot be mixed is settled
    derive = derivation_within(space, cost, target, fill=fill, forgo=forgo, accept=accept, others=others)
    derive({})  # out of reach: say so now
    bounded = copy.copy(net)
    bounded.derive = derive
    term = Lifted(Target(cost, target, rate=rate, rho=rho), lambda mixture: lifted(space, mixture, normalised=True))
    found = method(bounded, data, terms=[*settings.pop("terms", ()), term], **settings)
    return found if cost.fit is None else replace(found, notes=(*found.notes, f"the expected {cost.name} is {cost.fit.sentence()}"))


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

        def accept(arch: Arch) -> bool:
            values = predict(arch)
            return all(limit.excess(values) <= 0 for limit in goals.limits if limit.key in values)

        found["accept"] = accept
    return found


def derivation_within(
    space: Space,
    cost: Cost,
    target: float,
    *,
    fill: float = 0.85,
    forgo: float = math.inf,
    accept: Callable[[Arch], bool] | None = None,
    others: Sequence[Bound] = (),
) -> Callable[[Strengths], Arch]:
    """How strengths become the most probable architecture within a target.

    Options that the strengths leave out were dropped by the method and come back only if the target cannot be kept without them.
    """
    from sartor.errors import UserError
    from sartor.recipes.projection import within

    def derive(strengths: Strengths) -> Arch:
        whole = lifted(space, strengths)
        kept = {
            name: [space.choices[name][i] for i in allowed if i in strengths[name]]
            for name, allowed in space.allowed.items()
            if isinstance(strengths.get(name), Mapping) and any(i in strengths[name] for i in allowed)
        }
        try:
            return within(space.restrict(kept), whole, cost, target, fill=fill, forgo=forgo, accept=accept, others=others).arch
        except UserError:
            return within(space, whole, cost, target, fill=fill, forgo=forgo, accept=accept, others=others).arch

    return derive


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


__all__ = ["derivation_within", "goal_limit", "lifted", "limited"]
