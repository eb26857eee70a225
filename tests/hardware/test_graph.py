from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sartor.errors import UserError
from sartor.hardware import Op, OpGraph, trace

from .nets import Inverted, Residual, SqueezeExcite, conv_bn, random_net


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_macs_and_params_equal_torchs_own_counts(seed: int) -> None:
    module, shape = random_net(seed)
    graph = trace(module, shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *shape))
    assert graph.macs == counter.get_total_flops() // 2
    folded = sum(norm.num_features for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))
    assert graph.params == sum(p.numel() for p in module.parameters()) - folded  # scale and shift become one bias


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_shapes_connect_along_the_edges(seed: int) -> None:
    graph = trace(*random_net(seed))
    for index, op in enumerate(graph):
        made = [graph.input_shape if source < 0 else graph.ops[source].out_shape for source in graph.sources(index)]
        expected = (sum(shape[0] for shape in made), *made[0][1:]) if op.kind == "concat" else made[0]
        assert op.in_shape == expected


def test_inverted_residual_golden() -> None:
    graph = trace(Inverted(16, 16, 3, 5, 1, True, nn.Hardswish), (16, 14, 14))
    assert [(op.signature, op.inputs) for op in graph] == [
        ("conv:16x14x14>48x14x14:k1s1g1:hardswish", (-1,)),
        ("conv:48x14x14>48x14x14:k5s1g48:hardswish", (0,)),
        ("se:48x14x14:h8:hardsigmoid", (1,)),
        ("conv:48x14x14>16x14x14:k1s1g1", (2,)),
        ("add:16x14x14", (-1, 3)),
    ]
    assert graph.ops[0].name == "expand.0"


def test_residual_block_fuses_relu_into_add() -> None:
    assert [op.signature for op in trace(Residual(8, 16, 2), (8, 8, 8))] == [
        "conv:8x8x8>16x4x4:k3s2g1:relu",
        "conv:16x4x4>16x4x4:k3s1g1",
        "conv:8x8x8>16x4x4:k1s2g1",
        "add:16x4x4:relu",
    ]


class _Shared(nn.Module):
    """The convolution's value is read twice: before and after the ReLU, so that nothing may fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + F.relu(y)


def test_activation_is_not_fused_when_its_input_is_read_elsewhere() -> None:
    assert [op.kind for op in trace(_Shared(), (4, 6, 6))] == ["conv", "act", "add"]


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1, dilation=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(F.interpolate(x, size=(16, 16), mode="bilinear"))
        x = F.max_pool2d(F.hardswish(self.conv(x)), 2)
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
        return x.mean((2, 3))


def test_functional_layers() -> None:
    assert [op.signature for op in trace(_Functional(), (3, 20, 20))] == [
        "resize:3x20x20>3x16x16",
        "act:3x16x16:affine",
        "conv:3x16x16>8x8x8:k3s2g1:hardswish",
        "maxpool:8x8x8>8x4x4:k2s2",
        "avgpool:8x4x4:k3s1",
        "pool:8x4x4>8x1x1",
    ]


def test_product_that_is_no_squeeze_excite_stays_a_product() -> None:
    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x) * torch.sigmoid(x)

    assert [op.kind for op in trace(Gate(), (4, 5, 5))] == ["act", "act", "mul"]
    assert [op.kind for op in trace(nn.Sequential(conv_bn(3, 8, 1), SqueezeExcite(8, 4)), (3, 5, 5))] == ["conv", "se"]


def test_a_value_times_its_own_gate_is_an_activation() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.again = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = self.again(y * torch.sigmoid(y))
            return z + z * F.hardsigmoid(z)

    ops = trace(Gated(), (4, 5, 5))
    # The second product's value is read elsewhere as well, so that the convolution cannot take it in.
    assert [(op.kind, op.act, op.inputs) for op in ops] == [
        ("conv", "swish", (-1,)), ("conv", "", (0,)), ("act", "hardswish", (1,)), ("add", "", (1, 2))
    ]  # fmt: skip


def test_a_linear_layer_over_rows_counts_all_of_them() -> None:
    (op,) = trace(_Rows(), (5, 2, 8))
    assert (op.kind, op.label, op.macs, op.params) == ("other", "linear", 5 * 2 * 8 * 4, 8 * 4 + 4)


class _Rows(nn.Module):
    """A fully connected layer over the last of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x)
        return out


def test_tracing_leaves_the_module_alone() -> None:
    module, shape = random_net(1)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trace(module, shape)
    assert module.training and all(value.device.type == "cpu" for value in module.state_dict().values())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "shape", "text"),
    [
        (nn.Conv2d(3, 4, (1, 3)), (3, 8, 8), "square kernel"),
        (nn.Conv2d(3, 4, 3), (5, 8, 8), "can trace"),
        (nn.Softmax(1), (3, 8, 8), "op kind"),
        (nn.Identity(), (8, 8), "input_shape"),
        (nn.AdaptiveAvgPool2d(2), (3, 8, 8), "1x1"),
    ],
)
def test_bad_modules_are_refused(module: nn.Module, shape: tuple[int, int, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        trace(module, shape)


def test_bad_ops_are_refused() -> None:
    with pytest.raises(UserError, match=r"Op\.kind"):
        Op("convolution", (1, 1, 1), (1, 1, 1))
    with pytest.raises(UserError, match=r"Op\.hidden"):
        Op("se", (8, 4, 4), (8, 4, 4))
    with pytest.raises(UserError, match=r"-1\.\.0"):
        OpGraph((Op("act", (1, 1, 1), (1, 1, 1), act="relu"), Op("act", (1, 1, 1), (1, 1, 1), act="relu", inputs=(1,))), (1, 1, 1))


def test_signature_ignores_names_and_places_and_nothing_else() -> None:
    op = Op("conv", (8, 4, 4), (8, 4, 4), kernel=3, groups=8, act="relu", inputs=(3,), name="a")
    assert op.signature == Op("conv", (8, 4, 4), (8, 4, 4), kernel=3, groups=8, act="relu", name="b").signature
    changes: list[dict[str, Any]] = [{"groups": 1}, {"act": ""}, {"kernel": 5}, {"stride": 2}, {"dilation": 2}, {"in_shape": (16, 4, 4)}]
    assert len({replace(op, **change).signature for change in changes} | {op.signature}) == len(changes) + 1


class Passed(nn.Module):
    """A convolution's result is read as it is, through a module that passes it on, and by a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same, self.act = nn.Conv2d(3, 3, 1), nn.Identity(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        kept: torch.Tensor = self.same(y)
        return self.act(y) + kept


def test_no_convolution_takes_in_an_activation_that_is_not_its_only_reader() -> None:
    graph = trace(Passed(), (3, 4, 4))
    assert [(op.kind, op.act, op.inputs) for op in graph] == [("conv", "", (-1,)), ("act", "relu", (0,)), ("add", "", (1, 0))]
