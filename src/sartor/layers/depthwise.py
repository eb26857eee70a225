"""Depthwise convolution with quick gradients.

The CPU backend has a quick weight gradient of depthwise convolutions for kernels of at most three columns that fit into their map; else it
runs loops that take up to 70 times as long as the rest of the backward pass (3.7 ms for 64 x 64 x 14 x 14 and a 5x5 kernel, of which the
convolution itself takes 0.25 ms; 33 ms for 64 x 960 x 1 x 1 and a 3x3 kernel). Two other ways give the same numbers:

- *columns*: a wide kernel's gradient is put together from those of kernels three columns wide, each on the input moved sideways.
- *taps*: each tap's gradient is one product and sum of what it saw with the gradients of what it gave; for kernels wider than their map.

With stride 1 the gradient in the input is the same convolution with the kernel turned round.
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
    if torch.is_autocast_enabled("cpu"):  # a product of few terms gains nothing from bf16, and its gradients lose much
        with torch.autocast("cpu", enabled=False):
            return depthwise_conv2d(x.float(), weight.float(), stride)
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if trained and (stride == 1 or weight.shape[-1] > min(3, *x.shape[2:])):
        return _Depthwise.apply(x, weight, stride)  # type: ignore[no-any-return,no-untyped-call]  # torch leaves apply untyped
    return _convolved(x, weight, stride)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return _convolved(x, weight, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, stride = inputs
        ctx.save_for_backward(x, weight)
        ctx.stride = stride

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        by_input, by_weight, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            return (*_by_backend(gradient, x, weight, ctx.stride, by_input, by_weight), None)
        for_input = _by_input(gradient, x, weight, ctx.stride) if by_input else None
        for_weight = _by_weight(gradient, x, weight, ctx.stride) if by_weight else None
        return for_input, for_weight, None


def _convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])


def _by_backend(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, by_input: bool, by_weight: bool, padding: tuple[int, int] | None = None
) -> tuple[Tensor | None, Tensor | None]:
    margin, mask = padding or [weight.shape[-1] // 2] * 2, [by_input, by_weight, False]
    found = torch.ops.aten.convolution_backward(gradient, x, weight, None, [stride] * 2, margin, [1, 1], False, [0, 0], x.shape[1], mask)
    return found[0], found[1]


def _by_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor | None:
    if stride == 1:
        return _convolved(gradient, weight.flip(2, 3), 1)
    return _by_backend(gradient, x, weight, stride, True, False)[0]


def _by_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor | None:
    size = weight.shape[-1]
    if size > min(x.shape[2:]):
        return _by_taps(x, gradient, size, stride)
    if size > 3:
        return _by_columns(x, gradient, size, stride)
    return _by_backend(gradient, x, weight, stride, False, True)[1]


def _by_columns(x: Tensor, gradient: Tensor, size: int, stride: int) -> Tensor:
    """Gradient (channels, 1, size, size), three columns at a time; the last column of three is the first of the next."""
    margin, seen = size // 2, stride * (gradient.shape[3] - 1) + 3
    wide = F.pad(x, (margin, margin))
    found = x.new_empty(x.shape[1], 1, size, size)
    three = x.new_empty(x.shape[1], 1, size, 3)  # of which the backend reads the shape alone
    for first in range(0, size - 2, 2):
        part = wide[:, :, :, first : first + seen]
        columns = _by_backend(gradient, part, three, stride, False, True, (margin, 0))[1]
        assert columns is not None
        found[..., first : first + 3] = columns
    return found


def _by_taps(x: Tensor, gradient: Tensor, size: int, stride: int) -> Tensor:
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
