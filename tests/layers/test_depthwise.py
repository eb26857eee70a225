"""The depthwise convolution with quick gradients equals the ordinary one: values, gradients, second derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sartor.layers import depthwise
from sartor.layers.depthwise import depthwise_conv2d, quick_depthwise


@settings(deadline=None, max_examples=80)
@given(
    height=st.integers(1, 10),
    width=st.integers(1, 10),
    size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    channels=st.integers(1, 5),
)
def test_value_and_gradients_equal_the_ordinary_convolution(height: int, width: int, size: int, stride: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.randn(3, channels, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels, 1, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    found, wanted = depthwise_conv2d(x, weight, stride), F.conv2d(x, weight, None, stride, size // 2, 1, channels)
    assert torch.equal(found, wanted)
    upstream = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, (x, weight), upstream), torch.autograd.grad(wanted, (x, weight), upstream), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize(("size", "way"), [((3, 3), "_by_taps"), ((8, 8), "_by_columns")])
def test_single_precision_in_channels_last(size: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def watch(name: str) -> None:
        true = getattr(depthwise, name)
        monkeypatch.setattr(depthwise, name, lambda *a: taken.append(name) or true(*a))

    watch("_by_taps")
    watch("_by_columns")
    torch.manual_seed(0)
    x = torch.randn(16, 16, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 1, 5, 5).requires_grad_()
    grads = [torch.autograd.grad(f(x, weight).square().sum(), [x, weight]) for f in (depthwise_conv2d, _ordinary)]
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert taken == [way]


def _ordinary(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, None, 1, weight.shape[-1] // 2, 1, x.shape[1])


@pytest.mark.parametrize(("size", "kernel"), [(2, 3), (4, 5), (6, 5)])
def test_second_derivatives_agree(size: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: depthwise_conv2d(a, b).sin(), (x, weight))


def test_small_maps_take_the_quick_way_and_a_plain_network_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(depthwise, "_by_taps", lambda *a: taken.append(a[2]) or torch.zeros_like(net[1].weight))
    net = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.Conv2d(4, 4, 5, 1, 2, groups=4, bias=False))
    with quick_depthwise(net):
        net(torch.randn(2, 4, 6, 6)).sum().backward()  # maps of 6 and 3: only the second kernel is wider than its map
    assert taken == [5]
    net(torch.randn(2, 4, 6, 6)).sum().backward()
    assert taken == [5] and all("forward" not in vars(layer) for layer in net)
