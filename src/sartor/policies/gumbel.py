"""Gumbel-softmax samples (Jang et al. 2017; Maddison et al. 2017): SNAS and FBNet run all options, GDAS the strongest one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from sartor.arch import Space
from sartor.errors import UserError
from sartor.policies.base import Policy
from sartor.policies.softmax import masked_log_softmax


class Gumbel(Policy):
    """A random relaxation of the categorical distribution ``softmax(alpha)``.

    Each pass draws Gumbel noise g and weighs the options by ``softmax((log p + g) / temperature)`` (Xie et al. 2019, SNAS, section 2.2,
    equation 4). With `hard` the pass runs the option of largest weight alone, with weight ``1 + w - stop_gradient(w)``: 1 forward, and the
    gradient of the relaxation backward (Dong & Yang 2019, GDAS, section 3.2, equations 6 to 8). Memory then does not grow with the options.

    Args:
        temperature: at the start and at the end of the search; between them geometric (SNAS anneals exponentially) or linear (GDAS).
        hard: run one option.
        settings: of :class:`sartor.policies.base.Policy`.

    Raises:
        UserError: for a `temperature` that is no pair of finite numbers above zero.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ("range",)

    def __init__(
        self, space: Space, *, temperature: tuple[float, float] = (5.0, 0.1), linear: bool = False, hard: bool = False, **settings: Any
    ) -> None:
        super().__init__(space, **settings)
        ends = tuple(temperature) if isinstance(temperature, Iterable) else ()  # of any type: this is what a user gives a method
        if len(ends) != 2 or not all(isinstance(end, Real) and 0 < end < math.inf for end in ends):
            raise UserError(f"temperature: expected two positive numbers, the first and the last, such as (5.0, 0.1), got {temperature!r}")
        self.range, self.linear, self.hard = (ends[0], ends[1]), linear, hard

    def temperature(self, fraction: float) -> float:
        first, last = self.range
        return first + (last - first) * fraction if self.linear else first * (last / first) ** fraction

    def probabilities(self) -> Tensor:
        return masked_log_softmax(self.alpha, self.mask).exp()

    def weights(self, generator: torch.Generator | None, fraction: float) -> tuple[Tensor, Tensor]:
        log_p = masked_log_softmax(self.alpha, self.mask)
        noise = torch.empty_like(log_p).exponential_(generator=generator).clamp_min(torch.finfo(log_p.dtype).tiny)
        relaxed = torch.softmax((log_p - noise.log()) / self.temperature(fraction), 1)
        if not self.hard:
            return relaxed, self.mask
        strongest = torch.zeros_like(self.mask).scatter(1, relaxed.detach().argmax(1, keepdim=True), True)
        return (1.0 + relaxed - relaxed.detach()) * strongest, strongest
