"""Binary gates: Cai et al. 2019, "ProxylessNAS: Direct neural architecture search on target task and hardware", section 3.2."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sartor.arch import Space
from sartor.errors import UserError
from sartor.policies.base import Mixture, Policy
from sartor.policies.softmax import masked_log_softmax


class TwoPath(Policy):
    """One path at a time runs in the weight step, two in the architecture step: memory does not grow with the options.

    The weight step draws one option of each choice from ``p = softmax(alpha)`` (equation 2). The architecture step draws two without
    replacement, forms the softmax over these two alone, and opens the gate of one of them; both run, the closed one with weight 0. The
    gates' weights are ``g + p - stop_gradient(p)``, so that the gradient is that of equation 4,
    ``dL/dalpha_i = sum_j dL/dg_j * p_j * (delta_ij - p_i)``, with j over the two. After the optimiser's step :meth:`updated` moves the pair
    together such that the probabilities of the options that were not drawn stay as they were (section 3.2.1, "learning binarized
    architecture parameters"; appendix).

    The mixture of a forward pass and the one that a cost is charged for differ: `expected` has all options, as equation 2 of section 3.3
    asks. The optimiser must not move parameters without a gradient: Adam with ``betas=(0, 0.999)`` and no decay, as in the authors' code.

    Raises:
        UserError: for `edges`: the gates of a choice are zero and one.
    """

    orders: ClassVar[tuple[int, ...]] = (1,)  # the unrolled step has several passes, each with a pair of its own

    def __init__(self, space: Space, **settings: Any) -> None:
        if settings.get("edges") is not None:
            raise UserError("two-path gates are zero or one and take no edge weights; leave edges= out")
        super().__init__(space, **settings)
        self._pair: Tensor | None = None  # options drawn for the step in progress, (choices, 2)
        self._before: Tensor | None = None  # log of the sum of their exponentials

    def probabilities(self) -> Tensor:
        return masked_log_softmax(self.alpha, self.mask).exp()

    def weights(self, generator: torch.Generator | None, fraction: float) -> tuple[Tensor, Tensor]:
        if not self.names:
            return torch.zeros_like(self.alpha), self.mask
        pair = torch.multinomial(self._positive(), 2, generator=generator)
        drawn = self.alpha.gather(1, pair)
        self._pair, self._before = pair, torch.logsumexp(drawn.detach(), 1)
        p = torch.softmax(drawn, 1)
        opened = torch.multinomial(p.detach(), 1, generator=generator)
        gates = torch.zeros_like(p).scatter(1, opened, 1.0) + (p - p.detach())
        support = torch.zeros_like(self.mask).scatter(1, pair, True)
        return torch.zeros_like(self.alpha).scatter(1, pair, gates), support

    def sample_weights(self, generator: torch.Generator | None = None, *, fraction: float = 0.0) -> Mixture:
        """One path: its gates are open, nothing else runs."""
        one: Mixture = dict(self.draw(generator))
        # What is switched off runs nowhere, but must name an option that is allowed.
        return {name: allowed[0] if one[name] not in allowed else one[name] for name, allowed in self.space.allowed.items()}

    @torch.no_grad()
    def updated(self) -> None:
        """Put the pair's share of the probability back to what it was before the step."""
        if self._pair is None or self._before is None:
            return
        drawn = self.alpha.gather(1, self._pair)
        drawn = drawn - (torch.logsumexp(drawn, 1) - self._before)[:, None]
        self.alpha.scatter_(1, self._pair, drawn)
        self._pair = self._before = None

    def _positive(self) -> Tensor:
        """Probabilities for drawing two: an allowed option that has underflowed to zero can still be the second."""
        p = self.probabilities().detach()
        return torch.where(self.mask, p.clamp_min(1e-20), torch.zeros_like(p))


__all__ = ["TwoPath"]
