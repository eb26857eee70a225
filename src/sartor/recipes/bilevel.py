"""Differentiable search: the weights descend the training loss, the architecture parameters the validation loss, in turns.

Liu et al. 2019, "DARTS: Differentiable architecture search", algorithm 1; every method of its family is this loop with another policy,
other terms, stops or network modifiers (:mod:`sartor.methods` puts them together).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.policies.base import Policy
from sartor.recipes.alternation import Adam, Alternation, Term, described
from sartor.recipes.loop import Augment, Batch, Loop, Optimisation, steps_per_epoch, stream
from sartor.recipes.schedule import Progress, budget
from sartor.recipes.splits import TrainingSplit
from sartor.recipes.trajectory import EvaluateShared, Snapshot, Stop

#: The weights in DARTS: SGD from 0.025 to 0.001 by a cosine, momentum 0.9, decay 3e-4, gradients clipped at 5 (appendix A.1.1).
WEIGHTS = Optimisation(lr=0.025, momentum=0.9, weight_decay=3e-4, warmup=0.0, clip_norm=5.0, floor=0.04, nesterov=False)

#: The architecture parameters in DARTS: Adam, learning rate 3e-4, betas (0.5, 0.999), decay 1e-3 (appendix A.1.1).
ARCHITECTURE = Adam()


class DivisibleSplit(TrainingSplit, Protocol):
    """A split that can be cut in two."""

    def subset(self, index: Any) -> DivisibleSplit: ...


class SearchData(Protocol):
    """What the recipe needs of a dataset: only its training images, which it divides."""

    @property
    def train(self) -> DivisibleSplit: ...


@dataclass(frozen=True)
class SearchResult:
    """What a differentiable search came to.

    Attributes:
        arch: the derived architecture: that of the last epoch, or of the epoch that a stop chose.
        trajectory: one entry per epoch.
        stopped: why the search ended before its budget; None if it did not.
        net, policy: as trained; `net` may be a modified copy of the network that was given.
        notes: sentences for the user, e.g. on a modifier that does not apply.
        by_rule: whether the method derived by a rule of its own, as P-DARTS limits skip connections.
        epoch: from whose parameters `arch` was derived: the last, or the one that a stop chose.
    """

    arch: Arch
    trajectory: tuple[Snapshot, ...]
    steps: int
    seconds: float
    stopped: str | None
    net: nn.Module
    policy: Policy
    notes: tuple[str, ...] = ()
    by_rule: bool = False
    epoch: int | None = None


def search_bilevel(
    net: nn.Module,
    policy: Policy,
    data: SearchData,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 64,
    weights: Optimisation = WEIGHTS,
    architecture: Adam = ARCHITECTURE,
    order: int = 1,
    joint: bool = False,
    share: float = 0.5,
    weights_only: float = 0.0,
    every: int = 1,
    terms: Sequence[Term] = (),
    stops: Sequence[Stop] = (),
    eigenvalue: bool = False,
    drop_path: Callable[[float], float] | None = None,
    augment: Augment | None = None,
    evaluate: EvaluateShared | None = None,
    on_epoch: Callable[[Snapshot], None] | None = None,
    channels_last: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "search",
) -> SearchResult:
    """Search by gradient: train `net` and `policy` in place, and derive an architecture.

    Give exactly one of `epochs`, `steps` (deterministic on one thread; a resumed search repeats the interrupted one bit for bit) and
    `seconds`. An epoch is one pass over the images of the weight step.

    Args:
        net: a searchable network, ``net(x, mixture, drop_path)``.
        data: its training images are divided at random, by `seed`: `share` of them for the weights, the rest for the architecture.
        order: 1 takes the weights as they are (xi = 0 in DARTS), 2 unrolls one step of them.
        joint: one loss on all images for both, without division.
        weights_only: share of the budget, at its start, in which the architecture rests.
        every: weight steps to one step of the architecture.
        terms: applied to the loss of the architecture step, in order.
        stops: asked after every epoch; the first verdict ends the search.
        eigenvalue: measure the curvature of the validation loss after every epoch, for :func:`sartor.recipes.stops.rising_eigenvalue`.
        drop_path: the rate that the network gets, as a function of the spent share of the budget; 0 by default.
        evaluate: metrics of the architecture derived after each epoch, kept in the trajectory, such as
            :func:`sartor.recipes.evaluate.shared_accuracy` of images that the search does not see.
        on_epoch: told of every snapshot; of a resumed search first of those before the break.
        checkpoint: file to save to every `checkpoint_seconds`, and to resume from if it exists.

    Raises:
        UserError: on bad settings, a diverged loss (nothing bad is saved), or a foreign checkpoint.
    """
    _check(policy, order, joint, share, weights_only, every, architecture)
    for_weights, for_architecture = (data.train, data.train) if joint else divide(data.train, share, seed)
    per_epoch = steps_per_epoch(for_weights, batch)

    def batches(start: int) -> Iterator[Batch]:
        return stream(for_architecture, batch, seed + 1, augment, start)

    state = Alternation(
        net=net,
        policy=policy,
        batches=batches,
        weights=weights,
        architecture=architecture,
        order=order,
        joint=joint,
        weights_only=weights_only,
        every=every,
        terms=terms,
        stops=stops,
        drop_path=drop_path or (lambda fraction: 0.0),
        eigenvalue=eigenvalue,
        evaluate=evaluate,
        on_epoch=on_epoch,
        channels_last=channels_last,
    )
    loop = Loop(
        net,
        for_weights,
        state.compute,
        batch=batch,
        budget=budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch),
        optimisation=weights,
        seed=seed,
        augment=augment,
        channels_last=channels_last,
        settings={
            "space": policy.space.fingerprint,
            "policy": described(policy),
            "terms": [described(term) for term in terms],
            "order": order,
            "joint": joint,
            "share": share,
            "weights_only": weights_only,
            **({"every": every} if every > 1 else {}),
            "architecture": [architecture.lr, *architecture.betas, architecture.weight_decay],
        },
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        name=name,
        on_epoch=state.end_epoch,
        companion=state,
    )
    state.loop = loop
    trace = loop.run()
    epoch = state.verdict.epoch if state.verdict else len(state.trajectory)
    arch = state.trajectory[epoch - 1].arch if state.verdict else policy.mode()
    stopped = f"epoch {len(state.trajectory)}: {state.verdict.reason}" if state.verdict else None
    return SearchResult(arch, tuple(state.trajectory), trace.step, trace.seconds, stopped, net, policy, epoch=epoch)


def _check(policy: Policy, order: int, joint: bool, share: float, weights_only: float, every: int, architecture: Adam) -> None:
    if order not in (1, 2):
        raise UserError(f"order= must be 1 or 2, got {order}")
    if not policy.orders:
        raise UserError(f"{type(policy).__name__} has no gradient through its mixtures and learns from rewards: use search_reinforce")
    if order not in policy.orders:
        raise UserError(f"{type(policy).__name__} draws anew in every pass of the unrolled step, so that it has none; use order=1")
    if joint and order == 2:
        raise UserError("a joint search has one loss and no unrolled step; use order=1 or joint=False")
    if every < 1 or (joint and every > 1):
        raise UserError(f"every= must be 1 or more, and 1 in a joint search, whose one loss moves both; got {every}")
    if not 0.0 < share < 1.0:
        raise UserError(f"share= must be between 0 and 1, got {share}: it is the weights' part of the training images")
    if not 0.0 <= weights_only < 1.0:
        raise UserError(f"weights_only= must be in [0, 1), got {weights_only}: it is a share of the budget")
    if not (architecture.lr > 0 and architecture.weight_decay >= 0 and all(0 <= b < 1 for b in architecture.betas)):
        raise UserError(f"architecture= needs lr > 0, weight_decay >= 0 and betas in [0, 1), got {architecture}")


def divide(split: DivisibleSplit, share: float, seed: int) -> tuple[DivisibleSplit, DivisibleSplit]:
    """The images of the weights, `share` of all, and those of the architecture, at random by `seed`.

    Raises:
        UserError: where one of the two would be empty.
    """
    count = len(split)
    cut = round(share * count)
    if not 0 < cut < count:
        raise UserError(
            f"a bilevel search divides the training images, and {count} cannot be divided {share:g} to {1 - share:g}; give more"
        )
    order = np.random.default_rng([seed, 3]).permutation(count)
    return split.subset(np.sort(order[:cut])), split.subset(np.sort(order[cut:]))


__all__ = ["ARCHITECTURE", "WEIGHTS", "Adam", "SearchResult", "Term", "divide", "search_bilevel"]
