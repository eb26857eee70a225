"""Depthwise convolution whose weight gradient stays quick on small maps.

Where a kernel is wider than the map that it slides over, the CPU backend computes the gradient of a depthwise weight by a reference loop:
some 20 to 70 times as slow as the rest of the backward pass (33 ms beside 0.5 ms for 64 x 960 x 1 x 1 and a 3x3 kernel). On such maps
the same gradient is a few products and sums, one for each tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """`F.conv2d` of `x` (batch, channels, H, W) with `weight` (channels, 1, k, k), odd k, padding `k // 2`, one group a channel."""
    size, channels = weight.shape[-1], x.shape[1]
    if size > min(x.shape[2:]) and weight.requires_grad and torch.is_grad_enabled():
        return _SmallMap.apply(x, weight, stride)  # type: ignore[no-any-return,no-untyped-call]  # torch leaves apply untyped
    return F.conv2d(x, weight, None, stride, size // 2, 1, channels)


class _SmallMap(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, stride = inputs
        ctx.save_for_backward(x, weight)
        ctx.stride = stride

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            padding = [weight.shape[-1] // 2] * 2
            by_input = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [ctx.stride] * 2, padding, [1, 1], False, [0, 0], x.shape[1], [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(x, gradient, weight.shape[-1], ctx.stride)
        return by_input, by_weight, None


def _by_weight(x: Tensor, gradient: Tensor, size: int, stride: int) -> Tensor:
    """Gradient (channels, 1, size, size): for each tap, the products of what it saw with the gradients of what it gave, summed."""
    padding, (height, width) = size // 2, gradient.shape[2:]
    taps = []
    for i in range(size):
        rows = _overlap(i - padding, stride, height, x.shape[2])
        for j in range(size):
            columns = _overlap(j - padding, stride, width, x.shape[3])
            if rows is None or columns is None:
                taps.append(x.new_zeros(x.shape[1]))
                continue
            seen = x[:, :, rows[1], columns[1]]
            taps.append((seen * gradient[:, :, rows[0], columns[0]]).sum((0, 2, 3)))
    return torch.stack(taps, 1).view(-1, 1, size, size)


def _overlap(offset: int, stride: int, outputs: int, inputs: int) -> tuple[slice, slice] | None:
    """Which outputs of a tap at `offset` read inside the map, and which inputs those are; None for a tap that only sees padding."""
    first = max(0, -(offset // stride))  # smallest o with o * stride + offset >= 0
    last = min(outputs - 1, (inputs - 1 - offset) // stride)
    if last < first:
        return None
    start = first * stride + offset
    return slice(first, last + 1), slice(start, last * stride + offset + 1, stride)


@contextmanager
def quick_depthwise(module: nn.Module) -> Iterator[None]:
    """Ordinary depthwise convolutions of a plain network run through :func:`depthwise_conv2d` while the context lasts; equal numbers."""
    found = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and _is_plain(layer)]
    for layer in found:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]  # an instance's own forward, removed below
    try:
        yield
    finally:
        for layer in found:
            del layer.forward


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return depthwise_conv2d(x, layer.weight, layer.stride[0])


def _is_plain(layer: nn.Conv2d) -> bool:
    size = layer.kernel_size[0]
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.bias is None
        and layer.kernel_size == (size, size)
        and size % 2 == 1
        and layer.stride[0] == layer.stride[1]
        and layer.dilation == (1, 1)
        and layer.padding == (size // 2, size // 2)
        and layer.padding_mode == "zeros"
        and "forward" not in vars(layer)
    )
