"""The standard recipe for one plain network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.layers.depthwise import quick_depthwise
from sartor.recipes.arithmetic import check, forward
from sartor.recipes.bn import calibrate_bn
from sartor.recipes.evaluate import first_images, validation_accuracy
from sartor.recipes.loop import Augment, Loop, Moment, Optimisation, steps_per_epoch
from sartor.recipes.loss import as_target, classification_loss, distillation_loss, soft_targets
from sartor.recipes.schedule import Progress, budget
from sartor.recipes.splits import TrainingData


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. Accuracies are fractions on the validation images (NaN without any)."""

    steps: int
    epochs: float
    seconds: float
    loss: float
    accuracy: float
    top5: float
    history: list[dict[str, float]] = field(default_factory=list)  # per epoch: epoch, step, loss, lr, accuracy, top5, seconds


def train(
    module: nn.Module,
    data: TrainingData,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    label_smoothing: float = 0.1,
    clip_norm: float | None = 1.0,
    ema: float | None = None,
    teacher: nn.Module | None = None,
    temperature: float = 2.0,
    distillation: float = 0.7,
    augment: Augment | None = None,
    mixup: float = 0.0,
    channels_last: bool = True,
    arithmetic: str = "fp32",
    validate: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "train",
) -> TrainResult:
    """Train `module` in place and leave it in eval mode.

    SGD with Nesterov momentum, cosine with warm-up, label smoothing, no decay on biases and batch normalisation, gradient clipping;
    optionally an average of the weights (then the batch-normalisation statistics are measured anew on training images) and a teacher.

    Give exactly one of `steps`, `epochs` (deterministic on one thread) and `seconds`. With `seconds` the schedule follows the elapsed
    share, so the cosine always completes, but the number of steps, hence the result, depends on the machine and its load.

    Args:
        data: `data.train` is trained on, `data.validation` only reported.
        teacher: plain module in the same classes; the loss is then ``(1 - distillation) · CE(labels) + distillation · T² · KL(teacher)``
            with ``T = temperature`` (Hinton et al. 2015). The teacher runs in eval mode on the same augmented images.
        augment: a policy of :mod:`sartor.data.augment` (crop, flip, cutout), e.g. ``default_policy(data)``.
        mixup: parameter of the beta distribution of :func:`sartor.data.mixup`; 0 for none.
        arithmetic: "fp32", or "bf16" for the products, see :mod:`sartor.recipes.arithmetic`.
        checkpoint: file to save to every `checkpoint_seconds`, and to resume from if it exists.

    Raises:
        UserError: on bad settings, a diverged loss (nothing bad is saved), or a foreign checkpoint.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"label_smoothing= must be in [0, 1), got {label_smoothing}")
    if not 0.0 <= distillation <= 1.0 or temperature <= 0:
        raise UserError(f"expected distillation= in [0, 1] and temperature= > 0, got {distillation} and {temperature}")
    check(arithmetic)
    per_epoch = steps_per_epoch(data.train, batch)
    if teacher is not None:
        teacher.eval()

    def compute(x: Tensor, y: Tensor, moment: Moment) -> float:
        logits = forward(arithmetic, module, x)
        loss = classification_loss(logits, as_target(y), label_smoothing=label_smoothing)
        if teacher is not None:
            with torch.no_grad():
                soft = soft_targets(teacher(x), temperature)
            loss = (1.0 - distillation) * loss + distillation * distillation_loss(logits, soft, temperature)
        loss.backward()
        return loss.item()

    def measure() -> dict[str, float]:
        return validation_accuracy(module, data.validation, channels_last=channels_last)

    loop = Loop(
        module,
        data.train,
        compute,
        batch=batch,
        budget=budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch),
        optimisation=Optimisation(lr, momentum, weight_decay, warmup, clip_norm, ema),
        seed=seed,
        augment=augment,
        mixup=mixup,
        classes=len(data.classes),
        channels_last=channels_last,
        settings={
            "label_smoothing": label_smoothing,
            "teacher": teacher is not None,
            "temperature": temperature,
            "distillation": distillation,
            "channels_last": channels_last,
            "arithmetic": arithmetic,
        },
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        name=name,
        on_epoch=measure if validate and len(data.validation) else None,
    )
    with quick_depthwise(module):
        trace = loop.run()
    final = {"accuracy": math.nan, "top5": math.nan, **(trace.rows[-1] if trace.rows else {})}
    if ema:
        calibrate_bn(module, first_images(data.train, 2048, seed=seed, channels_last=channels_last))
        if validate and len(data.validation):
            final = measure()
    return TrainResult(trace.step, trace.step / per_epoch, trace.seconds, trace.loss, final["accuracy"], final["top5"], trace.rows)
