"""The quick depthwise convolution equals the ordinary one, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sartor.layers import depthwise
from sartor.layers.depthwise import depthwise_conv2d, quick_depthwise


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
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
        assert torch.allclose(one, other, atol=1e-12)


def test_second_derivatives_agree() -> None:
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: depthwise_conv2d(a, b), (x, weight))


def test_small_maps_take_the_quick_way_and_a_plain_network_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(depthwise, "_by_weight", lambda *a: taken.append(a[2]) or torch.zeros_like(net[1].weight))
    net = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.Conv2d(4, 4, 5, 1, 2, groups=4, bias=False))
    with quick_depthwise(net):
        net(torch.randn(2, 4, 6, 6)).sum().backward()  # maps of 6 and 3: only the second kernel is wider than its map
    assert taken == [5]
    net(torch.randn(2, 4, 6, 6)).sum().backward()
    assert taken == [5] and all("forward" not in vars(layer) for layer in net)
