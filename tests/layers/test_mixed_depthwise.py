"""Gradients of the depthwise convolution against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sartor.layers.mixed_depthwise import PAIRS, depthwise_conv


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 10), st.integers(1, 10), st.sampled_from([1, 3, 5]))
def test_value_and_gradients(batch: int, channels: int, height: int, width: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator, dtype=torch.float64).requires_grad_()
    ours, theirs = depthwise_conv(x, weight), F.conv2d(x, weight, None, 1, kernel // 2, 1, channels)
    assert torch.allclose(ours, theirs, atol=1e-12)
    dy = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(ours, [x, weight], dy), torch.autograd.grad(theirs, [x, weight], dy), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("size", [(4, 4), (6, 6), (8, 8)])
def test_single_precision_in_channels_last(size: tuple[int, int]) -> None:
    assert 6 * 6 <= PAIRS < 8 * 8  # both ways are taken
    torch.manual_seed(0)
    x = torch.randn(16, 16, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 1, 5, 5).requires_grad_()
    grads = [torch.autograd.grad(f(x, weight).square().sum(), [x, weight]) for f in (depthwise_conv, _theirs)]
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def _theirs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, None, 1, 2, 1, 16)


def test_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 1, 5, 5, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise_conv(x, w).sin(), (x, weight))
