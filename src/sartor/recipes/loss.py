"""Losses on hard or soft targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of `logits` (batch, classes).

    Args:
        target: class indices (batch,) int64, or class probabilities (batch, classes) as mixup makes them.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7).
    """
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def soft_targets(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Detached probabilities (batch, classes) of a teacher's logits: no gradient ever reaches the teacher through them."""
    return F.softmax(logits.detach() / temperature, dim=1)


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(targets ‖ softmax(logits / T)), mean over the batch (Hinton et al. 2015, section 2).

    The factor T² keeps the gradient's scale independent of the temperature. `targets` (batch, classes) come from :func:`soft_targets`
    at the same temperature.
    """
    log_probabilities = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(log_probabilities, targets, reduction="batchmean") * temperature**2


def is_finite(value: float) -> bool:
    return value - value == 0.0


def as_target(labels: Tensor) -> Tensor:
    """Integer labels as int64, soft labels as float32."""
    return labels.float() if labels.is_floating_point() else labels.to(torch.int64)
