"""Independent gates: FairDARTS (Chu et al. 2020, "Fair DARTS: Eliminating unfair advantages in differentiable architecture search")."""

from __future__ import annotations

import torch
from torch import Tensor

from sartor.policies.base import Policy


class Sigmoid(Policy):
    """Every option takes part, with weight ``sigmoid(alpha)`` of its own: options cooperate, they do not compete (section 4.1, eq. 3).

    The weights of a choice need not sum to 1. As a distribution over architectures, for costs, each gate counts by its share of the sum.
    """

    def gates(self) -> Tensor:
        """``sigmoid(alpha)`` `(choices, options)`, zero where an option is not allowed."""
        return torch.sigmoid(self.alpha) * self.mask

    def probabilities(self) -> Tensor:
        gates = self.gates()
        return gates / gates.sum(1, keepdim=True)

    def merits(self) -> Tensor:
        """The gates themselves, as in the authors' code: an edge is not weaker for having many that are open."""
        return self.gates()

    def weights(self, generator: torch.Generator | None, fraction: float) -> tuple[Tensor, Tensor]:
        return self.gates(), self.mask
