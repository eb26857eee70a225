"""Softmax relaxation: DARTS (Liu et al. 2019, "DARTS: Differentiable architecture search", section 2.2, equation 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from sartor.policies.base import Policy


def masked_log_softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the allowed options of each row, `(choices, options)`; minus infinity elsewhere."""
    return torch.log_softmax(alpha.masked_fill(~mask, -torch.inf), 1)


class Softmax(Policy):
    """Every option takes part, with weight ``softmax(alpha)``: deterministic."""

    def probabilities(self) -> Tensor:
        return torch.softmax(self.alpha.masked_fill(~self.mask, -torch.inf), 1)
