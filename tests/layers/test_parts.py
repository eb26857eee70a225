"""Mixtures, elastic layers and combinators on their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.layers import Chain, Choice, ConvBNAct, ElasticBatchNorm2d, ElasticConv2d, ElasticDepth, ElasticLinear, OneOf, Width
from sartor.layers.base import activate, activation, drop_path_of
from sartor.layers.blocks import SqueezeExcite
from sartor.layers.choice import make_divisible, mix

weights3 = st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


@given(weights3, st.sampled_from([1, 2]), st.booleans())
def test_a_mixture_of_kernels_is_the_mixture_of_the_convolutions(weights: list[float], stride: int, depthwise: bool) -> None:
    """Convolution is linear in its weight: one convolution with the mixed weight costs as much as one option."""
    conv = stirred(ElasticConv2d(6, 6 if depthwise else 4, Choice("k", (3, 5, 7)), stride, depthwise=depthwise))
    x = noise(2, 6, 9, 11)
    mixed = conv(x, {"k": dict(enumerate(weights))})
    apart = sum(w * conv(x, {"k": i}) for i, w in enumerate(weights))
    torch.testing.assert_close(mixed, apart, rtol=1e-4, atol=1e-4)


def test_small_kernels_are_the_transformed_centre_of_the_large_one() -> None:
    """Once-for-all, section 3.3: 7 -> 5 -> 3 by learned linear maps that start as the identity."""
    conv = ElasticConv2d(2, 3, Choice("k", (3, 5, 7)))
    large = conv.weight
    assert torch.equal(conv.kernel_weight(5, 3, (2,)), large[..., 1:6, 1:6])
    assert torch.equal(conv.kernel_weight(3, 3, (2,)), large[..., 2:5, 2:5])
    with torch.no_grad():
        conv.transforms["5"][0].zero_()
    five = conv.kernel_weight(5, 3, (2,))
    assert not five[..., 0, 0].any() and torch.equal(five[..., 1, 1], large[..., 2, 2])
    with torch.no_grad():
        conv.transforms["5"].mul_(2.0)
    assert torch.equal(conv.kernel_weight(3, 3, (2,)), 2.0 * large[..., 2:5, 2:5])  # 3 comes from 5, not from 7


@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_segments_keep_their_columns_at_every_width(a: int, b: int, out: int) -> None:
    """A concatenated input meets the weights of its own segment, however wide the segment before it is."""
    first, second = Width.of(Choice("a", (2, 4, 6))), Width.of(Choice("b", (3, 5, 7)))
    conv = ElasticConv2d((first, second), Choice("out", (4, 6, 8)), 3)
    arch = {"a": a, "b": b, "out": out}
    x, y = noise(2, first.at(arch), 5, 5), noise(2, second.at(arch), 5, 5, seed=1)
    whole = conv(torch.cat((x, y), 1), arch)
    n = (4, 6, 8)[out]
    apart = F.conv2d(x, conv.weight[:n, : x.shape[1]], padding=1) + F.conv2d(y, conv.weight[:n, 6 : 6 + y.shape[1]], padding=1)
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(conv.extract(arch)(torch.cat((x, y), 1)), whole, rtol=1e-5, atol=1e-5)


def test_width_slices_are_shared_and_masks_come_after_the_activation() -> None:
    layer = stirred(ConvBNAct(3, Choice("w", (2, 4, 6)), 3, act="relu"))
    x = noise(8, 3, 6, 6)
    outs = [layer(x, {"w": i}) for i in range(3)]
    for i, channels in enumerate((2, 4, 6)):
        torch.testing.assert_close(outs[2][:, :channels], outs[i])
    mixed = layer(x, {"w": {0: 0.5, 1: 0.3, 2: 0.2}})
    scale = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.2, 0.2]).view(1, -1, 1, 1)
    torch.testing.assert_close(mixed, outs[2] * scale)  # were the mask before batch normalisation, the scale would be lost


def test_batch_statistics_are_used_in_evaluation_too() -> None:
    norm = ElasticBatchNorm2d(Choice("w", (2, 4)))
    x = 5 + 3 * noise(16, 4, 5, 5)
    for training in (True, False):
        out = norm.train(training)(x, {"w": 1})
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.var((0, 2, 3), unbiased=False), torch.ones(4), atol=1e-4, rtol=0)
    assert not list(norm.buffers())


@given(weights3)
def test_one_of_is_the_weighted_sum_of_its_options(weights: list[float]) -> None:
    torch.manual_seed(0)
    layer = OneOf("op", {"conv": ConvBNAct(4, 4, 3), "pool": nn.AvgPool2d(3, 1, 1), "skip": nn.Identity()})
    x = noise(4, 4, 6, 6)
    parts = [layer(x, {"op": i}) for i in range(3)]
    torch.testing.assert_close(layer(x, {"op": dict(enumerate(weights))}), sum(w * p for w, p in zip(weights, parts, strict=True)))
    two = layer(x, {"op": {2: weights[2], 0: weights[0]}})
    torch.testing.assert_close(two, weights[2] * parts[2] + weights[0] * parts[0])


def test_one_of_computes_only_what_takes_part() -> None:
    """ProxylessNAS: memory and time of the paths in the mixture, whatever the number of candidates."""
    calls: list[int] = []

    class Spy(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.number)
            return x

    layer = OneOf("op", [Spy(i) for i in range(5)])
    layer(noise(1, 2), {"op": {3: 0.5, 1: 0.5}})
    layer(noise(1, 2), {"op": 4})
    assert calls == [3, 1, 4]


@pytest.mark.parametrize("depths", [(1, 2, 3), (0, 2), (3,)])
def test_elastic_depth_runs_the_first_blocks_and_mixes_outputs(depths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = ElasticDepth(Choice("d", depths), [ConvBNAct(4, 4, 3) for _ in range(3)])
    x = noise(4, 4, 5, 5)
    by_depth = []
    for index, depth in enumerate(depths):
        expected = x
        for block in list(layer.blocks)[:depth]:
            expected = block(expected, {})
        by_depth.append(expected)
        torch.testing.assert_close(layer(x, {"d": index}), expected)
        plain = layer.extract({"d": index}).train()
        assert len(plain) == depth
        torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
    if len(depths) > 1:
        shares = {i: 1.0 / (i + 2) for i in range(len(depths))}
        torch.testing.assert_close(layer(x, {"d": shares}), sum(s * by_depth[i] for i, s in shares.items()))


def test_linear_slices_both_widths_and_masks_a_mixture() -> None:
    layer = stirred(ElasticLinear(Choice("a", (3, 5)), Choice("b", (2, 4))))
    x = noise(6, 3)
    out = layer(x, {"a": 0, "b": 0})
    torch.testing.assert_close(out, x @ layer.weight[:2, :3].T + layer.bias[:2])
    torch.testing.assert_close(layer.extract({"a": 0, "b": 0})(x), out)
    mixed = layer(x, {"a": 0, "b": {0: 0.25, 1: 0.75}})
    torch.testing.assert_close(mixed, layer(x, {"a": 0, "b": 1}) * torch.tensor([1.0, 1.0, 0.75, 0.75]))


def test_squeezed_channels_of_a_wide_computation_are_masked() -> None:
    """A squeezed channel that the chosen width does not have must not excite anything."""
    width = Width.of(Choice("w", (4, 8)))
    layer = stirred(SqueezeExcite(width, Width.of(Choice("w", (2, 6))), Choice("se", (True,))))
    x = noise(3, 8, 4, 4)
    x[:, 4:] = 0.0
    wide = layer(x, {"w": {0: 1.0, 1: 0.0}})
    torch.testing.assert_close(wide[:, :4], layer(x[:, :4], {"w": 0}))


@pytest.mark.parametrize(("name", "reference"), [("relu", F.relu), ("relu6", F.relu6), ("hardswish", F.hardswish), ("swish", F.silu)])
def test_activations_and_their_modules_agree(name: str, reference: Callable[[Tensor], Tensor]) -> None:
    x = 5 * noise(50)
    torch.testing.assert_close(activation(name)(x.clone()), reference(x))
    both = Choice("act", ("none", name))
    torch.testing.assert_close(activate(x, both, {"act": 1}), reference(x))
    torch.testing.assert_close(activate(x, both, {"act": {0: 0.3, 1: 0.7}}), 0.3 * x + 0.7 * reference(x))


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = drop_path_of(torch.ones(4000, 2, 3), 0.25)
    per_sample = out.flatten(1)
    assert set(np.unique(per_sample.numpy()).round(5)) == {0.0, np.float32(4 / 3).round(5)}
    assert bool((per_sample == per_sample[:, :1]).all())
    assert abs(float(out.mean()) - 1.0) < 0.03


@given(st.floats(1, 5000), st.sampled_from([4, 8, 16]))
def test_make_divisible_is_near_and_never_a_tenth_below(value: float, divisor: int) -> None:
    result = make_divisible(value, divisor)
    assert result % divisor == 0 and result >= divisor
    assert result >= 0.9 * value
    assert result <= max(divisor, value + divisor)


def test_a_chain_passes_the_architecture_on() -> None:
    torch.manual_seed(0)
    chain = Chain(ConvBNAct(3, Choice("w", (4, 8)), 3), nn.MaxPool2d(2), ConvBNAct(Width.of(Choice("w", (4, 8))), 5))
    for index in range(2):
        x = noise(4, 3, 8, 8)
        plain = chain.extract({"w": index}).train()
        assert plain[0][0].out_channels == (4, 8)[index]
        torch.testing.assert_close(plain(x), chain(x, {"w": index}), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Choice("c", ()), "choice 'c' has no options"),
        (lambda: Choice("c", (1, 2)).pick({"c": {0: 1.0}}), "must be one option here"),
        (lambda: Choice("c", (1, 2)).value({"d": 0}), "no choice 'c', which a layer reads; it has: d"),
        (lambda: OneOf("op", [nn.Identity(), nn.ReLU()]).extract({"op": {0: 0.5, 1: 0.5}}), "must be one option here"),
    ],
)
def test_mistakes(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_mix_weighs_terms_and_passes_gradients() -> None:
    weight = torch.tensor(0.25, requires_grad=True)
    out = mix({0: weight, 1: 1 - weight}, lambda i: torch.tensor([1.0, 5.0])[i])
    assert out.item() == pytest.approx(4.0)
    out.backward()
    assert weight.grad is not None and weight.grad.item() == pytest.approx(-4.0)
