"""Progressive shrinking: the largest network first, then elastic kernels, depths and widths, taught by the largest.

Cai et al. 2020, "Once-for-all: Train one network and specialize it for efficient deployment", section 3.3 and appendix A; sub-nets per step
and relative learning rates are those of the authors' code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.arithmetic import check, forward
from sartor.recipes.importance import sort_channels
from sartor.recipes.loop import Augment, Loop, Moment, Optimisation, steps_per_epoch
from sartor.recipes.loss import as_target, classification_loss, distillation_loss, soft_targets
from sartor.recipes.schedule import Budget, Progress, budget
from sartor.recipes.splits import TrainingData

#: Dimension -> endings of the names of its choices, in the order in which they are shrunk.
DIMENSIONS: dict[str, tuple[str, ...]] = {"kernel": ("kernel",), "depth": ("depth",), "width": ("expand", "width")}

#: Dimension -> (sub-nets a step, share of epochs and relative learning rate of each phase). The largest network has 180 epochs at 0.08 for
#: batches of 64; kernels 120 epochs at 0.03; depths and widths 25 at 0.0025 with one more option, then 120 at 0.0075 with all.
_PHASES: dict[str, tuple[int, tuple[tuple[float, float], ...]]] = {
    "kernel": (1, ((120.0, 0.37),)),
    "depth": (2, ((25.0, 0.031), (120.0, 0.092))),
    "width": (4, ((25.0, 0.031), (120.0, 0.092))),
}
_LARGEST_EPOCHS = 180.0
RESOLUTION = "resolution"  # the choice of a space that scales its pictures
_PAPER_EPOCHS = 590.0  # of all stages together


@dataclass(frozen=True)
class Stage:
    """One stage of the shrinking.

    Attributes:
        name: "largest", or a dimension and phase.
        space: sub-nets are drawn from it, uniformly.
        nets: sub-nets a step, whose gradients are summed.
        share: of the whole budget.
        rate: learning rate relative to that of the largest network.
        sort: whether channels are sorted by importance before it: widths become elastic, or more so.
    """

    name: str
    space: Space
    nets: int
    share: float
    rate: float
    sort: bool = False


def size_of(label: Any) -> float:
    """A number by which options are ordered; `200ch` is 200."""
    if isinstance(label, str):
        digits = label.removesuffix("ch")
        return float(digits) if digits.replace(".", "", 1).isdigit() else math.nan
    return float(label)


def stages(space: Space, dimensions: Mapping[str, Sequence[str]] | None = None) -> list[Stage]:
    """The stages for a space: kernels, depths, then widths become elastic, from their largest options down.

    Kernels at once; depths and widths in two phases, the largest two options and then all. Other choices (resolution, kinds of block,
    activations) are elastic from the start, as resolution is in the paper.

    Args:
        dimensions: as :data:`DIMENSIONS`, for a space that names its choices otherwise.

    Raises:
        UserError: if the space has none of the dimensions, or options without a size in one.
    """
    members: dict[str, list[str]] = {}
    for dimension, endings in (dimensions or DIMENSIONS).items():
        names = [n for n, allowed in space.allowed.items() if len(allowed) > 1 and n.rpartition(".")[2].endswith(tuple(endings))]
        unsized = next((n for n in names if any(math.isnan(size_of(space.choices[n][i])) for i in space.allowed[n])), None)
        if unsized is not None:
            raise UserError(f"progressive shrinking orders options by size, but choice '{unsized}' has {list(space.choices[unsized])}")
        if names:
            members[dimension] = names
    if not members:
        wanted = ", ".join(e for endings in (dimensions or DIMENSIONS).values() for e in endings)
        raise UserError(f"progressive shrinking needs choices named {wanted}; this space has {', '.join(space.choices)}; use another")
    kept = {name: 1 for names in members.values() for name in names}  # how many of the largest options are elastic
    plan = [Stage("largest", _top(space, kept), 1, _LARGEST_EPOCHS, 1.0)]
    for dimension, names in members.items():
        nets, phases = _PHASES.get(dimension, (2, ((25.0, 0.031), (120.0, 0.092))))
        most = max(len(space.allowed[n]) for n in names)
        if most == 2:
            phases = phases[-1:]
        for number, (epochs, rate) in enumerate(phases):
            kept.update({n: 2 if number < len(phases) - 1 else len(space.allowed[n]) for n in names})
            name = dimension if len(phases) == 1 else f"{dimension} {number + 1}"
            plan.append(Stage(name, _top(space, kept), nets, epochs, rate, sort=dimension == "width"))
    total = sum(stage.share for stage in plan)
    return [replace(stage, share=stage.share / total) for stage in plan]


def _top(space: Space, kept: Mapping[str, int]) -> Space:
    """The sub-space in which each choice of `kept` has its so many largest options."""
    keep = {}
    for name, count in kept.items():
        options = sorted((space.choices[name][i] for i in space.allowed[name]), key=size_of, reverse=True)
        keep[name] = options[:count]
    return space.restrict(keep)


@dataclass(frozen=True)
class ShrinkingResult:
    """What the shrinking came to, stage by stage: name, steps, running mean of the loss, and which widths were sorted before it."""

    steps: int
    seconds: float
    stages: tuple[dict[str, Any], ...]


def train_shrinking(
    net: nn.Module,
    data: TrainingData,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    seconds: float | None = None,
    batch: int = 64,
    weights: Optimisation | None = None,
    plan: Sequence[Stage] | None = None,
    distillation: float = 1.0,
    label_smoothing: float = 0.1,
    augment: Augment | None = None,
    channels_last: bool = True,
    arithmetic: str = "fp32",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "shrinking",
) -> ShrinkingResult:
    """Train a supernet in place by progressive shrinking.

    Give exactly one of `steps`, `epochs` (deterministic on one thread) and `seconds`, for all stages together; each stage takes a step at
    least.

    After the first stage a copy of the largest network is the teacher: every sub-net's loss is ``CE + distillation * KL(teacher)``. Before
    widths become elastic, channels are sorted by importance.

    Args:
        net: a searchable network with `space` and elastic layers.
        weights: of the largest network's stage; every stage has a cosine of its own, at its relative rate.
        plan: the stages; those of :func:`stages` by default, whose low rates are for the paper's 590 epochs: of fewer epochs, a relative
            rate r is raised to ``r ** (epochs / 590)``. After 5 epochs of Fashion-MNIST at the rates as they are, small sub-nets were
            right on 56 % of the validation images, where the sandwich rule had 83 %.
        arithmetic: "fp32", or "bf16" for the products, see :mod:`sartor.recipes.arithmetic`.
        checkpoint: base name: every stage has a file of its own beside it, ``<stem>-<number>-<stage>.safetensors``; bit for bit on one
            thread.

    Raises:
        UserError: on bad settings, a space without elastic dimensions, a diverged loss, or a foreign checkpoint.
    """
    if distillation < 0 or not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"expected distillation= of zero or more and label_smoothing= in [0, 1), got {distillation} and {label_smoothing}")
    check(arithmetic)
    space: Space | None = getattr(net, "space", None)
    if space is None:
        raise UserError(f"expected a searchable network with .space, got {type(net).__name__}")
    todo = list(plan) if plan is not None else stages(space)
    per_epoch = steps_per_epoch(data.train, batch)
    whole = budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch)
    optimisation = weights or Optimisation(lr=0.08, momentum=0.9, weight_decay=3e-5, warmup=0.03, clip_norm=5.0)
    teacher: nn.Module | None = None
    rows: list[dict[str, Any]] = []
    taken, spent, ends = 0, 0.0, _ends(todo, whole.steps)
    for number, stage in enumerate(todo):
        rate = stage.rate if plan is not None else stage.rate ** _part_of_paper(whole, todo[:number], taken, per_epoch)
        seen = todo[number - 1].space if number else stage.space
        sorted_ = sort_channels(net, seen, keep=_probes(seen, seed), seed=seed) if stage.sort else []
        own = budget(
            seconds=whole.seconds * stage.share if whole.seconds is not None else None,
            steps=max(1, ends[number] - (ends[number - 1] if number else 0)) if ends else None,
            steps_per_epoch=per_epoch,
        )
        loop = Loop(
            net,
            data.train,
            _compute(net, teacher, stage, label_smoothing, distillation, arithmetic),
            batch=batch,
            budget=own,
            optimisation=replace(optimisation, lr=optimisation.lr * rate, warmup=optimisation.warmup if number == 0 else 0.0),
            seed=seed + number,  # every stage has its own order of images
            augment=augment,
            channels_last=channels_last,
            settings={
                "recipe": f"shrinking: {stage.name}",
                "space": stage.space.fingerprint,
                "nets": stage.nets,
                "label_smoothing": label_smoothing,
                "distillation": distillation,
                **({"arithmetic": arithmetic} if arithmetic != "fp32" else {}),
            },
            checkpoint=_file(checkpoint, number, stage.name),
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            name=f"{name} {number + 1}/{len(todo)} ({stage.name})",
        )
        trace = loop.run()
        taken, spent = taken + trace.step, spent + trace.seconds
        rows.append({"stage": stage.name, "steps": trace.step, "loss": trace.loss, "sorted": sorted_})
        if number == 0:
            teacher = copy.deepcopy(net).requires_grad_(False)
    return ShrinkingResult(taken, spent, tuple(rows))


def _part_of_paper(whole: Budget, past: Sequence[Stage], taken: int, per_epoch: int) -> float:
    """How many of the paper's epochs the training takes, at most all; a budget in seconds is judged by its stages so far."""
    if whole.steps is not None:
        steps = float(whole.steps)
    else:
        steps = taken / sum(stage.share for stage in past) if past else 0.0
    return min(1.0, steps / per_epoch / _PAPER_EPOCHS)


