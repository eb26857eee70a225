"""Dirichlet samples: DrNAS (Chen et al. 2021, "DrNAS: Dirichlet neural architecture search", section 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Dirichlet as _Dirichlet
from torch.nn import functional as F

from sartor.policies.base import Policy


class Dirichlet(Policy):
    """Each pass draws the weights of every choice from ``Dirichlet(elu(alpha) + 1)``, with pathwise gradients.

    The gradient passes through the sample by implicit reparameterisation (section 3.2, equation 5; Jankowiak & Obermeyer 2018). The
    expected weights are ``concentration / sum``.
    """

    def concentration(self) -> Tensor:
        """``elu(alpha) + 1`` `(choices, options)`, all positive; 1 where an option is not allowed (it takes no part)."""
        return torch.where(self.mask, F.elu(self.alpha) + 1.0, torch.ones_like(self.alpha))

    def probabilities(self) -> Tensor:
        kept = self.concentration() * self.mask
        return kept / kept.sum(1, keepdim=True)

    def weights(self, generator: torch.Generator | None, fraction: float) -> tuple[Tensor, Tensor]:
        # A Dirichlet draw is gamma draws over their sum; dropping the options that are not allowed leaves a Dirichlet over the others.
        # torch.distributions draws its gammas with this same function, but takes no generator.
        gammas = torch._standard_gamma(self.concentration(), generator=generator) * self.mask
        return gammas / gammas.sum(1, keepdim=True), self.mask


def anchor(policy: Dirichlet) -> Tensor:
    """KL divergence of the policy's Dirichlets from the uniform Dirichlet(1, ..., 1), summed over choices, a scalar.

    DrNAS adds it, with weight 1e-3, to balance exploration and exploitation (section 3.2, equation 6).
    """
    total = policy.alpha.new_zeros(())
    concentration = policy.concentration()
    for row in range(len(policy.names)):
        own = concentration[row][policy.mask[row]]
        total = total + torch.distributions.kl_divergence(_Dirichlet(own), _Dirichlet(torch.ones_like(own)))
    return total
