"""A limit for any gradient method: on the network that is derived, not a wish."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.arch import Arch
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost


def limited(
    method: Callable[..., SearchResult],
    net: Any,
    data: SearchData,
    *,
    cost: Cost,
    target: float,
    fill: float = 0.85,
    accept: Callable[[Arch], bool] | None = None,
    **settings: Any,
) -> SearchResult:
    """``limited(gdas, net, data, cost=latency, target=2.0, seconds=240)``: `method` with ``cost(arch) <= target`` for what it derives.

    During the search the expected cost is pressed to the target (:class:`sartor.recipes.cost_term.Target`); every derivation is the most
    probable architecture whose cost is at most the target, and at least ``fill`` of it where there is any
    (:func:`sartor.recipes.projection.within`).

    Args:
        method: of :data:`sartor.methods.METHODS` that searches by gradient (takes `terms`).
        accept: a further condition on what is derived.
        settings: of the method.

    Raises:
        UserError: if no architecture keeps the limit (before anything is trained), or the network derives by a rule of its own.
    """
    from sartor.errors import UserError
    from sartor.methods.parts import relaxed_space
    from sartor.recipes.cost_term import Target
    from sartor.recipes.projection import within

    if getattr(net, "relaxed", None) is not None:
        raise UserError(
            f"{type(net).__name__} derives its architectures by a rule of its own, which takes no limit; search it by evolution"
        )
    space = net.space
    free = relaxed_space(net)[0]  # what cannot be mixed is settled

    def derive(strengths: Mapping[str, int | Mapping[int, float]]) -> Arch:
        return within(free, strengths, cost, target, fill=fill, accept=accept).arch

    derive({name: dict.fromkeys(allowed, 1.0 / len(allowed)) for name, allowed in space.allowed.items()})  # out of reach: say so now
    bounded = copy.copy(net)
    bounded.derive = derive
    return method(bounded, data, terms=[*settings.pop("terms", ()), Target(cost, target)], **settings)
