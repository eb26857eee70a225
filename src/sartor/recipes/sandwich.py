"""Single-stage supernet training by the sandwich rule with in-place distillation (BigNAS).

Yu et al. 2020, "BigNAS: Scaling up neural architecture search with big single-stage models", section 3.1; the rule itself is from
Yu & Huang 2019, "Universally slimmable networks", section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.arithmetic import check, forward
from sartor.recipes.checkpoint import LoadReport, load_weights
from sartor.recipes.loop import Augment, Loop, Moment, Optimisation, steps_per_epoch
from sartor.recipes.loss import as_target, classification_loss, distillation_loss, soft_targets
from sartor.recipes.sampler import Sampler, uniform_sampler
from sartor.recipes.schedule import Progress, budget
from sartor.recipes.splits import TrainingData


class Supernet(Protocol):
    """What the recipe needs of a network: ``net(x, arch, drop_path)`` and its extreme architectures."""

    space: Space
    smallest: Arch
    largest: Arch

    def __call__(self, x: Tensor, arch: Arch, drop_path: float = 0.0) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class SupernetResult:
    """What a supernet training came to."""

    steps: int
    epochs: float
    seconds: float
    loss: float  # running mean of the largest net's loss
    initial: LoadReport | None = None
    history: list[dict[str, float]] = field(default_factory=list)  # per epoch: epoch, step, loss, lr, seconds


def sandwich_step(
    net: Supernet,
    x: Tensor,
    y: Tensor,
    others: list[Arch],
    *,
    largest: Arch | None = None,
    label_smoothing: float = 0.0,
    drop_path: float = 0.0,
    temperature: float = 1.0,
    arithmetic: str = "fp32",
    pool: Executor | None = None,
) -> float:
    """Accumulate the gradients of one sandwich step and return the largest net's loss.

    The largest net learns from the labels `y`, with `label_smoothing` and `drop_path`; the nets of `others` learn only from its
    soft predictions, without regularisation (Yu et al. 2020, section 3.1). No gradient reaches the largest net through them. Gradients
    are summed over the nets, one backward each, so that memory holds one net's activations at a time; with a `pool` of threads, the nets
    run side by side (small operations gain nothing from several threads each), and the sum is the same to the bit. Forward passes are in
    the `arithmetic` of :mod:`sartor.recipes.arithmetic`.
    """
    logits = forward(arithmetic, net, x, net.largest if largest is None else largest, drop_path)
    loss = classification_loss(logits, as_target(y), label_smoothing=label_smoothing)
    targets = soft_targets(logits, temperature)
    if pool is None:
        loss.backward()
        worst = total = loss.item()
        del logits, loss
        for arch in others:
            student = distillation_loss(forward(arithmetic, net, x, arch, 0.0), targets, temperature)
            student.backward()
            total += student.item()
    else:
        worst, total = _side_by_side(net, x, loss, others, targets, temperature, arithmetic, pool)
    # NaN in any net must be seen; otherwise the loss of the largest is the readable one
    return worst if total - total == 0.0 else total


def _side_by_side(
    net: Supernet, x: Tensor, loss: Tensor, others: list[Arch], targets: Tensor, temperature: float, arithmetic: str, pool: Executor
) -> tuple[float, float]:
    """Backward of the largest net and the steps of the others, each in a thread. Gradients are added afterwards, in the order of the nets:
    adding to ``.grad`` from several threads at once would be a race."""
    weights = [w for w in net.parameters() if w.requires_grad]

    def one(arch: Arch | None) -> tuple[float, tuple[Tensor | None, ...]]:
        with torch.enable_grad():  # the mode belongs to a thread
            found = loss if arch is None else distillation_loss(forward(arithmetic, net, x, arch, 0.0), targets, temperature)
            return found.item(), torch.autograd.grad(found, weights, allow_unused=True)

    losses = []
    for value, gradients in pool.map(one, [None, *others]):
        losses.append(value)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
    return losses[0], sum(losses)


def thread_pool(workers: int) -> Executor:
    """Threads for :func:`sandwich_step`, each of which computes alone."""
    return ThreadPoolExecutor(workers, "sandwich", torch.set_num_threads, (1,))


def train_sandwich(
    net: nn.Module,
    data: TrainingData,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 128,
    lr: float = 0.2,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    largest_only: float = 0.0,
    random_nets: int = 2,
    label_smoothing: float = 0.1,
    drop_path: float = 0.0,
    temperature: float = 1.0,
    clip_norm: float | None = 1.0,
    ema: float | None = None,
    schedule: str = "cosine",
    floor: float = 0.0,
    zero_residuals: bool = False,
    sampler: Sampler | None = None,
    initial: str | Path | Mapping[str, Tensor] | None = None,
    augment: Augment | None = None,
    channels_last: bool = True,
    arithmetic: str = "fp32",
    workers: int = 1,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "supernet",
) -> SupernetResult:
    """Train a supernet in place: each step runs the largest, the smallest and `random_nets` sampled sub-nets on one batch.

    Resolution is a choice like any other, so every sub-net brings its own; batch normalisation uses the batch's statistics. Give exactly
    one of `steps`, `epochs` (deterministic on one thread) and `seconds` (the schedule follows the elapsed share: machine-dependent).

    Args:
        net: a searchable network with `space`, `largest` and `smallest`.
        lr: peak learning rate of the summed, clipped gradients. 0.2 was better than 0.1 and 0.4 for the mean sub-net of the mobile space on
            digits after 700 steps (90 % of validation images, against 87 and 88); after 200 steps 0.4 leads.
        largest_only: share of the budget, at its start, in which only the largest net is trained (weights-only warm-up, as
            once-for-all does before it shrinks).
        drop_path: final rate of stochastic depth, for the largest net only; it rises linearly with the spent budget.
        schedule, floor: of the learning rate, as in :class:`sartor.recipes.loop.Optimisation`.
        zero_residuals: start with every residual block whose last layer is linear as the identity (section 3.1 of the paper: the scale of
            its last normalisation is zero). A start from `initial` weights keeps those.
        sampler: draws sub-nets; uniform over architectures by default, see :func:`sartor.recipes.sampler.stratified_sampler`.
        initial: weights to start from (safetensors file or mapping); where shapes differ the overlap is copied and the result's `initial`
            says so. Ignored when a checkpoint is resumed.
        arithmetic: "fp32", or "bf16" for the products, see :mod:`sartor.recipes.arithmetic`.
        workers: nets of a step that run side by side, in a thread each; the result is the same.
        checkpoint: file to save to every `checkpoint_seconds`, and to resume from if it exists; bit for bit on one thread.

    Raises:
        UserError: on bad settings, a diverged loss (nothing bad is saved), or a foreign checkpoint.
    """
    if random_nets < 0:
        raise UserError(f"random_nets= must be zero or more, got {random_nets}")
    for key, share in (("label_smoothing", label_smoothing), ("drop_path", drop_path), ("largest_only", largest_only)):
        if not 0.0 <= share < 1.0:
            raise UserError(f"{key}= must be in [0, 1), got {share}")
    if temperature <= 0:
        raise UserError(f"temperature= must be positive, got {temperature}")
    check(arithmetic)
    supernet: Supernet = _supernet(net)
    draw = sampler or uniform_sampler(supernet.space)
    resumed = checkpoint is not None and Path(checkpoint).is_file()
    if zero_residuals:  # weights that are given, or a checkpoint's, replace these
        start_as_identities(net)
    report = load_weights(net, initial) if initial is not None and not resumed else None

    def compute(x: Tensor, y: Tensor, moment: Moment) -> float:
        largest, smallest = extremes(supernet, moment.rng)
        others = [] if moment.fraction < largest_only else [smallest, *(draw(moment.rng) for _ in range(random_nets))]
        rate = drop_path * moment.fraction
        return sandwich_step(
            supernet, x, y, others, largest=largest, label_smoothing=label_smoothing, drop_path=rate, temperature=temperature,
            arithmetic=arithmetic, pool=pool,
        )  # fmt: skip

    per_epoch = steps_per_epoch(data.train, batch)
    loop = Loop(
        net,
        data.train,
        compute,
        batch=batch,
        budget=budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch),
        optimisation=Optimisation(lr, momentum, weight_decay, warmup, clip_norm, ema, floor, schedule=schedule),
        seed=seed,
        augment=augment,
        channels_last=channels_last,
        settings={
            "space": supernet.space.fingerprint,
            "random_nets": random_nets,
            "largest_only": largest_only,
            "label_smoothing": label_smoothing,
            "drop_path": drop_path,
            "temperature": temperature,
            "channels_last": channels_last,
            "arithmetic": arithmetic,
        },
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        name=name,
    )
    with thread_pool(workers) if workers > 1 else nullcontext() as pool:
        trace = loop.run()
    return SupernetResult(trace.step, trace.step / per_epoch, trace.seconds, trace.loss, report, trace.rows)


def start_as_identities(net: nn.Module) -> int:
    """Scale the last normalisation of every residual block by zero; returns how many there were."""
    starts = [getattr(module, "start_as_identity", None) for module in net.modules()]
    return sum(bool(start()) for start in starts if start is not None)


def extremes(net: Supernet, rng: np.random.Generator) -> tuple[Arch, Arch]:
    """The largest and smallest architecture of one step. A network whose space has choices without a size (kinds of block) draws them
    itself in `extremes(rng)`; otherwise the options that are never part of an extreme would be trained on random nets only."""
    draw = getattr(net, "extremes", None)
    return draw(rng) if draw is not None else (net.largest, net.smallest)


def _supernet(net: nn.Module) -> Supernet:
    for attribute in ("space", "largest", "smallest"):
        if not hasattr(net, attribute):
            raise UserError(f"expected a searchable network with .{attribute}, got {type(net).__name__}; the sandwich rule needs it")
    supernet: Supernet = net  # type: ignore[assignment]  # checked above; nn.Module's __call__ is typed as Any
    return supernet
