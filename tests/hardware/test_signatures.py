"""Signatures of operations are read back to the same cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware.graph import Op
from sartor.hardware.signatures import parse
from sartor.spaces import build

NETS = {name: build(name, (3, 16, 16), 5) for name in ("mobile", "catalogue", "nasnet", "darts", "nasbench201")}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(NETS)), st.integers(0, 2**32 - 1))
def test_every_operation_of_a_space_comes_back(space: str, seed: int) -> None:
    net = NETS[space]
    arch = net.space.sample(np.random.default_rng(seed))
    for op in (op for factor in net.factors() for op in factor.at(tuple(arch[choice] for choice in factor.scope))):
        again = parse(op.signature)
        assert again.signature == op.signature and (again.macs, again.params) == (op.macs, op.params)


@pytest.mark.parametrize(
    "op",
    [
        Op("conv", (8, 6, 6), (16, 3, 3), kernel=3, stride=2, groups=4, dilation=2, act="relu6", inputs=(0, 1)),
        Op("concat", (24, 6, 6), (24, 6, 6), inputs=(0, 1, 2)),
        Op("other", (8, 6, 6), (8, 6, 6), label="Custom:Op", own_macs=5, own_params=7, inputs=(-1,)),
        Op("resize", (3, 8, 8), (3, 4, 4), inputs=(-1,)),
    ],
)
def test_rare_operations_come_back(op: Op) -> None:
    again = parse(op.signature)
    assert again.signature == op.signature and (again.macs, again.params) == (op.macs, op.params)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "conv",
        "conv:3x3",
        "conv:3x3x3>3x3x3",
        "conv:3x3x3:k1s1g1",
        "swim:3x3x3",
        "add:3x3x3:k1s1",
        "input:3x3x3",
        "add:0x1x1",
        "conv:16x4x4>16x4x4:k1s1g0",
        "conv:16x4x4>16x4x4:k1s1g5",
        f"add:{10**400}x1x1",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected a signature"):
        parse(text)
