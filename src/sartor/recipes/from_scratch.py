"""The training recipe of derived cells: long, from random weights, with an auxiliary loss, drop-path and cutout.

Liu et al. 2019, "DARTS: Differentiable architecture search", section 3.3 and appendix A.1.2, on CIFAR-10; P-DARTS and PC-DARTS keep it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor.data.augment import Policy
from sartor.errors import UserError
from sartor.recipes.evaluate import validation_accuracy
from sartor.recipes.loop import Augment, Loop, Moment, Optimisation, steps_per_epoch
from sartor.recipes.loss import as_target, classification_loss
from sartor.recipes.schedule import Progress, budget
from sartor.recipes.splits import TrainingData
from sartor.recipes.train import TrainResult

#: The paper's augmentation of pictures of 32 pixels: shifts of up to 4, mirroring, one square of 16 cut out.
AUGMENT = Policy(pad=4, flip=True, cutout=16)


def train_from_scratch(
    net: nn.Module,
    data: TrainingData,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 96,
    lr: float = 0.025,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    auxiliary: float = 0.4,
    drop_path: float = 0.2,
    label_smoothing: float = 0.0,
    clip_norm: float | None = 5.0,
    augment: Augment | None = AUGMENT,
    channels_last: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "train",
) -> TrainResult:
    """Train an evaluation network in place and leave it in eval mode.

    SGD with classical momentum, a cosine from `lr` to 0, gradients clipped at `clip_norm`; the loss of the auxiliary head, if the network
    has one, counts `auxiliary`; the rate of drop-path rises linearly to `drop_path`. Six hundred epochs unless `epochs`, `steps` or
    `seconds` says otherwise. As in all recipes here there is no weight decay on biases and normalisation, where the paper has it.

    Args:
        net: with ``training_outputs(x, drop_path) -> (logits, auxiliary logits or None)``, such as
            :class:`sartor.spaces.darts_eval.CellNetwork`.
        data: `data.train` is trained on, `data.validation` only reported.
        label_smoothing: 0.1 for ImageNet.
        augment: made for pictures of 32 pixels.
        checkpoint: file to save to every `checkpoint_seconds`, and to resume from if it exists; bit for bit on one thread.

    Raises:
        UserError: on bad settings, a network of another kind, a diverged loss (nothing bad is saved), or a foreign checkpoint.
    """
    if not hasattr(net, "training_outputs"):
        raise UserError(f"expected an evaluation network with .training_outputs, got {type(net).__name__}; use sartor.recipes.train")
    if not 0.0 <= drop_path < 1.0 or not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"drop_path= and label_smoothing= must be in [0, 1), got {drop_path} and {label_smoothing}")
    if auxiliary < 0.0:
        raise UserError(f"auxiliary= must be zero or more, got {auxiliary}")
    if epochs is None and steps is None and seconds is None:
        epochs = 600.0
    evaluated: Any = net

    def compute(x: Tensor, y: Tensor, moment: Moment) -> float:
        logits, side = evaluated.training_outputs(x, drop_path * moment.fraction)
        loss = classification_loss(logits, as_target(y), label_smoothing=label_smoothing)
        total = loss
        if side is not None and auxiliary:
            total = loss + auxiliary * classification_loss(side, as_target(y), label_smoothing=label_smoothing)
        total.backward()
        return loss.item() if bool(torch.isfinite(total.detach())) else total.item()

    per_epoch = steps_per_epoch(data.train, batch)
    loop = Loop(
        net,
        data.train,
        compute,
        batch=batch,
        budget=budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch),
        optimisation=Optimisation(lr, momentum, weight_decay, warmup=0.0, clip_norm=clip_norm, nesterov=False),
        seed=seed,
        augment=augment,
        channels_last=channels_last,
        settings={"auxiliary": auxiliary, "drop_path": drop_path, "label_smoothing": label_smoothing, "channels_last": channels_last},
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        name=name,
        on_epoch=(lambda: validation_accuracy(net, data.validation, channels_last=channels_last)) if len(data.validation) else None,
    )
    trace = loop.run()
    final = {"accuracy": math.nan, "top5": math.nan, **(trace.rows[-1] if trace.rows else {})}
    return TrainResult(trace.step, trace.step / per_epoch, trace.seconds, trace.loss, final["accuracy"], final["top5"], trace.rows)


__all__ = ["AUGMENT", "train_from_scratch"]
