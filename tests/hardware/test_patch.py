"""Patch-based execution: the same numbers, less memory, and an honest count of what is computed twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.hardware import Op, OpGraph, peak_bytes, trace
from sartor.hardware.memory import TINYENGINE
from sartor.hardware.patch import back, choose, padding_of, plan, plans, stages, tiles
from sartor.hardware.patched import Patched

from .nets import Dense, Inverted, Residual, conv_bn


class Branches(nn.Module):
    """Two windows of different sizes on one map, and a pooling on it: the patch must hold the largest halo."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.narrow = conv_bn(channels, channels, 7, act=nn.ReLU), conv_bn(channels, channels, 1)
        self.dilated = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.largest, self.mean = nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.wide(x) + self.narrow(x), self.dilated(x) + self.largest(x), torch.relu(self.mean(x))], 1)


def _net(seed: int, size: int) -> nn.Module:
    torch.manual_seed(seed)
    act = nn.Hardswish if seed % 2 else nn.ReLU
    layers: list[nn.Module] = [conv_bn(3, 8, 3, 2 if size > 16 else 1, act=act)]
    if seed % 3 == 0:
        layers += [Branches(8), conv_bn(24, 8, 3, 2), Inverted(8, 8, 3, 5, 1, False, act)]
    elif seed % 3 == 1:
        layers += [Inverted(8, 8, 1, 3, 1, False, act), Inverted(8, 12, 3, 5, 2, False, act), Inverted(12, 12, 2, 3, 1, False, act)]
    else:
        layers += [Residual(8, 12, 2), nn.MaxPool2d(2), Dense(12), conv_bn(24, 12, 1)]
    layers += [Inverted(12 if seed % 3 else 8, 16, 3, 3, 2, True, act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # constants that zero padding does not leave at zero
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@given(st.integers(0, 30), st.sampled_from([13, 16, 23]), st.data())
@settings(max_examples=25, deadline=None)
def test_patches_compute_the_same_numbers(seed: int, size: int, data: st.DataObject) -> None:
    net = _net(seed, size)
    graph = trace(net, (3, size, size))
    first, last = data.draw(st.sampled_from(list(stages(graph))))
    height, width = graph.ops[last].out_shape[1:]
    grid = data.draw(st.integers(1, min(5, height))), data.draw(st.integers(1, min(5, width)))
    found = plan(graph, first, last, grid)
    patched = Patched(net, (3, size, size), found)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(patched(x), net(x), atol=1e-5, rtol=1e-5)
    assert (found.recomputed_macs == 0) if grid == (1, 1) else (found.recomputed_macs >= 0)
    assert found.macs == graph.macs + found.recomputed_macs


@given(st.integers(0, 12))
@settings(max_examples=8, deadline=None)
def test_planned_regions_are_those_that_are_executed(seed: int) -> None:
    """The plan crops fused ops, the executor torch nodes: their MACs must be the same."""
    net = _net(seed, 16)
    graph = trace(net, (3, 16, 16))
    first, last = list(stages(graph))[-1]
    found = plan(graph, first, last, (2, 3))
    patched = Patched(net, (3, 16, 16), found)
    executed = 0
    height, width = graph.ops[last].out_shape[1:]
    for rows in tiles(height, 2):
        for columns in tiles(width, 3):
            for node, ((top, bottom), (left, right)) in patched.regions((rows, columns)).items():
                layer = patched._layers.get(str(node.target))
                if isinstance(layer, nn.Conv2d):
                    executed += layer.weight.numel() * (bottom - top) * (right - left)
    assert executed - sum(op.macs for op in graph.ops[first : last + 1]) == found.recomputed_macs


def test_a_chain_worked_out_by_hand() -> None:
    """Two 3x3 convolutions on 8x8: a corner patch of 4x4 needs 5x5 of the map between and 6x6 of the input."""
    shape = (2, 8, 8)
    ops = (Op("conv", shape, (10, 8, 8), kernel=3, inputs=(-1,)), Op("conv", (10, 8, 8), (3, 8, 8), kernel=3, inputs=(0,)),
           Op("pool", (3, 8, 8), (3, 1, 1), inputs=(1,)))  # fmt: skip
    graph = OpGraph(ops, shape)
    found = plan(graph, 0, 1, (2, 2))
    assert found.stage_bytes == 2 * 64 + 3 * 64 + 10 * 25  # input, assembled output, one patch of the map between
    assert found.rest_bytes == 3 * 64 + 3
    assert found.recomputed_macs == 9 * 2 * 10 * (4 * 25 - 64)
    assert peak_bytes(graph) == 10 * 64 + 3 * 64
    assert plan(graph, 0, 1, (1, 1)).stage_bytes == 2 * 64 + 3 * 64 + 10 * 64
    with pytest.raises(UserError, match="cannot run patch by patch"):
        plan(graph, 0, 2, (2, 2))


def test_windows_and_tiles() -> None:
    assert back((0, 4), 8, 3, 1, 1) == (0, 5) and back((4, 8), 8, 3, 1, 1) == (3, 8)
    assert back((1, 2), 9, 3, 2, 1) == (1, 4) and back((2, 3), 9, 3, 1, 2, dilation=2) == (0, 5)
    assert padding_of(Op("conv", (1, 7, 7), (1, 4, 4), kernel=3, stride=2), 1) == 1
    assert padding_of(Op("maxpool", (1, 7, 7), (1, 3, 3), kernel=2, stride=2), 1) == 0
    assert padding_of(Op("conv", (1, 7, 7), (1, 5, 5), kernel=3), 2) == 0
    with pytest.raises(UserError, match="symmetric padding"):
        padding_of(Op("conv", (1, 8, 8), (1, 8, 8), kernel=2), 1)
    for size in range(1, 20):
        for count in range(1, 8):
            spans = tiles(size, count)
            assert [i for low, high in spans for i in range(low, high)] == list(range(size))


def test_stages_end_where_one_tensor_leaves_and_before_what_is_not_local() -> None:
    net = nn.Sequential(conv_bn(3, 8, 3, act=nn.ReLU), Residual(8, 8, 1), Inverted(8, 8, 2, 3, 1, True, nn.ReLU)).eval()
    graph = trace(net, (3, 16, 16))
    kinds = [op.kind for op in graph]
    ends = [last for _, last in stages(graph)]
    assert kinds[:4] == ["conv", "conv", "conv", "add"] and kinds.index("se") > 3
    assert ends == [0, 3]  # inside a residual two tensors are alive, and the inverted block's shortcut spans its squeeze-excite
    resized = OpGraph((Op("resize", (3, 20, 20), (3, 16, 16), inputs=(-1,)), *(
        Op(o.kind, o.in_shape, o.out_shape, o.kernel, o.stride, o.groups, o.act, tuple(s + 1 for s in o.inputs), hidden=o.hidden)
        for o in graph)), (3, 20, 20))  # fmt: skip
    assert list(stages(resized)) == [(1, 1), (1, 4)]
    assert plan(resized, 1, 4, (2, 2)).rest_bytes >= 3 * 20 * 20 + 3 * 16 * 16


def test_a_plan_within_the_limit_recomputes_least() -> None:
    net = _net(1, 23)
    graph = trace(net, (3, 64, 64))
    found = plans(graph)
    lowest = choose(found)
    assert lowest is not None and lowest.peak_bytes == min(p.peak_bytes for p in found) < 0.6 * peak_bytes(graph)
    limit = (lowest.peak_bytes + peak_bytes(graph)) // 2
    chosen = choose(found, limit)
    assert chosen is not None and chosen.peak_bytes <= limit
    assert chosen.recomputed_macs == min(p.recomputed_macs for p in found if p.peak_bytes <= limit) <= lowest.recomputed_macs
    assert choose(found, 1) == lowest and choose([]) is None
    tight = choose(plans(graph, in_place=TINYENGINE))
    assert tight is not None and tight.peak_bytes <= lowest.peak_bytes


def test_training_mode_is_refused() -> None:
    net = _net(0, 16)
    found = plan(trace(net, (3, 16, 16)), 0, 0, (2, 2))
    with pytest.raises(UserError, match="eval mode"):
        Patched(net.train(), (3, 16, 16), found)
