"""Single-path supernets: every step trains one architecture, drawn at random (SPOS), or a group that runs every option once (FairNAS).

Guo et al. 2020, "Single path one-shot neural architecture search with uniform sampling", section 3.2, equation 7; Chu et al. 2021,
"FairNAS: Rethinking evaluation fairness of weight sharing neural architecture search", section 3.2, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.checkpoint import load_weights
from sartor.recipes.loop import Augment, Loop, Moment, Optimisation, steps_per_epoch
from sartor.recipes.loss import as_target, classification_loss
from sartor.recipes.sampler import Sampler, uniform_sampler
from sartor.recipes.sandwich import SupernetResult
from sartor.recipes.schedule import Progress, budget
from sartor.recipes.splits import TrainingData

#: SGD with momentum 0.9, decay 4e-5, label smoothing 0.1 as in the paper (section 4, "implementation details"); its learning rate of 0.5 is
#: for batches of 1024 images, which is 0.06 for 128; it falls by a cosine here, linearly in the paper.
WEIGHTS = Optimisation(lr=0.06, momentum=0.9, weight_decay=4e-5, warmup=0.0, clip_norm=5.0, nesterov=False)

Paths = Callable[[np.random.Generator], list[Arch]]


class Searchable(Protocol):
    """What the recipe needs of a network."""

    space: Space

    def __call__(self, x: Tensor, arch: Arch, drop_path: float = 0.0) -> Tensor: ...


def single(sampler: Sampler) -> Paths:
    """One path a step."""
    return lambda rng: [sampler(rng)]


def fair_paths(space: Space) -> Paths:
    """As many paths a step as the widest choice has options, such that every option of every choice runs equally often.

    Each choice permutes its options anew (strict fairness, FairNAS section 3.2, definition 2). A choice with fewer options than the widest
    one repeats its permutation; choices that a path switches off are left out of it, so that fairness is exact only without conditions.
    """
    count = max(len(allowed) for allowed in space.allowed.values())

    def draw(rng: np.random.Generator) -> list[Arch]:
        columns = {
            name: np.concatenate([rng.permutation(allowed) for _ in range(-(-count // len(allowed)))])[:count]
            for name, allowed in space.allowed.items()
        }
        return [space.canonical({name: int(column[i]) for name, column in columns.items()}) for i in range(count)]

    return draw


def train_single_path(
    net: nn.Module,
    data: TrainingData,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    seconds: float | None = None,
    batch: int = 128,
    paths: Paths | None = None,
    weights: Optimisation = WEIGHTS,
    label_smoothing: float = 0.1,
    drop_path: float = 0.0,
    initial: str | Path | Mapping[str, Tensor] | None = None,
    augment: Augment | None = None,
    channels_last: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "supernet",
) -> SupernetResult:
    """Train a supernet in place on single paths. Give exactly one of `steps`, `epochs` (deterministic on one thread) and `seconds`.

    Sub-nets are then evaluated as extracted networks whose batch normalisation is calibrated
    (:class:`sartor.evaluators.supernet.SupernetEvaluator`; the paper's section 3.3 recalculates the same statistics).

    Args:
        net: a searchable network with `space`.
        paths: the architectures of one step; one uniform draw by default, see :func:`single` (with
            :func:`sartor.recipes.sampler.stratified_sampler` for equally many of every cost) and :func:`fair_paths`. Their gradients are
            added, one backward each (FairNAS, algorithm 1): a weight moves as far in a step as it would on a path of its own.
        drop_path: final rate of stochastic depth; it rises linearly with the spent budget.
        initial: weights to start from; ignored when a checkpoint is resumed.
        checkpoint: file to save to every `checkpoint_seconds`, and to resume from if it exists; bit for bit on one thread.

    Raises:
        UserError: on bad settings, a diverged loss (nothing bad is saved), or a foreign checkpoint.
    """
    space: Space | None = getattr(net, "space", None)
    if space is None:
        raise UserError(f"expected a searchable network with .space, got {type(net).__name__}")
    for key, share in (("label_smoothing", label_smoothing), ("drop_path", drop_path)):
        if not 0.0 <= share < 1.0:
            raise UserError(f"{key}= must be in [0, 1), got {share}")
    resumed = checkpoint is not None and Path(checkpoint).is_file()
    report = load_weights(net, initial) if initial is not None and not resumed else None
    draw = paths or single(uniform_sampler(space))

    def compute(x: Tensor, y: Tensor, moment: Moment) -> float:
        archs = draw(moment.rng)
        total, rate = 0.0, drop_path * moment.fraction
        for arch in archs:
            logits = net(x, arch, rate) if rate else net(x, arch)
            loss = classification_loss(logits, as_target(y), label_smoothing=label_smoothing)
            loss.backward()
            total += loss.item()
        return total / len(archs)

    per_epoch = steps_per_epoch(data.train, batch)
    loop = Loop(
        net,
        data.train,
        compute,
        batch=batch,
        budget=budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch),
        optimisation=weights,
        seed=seed,
        augment=augment,
        channels_last=channels_last,
        settings={
            "recipe": "single path",
            "space": space.fingerprint,
            "label_smoothing": label_smoothing,
            "drop_path": drop_path,
            "channels_last": channels_last,
        },
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        name=name,
    )
    trace = loop.run()
    return SupernetResult(trace.step, trace.step / per_epoch, trace.seconds, trace.loss, report, trace.rows)


__all__ = ["WEIGHTS", "Paths", "fair_paths", "single", "train_single_path"]