def _ends(plan: Sequence[Stage], steps: int | None) -> list[int]:
    """The step after which each stage is over, so that all of them have `steps` together."""
    return [round(steps * sum(stage.share for stage in plan[: n + 1])) for n in range(len(plan))] if steps is not None else []


def _file(checkpoint: str | Path | None, number: int, stage: str) -> Path | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}-{number}-{stage.replace(' ', '')}{path.suffix}")


def _probes(space: Space, seed: int, count: int = 3) -> list[Arch]:
    """Architectures whose function sorting must keep."""
    rng = np.random.default_rng([seed, 5])
    return list(dict.fromkeys(space.sample(rng) for _ in range(count)))


def _compute(net: nn.Module, teacher: nn.Module | None, stage: Stage, label_smoothing: float, distillation: float, arithmetic: str) -> Any:
    """Forward and backward of one step of a stage. Teacher and sub-nets see the batch at one size, drawn with the step, as in the authors'
    code."""
    largest = _top(stage.space, {n: 1 for n, allowed in stage.space.allowed.items() if _sized(stage.space, n) and len(allowed) > 1})

    sizes = stage.space.allowed.get(RESOLUTION, ())

    def compute(x: Tensor, y: Tensor, moment: Moment) -> float:
        soft = None
        size = {RESOLUTION: int(moment.rng.choice(sizes))} if len(sizes) > 1 else {}
        if teacher is not None and distillation:
            # The teacher is the largest network; kinds of block, of which none is the largest, are drawn with the step.
            with torch.no_grad():
                soft = soft_targets(forward(arithmetic, teacher, x, Arch({**largest.sample(moment.rng), **size})))
        total = 0.0
        for _ in range(stage.nets):
            logits = forward(arithmetic, net, x, Arch({**stage.space.sample(moment.rng), **size}))
            loss = classification_loss(logits, as_target(y), label_smoothing=label_smoothing)
            if soft is not None:
                loss = loss + distillation * distillation_loss(logits, soft)
            loss.backward()
            total += loss.item() / stage.nets
        return total

    return compute


def _sized(space: Space, name: str) -> bool:
    return all(not math.isnan(size_of(space.choices[name][i])) for i in space.allowed[name]) and not name.endswith("stride")


__all__ = ["DIMENSIONS", "ShrinkingResult", "Stage", "size_of", "stages", "train_shrinking"]
