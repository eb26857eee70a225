from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.layers.base import OneOf
from sartor.layers.choice import Choice
from sartor.layers.conv import ElasticBatchNorm2d, ElasticConv2d
from sartor.layers.partial import PartialChannels, SkipDropout, fixed_norms, partial_channels, skip_dropout
from sartor.layers.plain import shuffle_channels
from sartor.spaces.nasbench201 import CHOICES, NasBench201, from_string


class Elastic(nn.Module):
    """A network with a choice, but no mixed operation with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ElasticConv2d(3, 4, Choice("k", (3, 5)))


def small_net(channels: int = 8) -> NasBench201:
    torch.manual_seed(0)
    return NasBench201((3, 8, 8), 4, channels=channels, cells=1)


def mixture(seed: int, scale: float = 1.0) -> dict[str, dict[int, torch.Tensor]]:
    p = scale * torch.softmax(torch.randn(len(CHOICES), 5, generator=torch.Generator().manual_seed(seed)), 1)
    return {name: dict(enumerate(row)) for name, row in zip(CHOICES, p, strict=True)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_shuffle_interleaves_the_groups(layout: torch.memory_format) -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 3, 3).contiguous(memory_format=layout)
    assert shuffle_channels(x, 4)[0, :, 0, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert shuffle_channels(x, 2)[1, :, 2, 1].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert shuffle_channels(x, 2).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("k", [2, 4])
def test_partial_mixed_operation_is_the_papers(k: int) -> None:
    """Xu et al. 2020, equations 2 and 4: beta * (sum p_o o(first 1/k) joined with the rest), channels shuffled."""
    torch.manual_seed(1)
    inner = OneOf("e", {"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1), "conv": nn.Conv2d(8 // k, 8 // k, 1, bias=False)})
    layer, x, beta = PartialChannels(inner, k), torch.randn(2, 8, 5, 5), 0.3
    p = torch.tensor([0.5, 0.2, 0.3])
    found = layer(x, {"e": dict(enumerate(beta * p))})
    head, rest = x[:, : 8 // k], x[:, 8 // k :]
    mixed = sum(w * option(head) for w, option in zip(p, inner.options, strict=True))
    joined = beta * torch.cat([mixed, rest], 1)
    expected = joined.view(2, k, 8 // k, 5, 5).transpose(1, 2).reshape(2, 8, 5, 5)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, joined, atol=1e-3), "without the shuffle the same channels would pass by everywhere"


def test_partial_layer_of_stride_two_pools_what_passes_by() -> None:
    inner = OneOf("e", {"a": nn.MaxPool2d(3, 2, 1), "b": nn.Conv2d(2, 2, 1, 2)})
    layer, x = PartialChannels(inner, 2), torch.randn(1, 4, 6, 6)
    found = layer(x, {"e": 0})
    assert torch.equal(found[:, [1, 3]], F.max_pool2d(x[:, 2:], 2, 2))


def test_one_hot_equals_discrete_equals_extracted_for_a_partial_network() -> None:
    net = partial_channels(small_net(), 4)
    x = torch.randn(4, 3, 8, 8)
    for text in ("|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|",
                 "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"):  # fmt: skip
        arch = from_string(text)
        expected = net(x, arch)
        assert torch.allclose(net(x, {name: {index: torch.ones(())} for name, index in arch.items()}), expected, atol=1e-5)
        plain = net.extract(arch)
        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        assert torch.allclose(plain(x), expected, atol=1e-5)


def test_partial_network_keeps_the_other_weights_and_needs_less() -> None:
    net = small_net(16)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    partial = partial_channels(net, 4)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items()), "the given network is left as it was"
    own, theirs = net.state_dict(), partial.state_dict()
    assert all(torch.equal(theirs[name], t) for name, t in own.items() if ".edges." not in name)
    narrow = [m for m in partial.modules() if isinstance(m, PartialChannels)]
    assert len(narrow) == 18 and {m.k for m in narrow} == {4}
    convs = [m.weight for m in narrow[0].inner.modules() if isinstance(m, ElasticConv2d)]
    assert {tuple(w.shape[:2]) for w in convs} == {(4, 4)}


def test_k_falls_to_a_divisor_of_the_channels() -> None:
    assert {m.k for m in partial_channels(small_net(8), 6).modules() if isinstance(m, PartialChannels)} == {4}
    assert not any(isinstance(m, PartialChannels) for m in partial_channels(small_net(8), 1).modules())


@pytest.mark.parametrize("k", [0, 2])
def test_networks_without_mixed_operations_and_bad_k_are_refused(k: int) -> None:
    with pytest.raises(UserError, match="partial channels"):
        partial_channels(Elastic(), k)


def test_skip_dropout_drops_at_the_given_rate_only() -> None:
    x = torch.ones(64, 8, 4, 4)
    layer = SkipDropout()
    assert torch.equal(layer(x, {}), x)
    torch.manual_seed(0)
    dropped = layer(x, {}, 0.4)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)


def test_skip_dropout_reaches_the_skips_of_a_network_and_nothing_else() -> None:
    net = small_net()
    dropping = skip_dropout(net)
    x = torch.randn(4, 3, 8, 8)
    skips = dict.fromkeys(CHOICES, net.space.option("edge01", "skip_connect"))
    convs = dict.fromkeys(CHOICES, net.space.option("edge01", "nor_conv_1x1"))
    assert torch.equal(net(x, skips, 0.5), net(x, skips))
    assert torch.equal(dropping(x, skips), net(x, skips))
    assert not torch.allclose(dropping(x, skips, 0.5), net(x, skips))
    assert torch.equal(dropping(x, convs, 0.5), net(x, convs))
    with pytest.raises(UserError, match="skip_connect"):
        skip_dropout(Elastic())


def test_fixed_norms_freeze_the_mixed_operations_alone() -> None:
    net: Any = fixed_norms(small_net())
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    norms = {f"{path}.{n}" for path, m in net.named_modules() if isinstance(m, ElasticBatchNorm2d) for n in ("weight", "bias")}
    assert frozen == {name for name in norms if ".edges." in name} and frozen
    assert all(p.requires_grad for p in small_net().parameters())


def test_an_option_that_carries_nothing_is_not_computed_beside_others() -> None:
    class Nothing(nn.Module):
        zero = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return x * 0.0

    nothing, x = Nothing(), torch.randn(2, 3, 4, 4)
    layer = OneOf("e", {"none": nothing, "skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)})
    weights = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    out = layer(x, {"e": dict(enumerate(weights))})
    assert torch.equal(out, weights[1] * x + weights[2] * layer.options[2](x))
    assert torch.autograd.grad(out.sum(), weights)[0][0] == 0
    assert not hasattr(nothing, "calls")
    assert torch.equal(layer(x, {"e": {0: 1.0}}), x * 0.0) and torch.equal(layer(x, {"e": 0}), x * 0.0)


def test_edge_weights_scale_the_whole_partial_edge() -> None:
    net = partial_channels(small_net(), 4)
    cell, x = net.body[0], torch.randn(2, 8, 6, 6)
    edge, whole, half = cell.edges[0], mixture(0), mixture(0, scale=0.5)
    assert torch.allclose(edge(x, half), 0.5 * edge(x, whole), atol=1e-6)
