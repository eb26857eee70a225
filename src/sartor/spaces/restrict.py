"""A space without what a device does badly: `restrict(net, spec)` keeps the options of which every architecture conforms.

What conforming means (:class:`Rules`): every operation runs on the device and none is marked unfriendly there; channels are a multiple of
its SIMD lanes, so that no lane idles (4 for fp32 and 16 for int8 in 128-bit NEON, 128 for int8 in HVX, a warp on a GPU); feature maps fit
the cache, or a microcontroller's SRAM; blocks expand no further than int8 ranges bear. What is unfriendly and has no alternative stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from sartor.arch import Space
from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph
from sartor.hardware.spec import DeviceSpec
from sartor.spaces.by_operations import Operations
from sartor.spaces.rules import MAX_EXPANSION, Removed, Rules


class Restriction(NamedTuple):
    """The space that is left (option indices stay as they were), everything that is not in it any more, and what is `kept` although the
    device does it badly, because every network has it: one sentence for each."""

    restricted: Space
    removed: list[Removed]
    kept: list[str]


def restrict(
    space_or_net: Any,
    spec: DeviceSpec,
    *,
    precision: str = "int8",
    cache_level: int | None = None,
    max_expansion: float | None = MAX_EXPANSION,
    waive: Collection[str] = (),
) -> Restriction:
    """The space without options that a device does badly, what was removed: (choice, option, reason), and what had to stay.

    Of a network (anything with `space` and `factors()`), every architecture that is left conforms in all of its operations: options are
    judged by their name first, then by the operations that their combinations lead to; of a combination that does not conform, the option
    that is most often part of such ones goes. An unfriendly op without an alternative stays, and is told (`kept`). A bare
    :class:`Space` has no operations, so only names are judged there (`s1.width`, `s2.act`, `s2.se`, `s3.b0.kernel`, `s3.b0.expand`). The
    network itself is not changed: give it the new space. `waive` names rules of convenience that are not kept: "lanes", "maps".

    Raises:
        UserError: if what has no alternative left does not run there or breaks a rule, naming it.
    """
    rules = Rules.of(spec, precision, cache_level=cache_level, max_expansion=max_expansion, waive=waive)
    space: Space = space_or_net if isinstance(space_or_net, Space) else space_or_net.space
    allowed = {name: list(indices) for name, indices in space.allowed.items()}
    removed = _by_name(space, rules, allowed)
    kept: list[str] = []
    if not isinstance(space_or_net, Space):
        operations = Operations(space, list(space_or_net.factors()), rules, allowed)
        operations.settle()
        removed += operations.removed
        kept = list(operations.kept.values())
    keep = {name: [space.choices[name][i] for i in indices] for name, indices in allowed.items()}
    return Restriction(space.restrict(keep), removed, kept)


def conform(net: Any, spec: DeviceSpec, precision: str = "int8") -> tuple[Restriction, list[str]]:
    """:func:`restrict` as a search does it: where nothing would be left, rules of convenience give way; what does not run there does not.

    Returns:
        the restriction, and why each rule gave way.

    Raises:
        UserError: as :func:`restrict`, when no rule is left to give way.
    """
    given_up: list[str] = []
    for waive in ((), ("lanes",), ("lanes", "maps")):
        try:
            return restrict(net, spec, precision=precision, waive=waive), given_up
        except UserError as error:
            given_up.append(str(error))
    raise UserError(given_up[-1])


def objections(ops: OpGraph | Iterable[Op], rules: Rules) -> list[tuple[str, str]]:
    """(op name, reason) of every op that does not conform."""
    return [(op.name or op.kind, reason) for op in ops if (reason := rules.objection(op)) is not None]


def summary(
    removed: Iterable[Removed], given_up: Iterable[str] = (), spec: DeviceSpec | None = None, kept: Iterable[str] = ()
) -> list[str]:  # fmt: skip
    """One sentence for each reason: what was left out for it; what had to stay; why rules gave way; and, of a device, that all is well."""
    by_reason: dict[str, list[Removed]] = {}
    for one in removed:
        by_reason.setdefault(one.reason, []).append(one)
    sentences = []
    for reason, group in by_reason.items():
        options: dict[str, list[str]] = {}
        for one in group:
            options.setdefault(str(one.option), []).append(one.choice)
        said = "; ".join(f"{_few(choices)} = {option}" for option, choices in options.items())
        sentences.append(f"Left out of the space: {said} ({reason}).")
    sentences += [f"Left in the space, because every network of it has this: {sentence}." for sentence in kept]
    if spec is not None and not sentences:
        sentences.append(f"Nothing of the space was left out: {spec.title} runs all of it well, as far as its file tells.")
    return [*sentences, *(f"A rule of convenience was waived: {error}." for error in given_up)]


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


# -- by name --------------------------------------------------------------------------------------------------------------


def _by_name(space: Space, rules: Rules, allowed: dict[str, list[int]]) -> list[Removed]:
    """Options whose label alone tells that they do not conform; a choice of which none would be left is not judged so."""
    removed: list[Removed] = []
    for name, indices in allowed.items():
        reasons = {i: rules.label_objection(name, space.choices[name][i]) for i in indices}
        if all(reasons.values()):
            continue
        removed += [Removed(name, space.choices[name][i], reason) for i, reason in reasons.items() if reason is not None]
        allowed[name] = [i for i in indices if reasons[i] is None]
    return removed
