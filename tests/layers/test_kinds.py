"""The consequences in docs/architecture.md, on every block kind in the table: adding a kind is having it tested."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sartor.hardware import trace
from sartor.layers import KINDS, Choice, Searchable, Width
from sartor.layers.blocks import BlockConfig, Hidden

from .helpers import CHOICES, block_of, cases, images, one_hot, train_mode, used

CASES = cases()


def archs(count: int, seed: int = 0) -> list[dict[str, int]]:
    rng = np.random.default_rng(seed)
    return [{name: int(rng.integers(len(options))) for name, options in CHOICES.items()} for _ in range(count)]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_one_hot_mixtures_equal_indices(kind: str, shape: str) -> None:
    block = block_of(kind, shape)
    for arch in archs(6):
        x = images(arch)
        expected = block(x, arch)
        torch.testing.assert_close(block(x, one_hot(arch)), expected, rtol=1e-5, atol=1e-5)
        for name in used(block):
            torch.testing.assert_close(block(x, {**arch, name: {arch[name]: 1.0}}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_extraction_is_plain_equal_alive_and_unshared(kind: str, shape: str) -> None:
    block = block_of(kind, shape)
    for arch in archs(6, seed=1):
        x = images(arch)
        plain = train_mode(block.extract(arch))
        assert not any(isinstance(m, Searchable) for m in plain.modules())
        out = plain(x)
        torch.testing.assert_close(out, block(x, arch), rtol=1e-5, atol=1e-5)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        (out * direction).sum().backward() if out.requires_grad else None
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        before = block(x, arch).detach()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(1.0)
        assert torch.equal(block(x, arch), before)


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("hw", [(7, 9), (8, 8), (1, 2)])
def test_ops_are_those_of_the_trace(kind: str, shape: str, hw: tuple[int, int]) -> None:
    block = block_of(kind, shape)
    for arch in archs(2, seed=2):
        plain = block.extract(arch)
        graph = trace(plain, (CHOICES["in"][arch["in"]], *hw))
        ops = block.ops(arch, hw)
        assert Counter(op.signature for op in ops) == Counter(op.signature for op in graph)
        assert sum(op.params + (op.out_shape[0] if op.kind == "conv" else 0) for op in ops) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_roles_name_every_choice_their_ops_depend_on(kind: str, shape: str) -> None:
    """Changing a choice outside a role's scope must not change that role's ops."""
    block = block_of(kind, shape)
    roles = block.roles()
    for arch in archs(4, seed=3):
        assert {op.name for op in block.ops(arch, (7, 9))} <= set(roles)
        for role, scope in roles.items():
            here = [op.signature for op in block.ops(arch, (7, 9)) if op.name == role]
            for name in set(CHOICES) - {c.name for c in scope}:
                for other in range(len(CHOICES[name])):
                    moved = block.ops({**arch, name: other}, (7, 9))
                    assert [op.signature for op in moved if op.name == role] == here, (role, name)


def softmaxed(names: list[str], seed: int) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    logits = {n: torch.randn(len(CHOICES[n]), generator=generator).requires_grad_() for n in names}
    return logits, {n: dict(enumerate(torch.softmax(v, 0))) for n, v in logits.items()}


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_gradients_reach_every_weight_of_every_mixture(kind: str, shape: str) -> None:
    """Widths too: a mask before batch normalisation would get none (FBNetV2, section 3.1)."""
    block = block_of(kind, shape)
    if kind == "skip":
        assert used(block) == []
        return
    mixed = [name for name in used(block) if name != "in" or shape == "residual"]
    weights = {n: [torch.tensor(1.0 / len(CHOICES[n]), requires_grad=True) for _ in CHOICES[n]] for n in mixed}
    arch = {**{n: len(o) - 1 for n, o in CHOICES.items()}, **{n: dict(enumerate(w)) for n, w in weights.items()}}
    out = block(torch.randn(4, CHOICES["in"][-1], 7, 9, generator=torch.Generator().manual_seed(1)), arch)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for name, parts in weights.items():
        for number, weight in enumerate(parts):
            assert weight.grad is not None and abs(weight.grad) > 1e-6, (name, number)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_straight_through_one_hot_equals_the_index(kind: str, shape: str) -> None:
    """GDAS: forward the chosen option, backward the soft weights; one key alone, and every key with value 0 or 1."""
    block = block_of(kind, shape)
    names = used(block)
    for seed, arch in enumerate(archs(3, seed=4)):
        _, soft = softmaxed(names, seed)
        x = images(arch)
        expected = block(x, arch)
        sparse = {n: {arch[n]: 1 + soft[n][arch[n]] - soft[n][arch[n]].detach()} for n in names}
        torch.testing.assert_close(block(x, {**arch, **sparse}), expected, rtol=1e-5, atol=1e-5)
        if kind == "mbconv_g2":
            continue  # which channels a group joins depends on the width, so a wider computation is another one
        inner = [n for n in names if n not in ("in", "out")]
        full = {n: {i: float(i == arch[n]) + p - p.detach() for i, p in soft[n].items()} for n in inner}
        torch.testing.assert_close(block(x, {**arch, **full}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "shape"), [case for case in CASES if case[1] != "residual" and case[0] != "mbconv_g2"])
def test_a_wide_computation_of_a_narrow_option_is_masked_to_it(kind: str, shape: str) -> None:
    block = block_of(kind, shape)
    for arch in archs(3, seed=5):
        x = images(arch)
        expected = block(x, arch)
        wide = block(x, {**arch, "out": {i: float(i == arch["out"]) for i in range(len(CHOICES["out"]))}})
        assert wide.shape[1] == max(CHOICES["out"])
        torch.testing.assert_close(wide[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-5)
        assert not wide[:, expected.shape[1] :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_serves_many_architectures_at_once(kind: str) -> None:
    block = block_of(kind, "residual")
    many = archs(12, seed=6)
    with torch.no_grad():
        alone = [block(images(arch), arch) for arch in many]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda arch: block(images(arch), arch), many * 3))
    for number, out in enumerate(together):
        assert torch.equal(out, alone[number % len(many)])


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_options_share_their_weights(kind: str, shape: str) -> None:
    """Doubling the weights of the smallest option's slice changes the largest option's output."""
    block = block_of(kind, shape)
    small, large = dict.fromkeys(CHOICES, 0), {name: len(options) - 1 for name, options in CHOICES.items()}
    if kind == "skip":
        assert not list(block.parameters())
        return
    before = {"small": block(images(small), small).detach(), "large": block(images(large), large).detach()}
    with torch.no_grad():
        for module in block.modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 4:
                centre = module.weight.shape[-1] // 2
                module.weight[:2, :2, centre, centre] += 1.0
    assert not torch.allclose(block(images(small), small), before["small"])
    assert not torch.allclose(block(images(large), large), before["large"])


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_floating_point_operations_are_counted_as_torch_counts_them(kind: str, shape: str) -> None:
    block = block_of(kind, shape)
    for arch in archs(3, seed=7):
        plain, x = block.extract(arch), images(arch, batch=1)
        with FlopCounterMode(display=False) as counter:
            plain(x)
        squeeze = sum(2 * op.macs for op in block.ops(arch, (7, 9)))
        assert counter.get_total_flops() == squeeze


def fixed(kind: str, inputs: int, outputs: int, kernel: int, expand: Any = 1) -> Any:
    width = [Width.of(inputs), Width.of(outputs)]
    choices = {n: Choice(n, (v,)) for n, v in {"kernel": kernel, "expand": expand, "act": "relu", "se": False}.items()}
    return KINDS[kind](BlockConfig(width[0], width[1], 1, choices["kernel"], choices["expand"], choices["act"], choices["se"]))


@pytest.mark.parametrize(("height", "inputs", "outputs", "kernel"), [(14, 32, 64, 3), (7, 16, 24, 5), (10, 8, 8, 7)])
def test_formulas_of_standard_and_separable_convolution(height: int, inputs: int, outputs: int, kernel: int) -> None:
    """Standard H·W·Cin·Cout·K^2; separable H·W·Cin·K^2 + H·W·Cin·Cout; their ratio 1/Cout + 1/K^2 (Howard et al. 2017, section 3.1)."""
    separable = sum(op.macs for op in fixed("mbconv", inputs, outputs, kernel).ops({}, (height, height)))
    pixels = height * height
    assert separable == pixels * inputs * kernel**2 + pixels * inputs * outputs
    if kernel == 3:
        standard = sum(op.macs for op in fixed("conv", inputs, outputs, kernel).ops({}, (height, height)))
        assert standard == pixels * inputs * outputs * kernel**2
        assert separable / standard == pytest.approx(1 / outputs + 1 / kernel**2, rel=1e-12)


def test_two_small_depthwise_convolutions_are_cheaper_than_a_large_one_and_see_as_much() -> None:
    twice = fixed("sep5as33", 16, 24, 3, expand=2)
    assert [(op.kernel, op.groups) for op in twice.ops({}, (9, 9)) if op.groups > 1] == [(3, 32), (3, 32)]
    plain = nn.Sequential(*twice.body["spatial"].extract({})[:1], *twice.body["second"].extract({})[:1])
    x = torch.zeros(1, 32, 9, 9)
    x[0, 0, 4, 4] = 1.0
    seen = plain(x)[0, 0].abs() > 0
    assert seen.nonzero().min(0).values.tolist() == [2, 2] and seen.nonzero().max(0).values.tolist() == [6, 6]


def test_expansion_of_one_in_a_mixture_is_the_input_itself() -> None:
    """The mixture of "no expansion layer" and real ones is the weighted sum of what each would hand on."""
    block = block_of("mbconv", "widening")
    arch = {"in": 2, "out": 1, "kernel": 0, "expand": 0, "act": 0, "se": 0}
    x = images(arch)
    shares = {0: 0.25, 1: 0.35, 2: 0.4}
    mixed = block._expanded(x, {**arch, "expand": shares})
    assert mixed.shape[1] == block.hidden.max
    expected = torch.zeros_like(mixed)
    expected[:, : x.shape[1]] += 0.25 * x
    widest = block.body["expand"](x, {**arch, "expand": 2})
    expected += 0.4 * widest
    expected[:, :32] += 0.35 * block.body["expand"](x, {**arch, "expand": 1})
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if "expand" in KINDS[k].uses])
def test_expansion_as_a_number_of_channels(kind: str) -> None:
    """MobileNetV3 names hidden widths (200, 184) instead of ratios; here in a choice beside ratios."""
    block = block_of(kind, "widening", expands=(Hidden(20), 2, Hidden(36)))
    for index, channels in itertools.product(range(3), range(3)):
        arch = {"in": channels, "out": 0, "kernel": 1, "expand": index, "act": 1, "se": 1}
        x = images(arch)
        assert block.hidden.at(arch) == {0: 20, 1: CHOICES["in"][channels] * 2, 2: 36}[index]
        torch.testing.assert_close(train_mode(block.extract(arch))(x), block(x, arch), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(block(x, one_hot(arch)), block(x, arch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "skip"])
def test_drop_path_drops_the_residual_branch_of_whole_samples(kind: str) -> None:
    block = block_of(kind, "residual")
    arch = dict.fromkeys(CHOICES, 1)
    x = images(arch, batch=64)
    torch.manual_seed(3)
    out = block(x, arch, 0.5)
    if not block.residual:
        assert torch.equal(out, block(x, arch))
        return
    dropped = (out == x).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    branch = block(x, arch) - x
    torch.testing.assert_close((out - x)[~dropped], 2 * branch[~dropped], rtol=1e-4, atol=1e-4)
