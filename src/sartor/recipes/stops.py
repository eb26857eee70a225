"""When a differentiable search should end before its budget: each stop reads the epochs so far and says why, or None."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from sartor.arch import Space
from sartor.errors import UserError
from sartor.recipes.trajectory import Snapshot, Stop, Verdict
from sartor.searchers.variation import whole

#: Labels of an operation that passes its input on within a cell. Not `skip` of the spaces `fbnet` and `catalogue`, which leaves a whole
#: block out: a network of many is shallower, and has not collapsed.
SKIPS: frozenset[str] = frozenset({"skip_connect", "identity"})

#: Labels of operations without weights to learn.
NOT_LEARNED = SKIPS | {"none", "avg_pool_3x3", "max_pool_3x3"}


def labelled(label: Any, labels: Collection[str]) -> bool:
    """Whether an option is labelled as one of `labels`."""
    return isinstance(label, str) and label in labels  # other labels may be lists, which no set can be asked about


def offers_skips(space: Space, *, skips: Collection[str] = SKIPS) -> bool:
    """Whether any choice allows an option labelled as one of `skips`."""
    return any(labelled(space.choices[name][i], skips) for name, allowed in space.allowed.items() for i in allowed)


def skips_of(
    space: Space, arch: Mapping[str, int], *, skips: Collection[str] = SKIPS, among: Callable[[str], bool] | None = None
) -> list[str]:
    """Choices (`among` those for which it is true) that hold an option labelled as one of `skips`."""
    on = space.active(arch)
    return [
        name
        for name, options in space.choices.items()
        if name in on and (among is None or among(name)) and labelled(options[arch[name]], skips)
    ]


def too_many_skips(space: Space, most: int = 2, *, skips: Collection[str] = SKIPS, among: Callable[[str], bool] | None = None) -> Stop:
    """End when the derived cell has `most` skip connections or more, and take the epoch before.

    Liang et al. 2019, "DARTS+: Improved differentiable architecture search with early stopping", section 3.3, criterion 1: two or more
    skip connections in one normal cell; `among` picks that cell's choices where a space has several cells. A search whose untrained
    parameters give that many has not collapsed: it ends when they come back after an epoch with fewer.

    Raises:
        UserError: if no choice allows an option labelled as one of `skips`, or `most` is below 1.
    """
    whole("too_many_skips", "most", most, 1)
    if not offers_skips(space, skips=skips):
        labels = " or ".join(f"'{skip}'" for skip in sorted(skips))
        raise UserError(f"a stop on skip connections needs a space with an option {labels}, and this one has none; use another stop")

    def stop(epochs: Sequence[Snapshot]) -> Verdict | None:
        found = skips_of(space, epochs[-1].arch, skips=skips, among=among)
        # Epochs of weights alone derive from the initial parameters, which mean nothing.
        moved = [e for e in epochs if e.validation_loss is not None]
        fewer = [e.epoch for e in moved if len(skips_of(space, e.arch, skips=skips, among=among)) < most]
        if len(found) < most or epochs[-1].validation_loss is None or not fewer:
            return None
        before = fewer[-1]
        return Verdict(f"{len(found)} skip connections in the derived cell ({', '.join(found)}), which may have at most {most - 1}", before)

    return stop


def stable_ranking(space: Space, epochs: int = 10, *, without: Collection[str] = NOT_LEARNED) -> Stop:
    """End when the ranking of the operations of every choice that have weights (all but those labelled `without`) has not changed for
    `epochs` epochs (Liang et al. 2019, DARTS+, section 3.3, criterion 1*).

    Raises:
        UserError: if `epochs` is below 1: a ranking has stayed the same for none from the start.
    """
    whole("stable_ranking", "epochs", epochs, 1)

    def ranking(snapshot: Snapshot) -> list[tuple[int, ...]]:
        learned = [
            {index: weight for index, weight in row.items() if not labelled(space.choices[name][index], without)}
            for name, row in snapshot.strengths.items()
        ]
        return [tuple(sorted(row, key=row.__getitem__, reverse=True)) for row in learned]

    def stop(trajectory: Sequence[Snapshot]) -> Verdict | None:
        moving = [e for e in trajectory if e.validation_loss is not None]
        if len(moving) <= epochs:
            return None
        last = ranking(moving[-1])
        if any(ranking(e) != last for e in moving[-epochs - 1 : -1]):
            return None
        return Verdict(f"the ranking of all operations with weights has stayed the same for {epochs} epochs", moving[-1].epoch)

    return stop


def rising_eigenvalue(ratio: float = 0.75, window: int = 5, first: int = 10) -> Stop:
    """End when the dominant eigenvalue of the validation loss's Hessian in the architecture parameters grows fast; take the epoch from
    which it grew, when the minimum was still flat.

    Zela et al. 2020, "Understanding and robustifying differentiable architecture search", section 4.3: if
    ``mean(i - k) / mean(i) < ratio``, where mean(i) is the eigenvalue averaged over the `window` epochs around i and k = `window`, return
    to epoch i - k. As in the authors' code, not to one before `first`.

    Raises:
        UserError: if `window` is below 1, or `ratio` not in (0, 1]: above 1 the search would end although the eigenvalue fell.
    """
    whole("rising_eigenvalue", "window", window, 1)
    if not (isinstance(ratio, Real) and 0 < ratio <= 1):
        raise UserError(
            f"rising_eigenvalue: ratio must be above 0 and at most 1, as it is an earlier eigenvalue over today's, got {ratio!r}"
        )

    def stop(trajectory: Sequence[Snapshot]) -> Verdict | None:
        measured = [e for e in trajectory if e.eigenvalue is not None]
        if len(measured) < 2 * window:
            return None
        values = [float(e.eigenvalue) for e in measured if e.eigenvalue is not None]
        now, before = sum(values[-window:]) / window, sum(values[-2 * window : -window]) / window
        back = measured[-1 - window // 2 - window].epoch
        # A curvature that was negative has no ratio.
        if back < first or now <= 0 or before <= 0 or before / now >= ratio:
            return None
        return Verdict(
            f"the dominant eigenvalue of the architecture's Hessian rose from {before:.3g} to {now:.3g} in {window} epochs",
            back,
        )

    return stop


def any_of(*stops: Stop) -> Stop:
    """End at the first of several stops."""

    def stop(trajectory: Sequence[Snapshot]) -> Verdict | None:
        return next((verdict for one in stops if (verdict := one(trajectory)) is not None), None)

    return stop
