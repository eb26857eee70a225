"""Depthwise convolution of stride 1 with fast gradients.

The libraries compute its weight gradient slowly for kernels of 5x5 on a CPU, above all on small maps. There it is a correlation: with the
products of all pairs of pixels of the two maps, one matrix a channel summed over the batch, every tap is the sum of the pairs at its
distance. The gradient in the input is the same convolution with the kernel turned round.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

#: Pixels of a map up to which all pairs are cheaper than the library's weight gradient.
PAIRS = 36


class _Depthwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            dx, dw, _ = _library(dy, x, weight, [need_x, need_weight, False])
            return dx, dw
        dx = _convolved(dy, weight.flip(2, 3)) if need_x else None
        if not need_weight:
            return dx, None
        if weight.shape[-1] == 5 and x.shape[2] * x.shape[3] <= PAIRS:
            return dx, weight_gradient(x, dy, weight.shape[-1])
        return dx, _library(dy, x, weight, [False, True, False])[1]


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, 1, weight.shape[-1] // 2, 1, x.shape[1])


def _library(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> Any:
    margin = [weight.shape[-1] // 2] * 2
    return torch.ops.aten.convolution_backward(dy, x, weight, None, [1, 1], margin, [1, 1], False, [0, 0], x.shape[1], mask)


def depthwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """``conv2d(x, weight, padding=kernel // 2, groups=C)`` of `x` `(batch, C, H, W)` and `weight` `(C, 1, kernel, kernel)`, kernel odd."""
    found: Tensor = _Depthwise.apply(x, weight)  # type: ignore[no-untyped-call]  # torch's Function.apply has no types
    return found


def weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> Tensor:
    """Gradient in the weight `(C, 1, kernel, kernel)`, from all pairs of pixels: for small maps."""
    batch, channels, height, width = x.shape
    columns = [t.permute(1, 2, 3, 0).reshape(channels, height * width, batch) for t in (dy, x)]
    pairs = torch.bmm(columns[0], columns[1].transpose(1, 2))
    found = pairs.flatten(1) @ _taps(height, width, kernel).to(pairs)
    return found.view(channels, 1, kernel, kernel)


@lru_cache(maxsize=32)
def _taps(height: int, width: int, kernel: int) -> Tensor:
    """Which tap each pair (pixel of the output, pixel of the input) belongs to: zeros and ones `(pixels * pixels, kernel * kernel)`."""
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    margin = kernel // 2
    down = rows[None, :] - rows[:, None] + margin
    right = columns[None, :] - columns[:, None] + margin
    inside = (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel)
    taps = torch.zeros(height * width, height * width, kernel * kernel)
    tap = torch.where(inside, down * kernel + right, 0)
    taps.scatter_(2, tap[..., None], inside[..., None].float())
    return taps.flatten(0, 1)


__all__ = ["PAIRS", "depthwise_conv", "weight_gradient"]
