"""Published mobile networks as spaces of size one, and Once-for-all's space: with 1000 classes their parameter counts are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sartor.layers.blocks import Hidden
from sartor.layers.choice import make_divisible
from sartor.spaces.mobile import MobileSpec, Stage


def _rows(rows: Sequence[tuple[int, Sequence[int], int, int, bool, str]]) -> tuple[Stage, ...]:
    """Stages from (kernel, hidden widths of the blocks, width, stride, squeeze-excite, activation)."""
    return tuple(
        Stage((w,), (len(hidden),), s, kernels=(k,), acts=(act,), ses=(se,), overrides=tuple({"expands": (Hidden(h),)} for h in hidden))
        for k, hidden, w, s, se, act in rows
    )


def _runs(rows: Sequence[tuple[int, Sequence[tuple[int, float]], int]], act: str) -> tuple[Stage, ...]:
    """Stages from (width, [(kernel, ratio), ...], stride)."""
    return tuple(
        Stage((w,), (len(blocks),), s, acts=(act,), overrides=tuple({"kernels": (k,), "expands": (e,)} for k, e in blocks))
        for w, blocks, s in rows
    )


def mobilenet_v2(multiplier: float = 1.0) -> MobileSpec:
    """MobileNetV2 (Sandler et al. 2018, table 2)."""
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    stages = tuple(Stage((make_divisible(c * multiplier),), (n,), s, expands=(t,), acts=("relu6",)) for t, c, n, s in table)
    head = make_divisible(1280 * max(1.0, multiplier))
    return MobileSpec("mobilenet-v2", stages, (make_divisible(32 * multiplier),), (2,), "relu6", (head,), "relu6", dropout=0.2)


def mobilenet_v3(size: str = "large", multiplier: float = 1.0) -> MobileSpec:
    """MobileNetV3 (Howard et al. 2019, tables 1 and 2); `size` is "large" or "small"."""
    re, hs = "relu", "hardswish"
    if size == "large":
        rows = [
            (3, [16], 16, 1, False, re),
            (3, [64, 72], 24, 2, False, re),
            (5, [72, 120, 120], 40, 2, True, re),
            (3, [240, 200, 184, 184], 80, 2, False, hs),
            (3, [480, 672], 112, 1, True, hs),
            (5, [672, 960, 960], 160, 2, True, hs),
        ]
        head, hidden = 960, 1280
    else:
        rows = [
            (3, [16], 16, 2, True, re),
            (3, [72, 88], 24, 2, False, re),
            (5, [96, 240, 240], 40, 2, True, hs),
            (5, [120, 144], 48, 1, True, hs),
            (5, [288, 576, 576], 96, 2, True, hs),
        ]
        head, hidden = 576, 1024
    scaled = [(k, [make_divisible(h * multiplier) for h in hs_], make_divisible(w * multiplier), s, se, a) for k, hs_, w, s, se, a in rows]
    spec = MobileSpec(
        f"mobilenet-v3-{size}", _rows(scaled), (make_divisible(16 * multiplier),), (2,), hs, (make_divisible(head * multiplier),), hs
    )
    return replace(spec, hidden=make_divisible(hidden * multiplier), dropout=0.2, eps=1e-3)


def mnasnet_a1() -> MobileSpec:
    """MnasNet-A1 (Tan et al. 2019, figure 7); squeeze-excite takes a quarter of the block's input."""
    table = [(3, 1, 16, 1, 1, False), (3, 6, 24, 2, 2, False), (5, 3, 40, 3, 2, True), (3, 6, 80, 4, 2, False)]
    table += [(3, 6, 112, 2, 1, True), (5, 6, 160, 3, 2, True), (3, 6, 320, 1, 1, False)]
    stages = tuple(Stage((c,), (n,), s, kernels=(k,), expands=(e,), ses=(se,)) for k, e, c, n, s, se in table)
    return MobileSpec("mnasnet-a1", stages, (32,), head_widths=(1280,), dropout=0.2, gate="sigmoid", se_from="input")


def proxyless_mobile() -> MobileSpec:
    """ProxylessNAS-Mobile (Cai et al. 2019, figure 4)."""
    rows = [
        (16, [(3, 1)], 1),
        (32, [(5, 3), (3, 3)], 2),
        (40, [(7, 3), (3, 3), (5, 3), (5, 3)], 2),
        (80, [(7, 6), (5, 3), (5, 3), (5, 3)], 2),
        (96, [(5, 6), (5, 3), (5, 3), (5, 3)], 1),
        (192, [(7, 6), (7, 6), (7, 3), (7, 3)], 2),
        (320, [(7, 6)], 1),
    ]
    return MobileSpec("proxylessnas-mobile", _runs(rows, "relu6"), (32,), stem_act="relu6", head_widths=(1280,), head_act="relu6")


def fbnet_c() -> MobileSpec:
    """FBNet-C (Wu et al. 2019, figure 4), from the block list as commonly re-implemented; within 1 % of 5,571,912 parameters."""
    rows = [
        (16, [(3, 1)], 1),
        (24, [(3, 6), (3, 1), (3, 1)], 2),
        (32, [(5, 6), (5, 3), (5, 6), (3, 6)], 2),
        (64, [(5, 6), (5, 3), (5, 6), (5, 6)], 2),
        (112, [(5, 6), (5, 6), (5, 6), (5, 3)], 1),
        (184, [(5, 6)] * 4, 2),
        (352, [(3, 6)], 1),
    ]
    return MobileSpec("fbnet-c", _runs(rows, "relu"), (16,), head_widths=(1984,))


def once_for_all() -> MobileSpec:
    """Once-for-all's MobileNetV3 space (Cai et al. 2020, section 4.1): depth, expansion and kernel elastic, 2.18e19 networks."""
    first = Stage((16,), (1,), 1, expands=(1,))
    table = [
        (24, 2, False, "relu"),
        (40, 2, True, "relu"),
        (80, 2, False, "hardswish"),
        (112, 1, True, "hardswish"),
        (160, 2, True, "hardswish"),
    ]
    units = tuple(Stage((c,), (2, 3, 4), s, kernels=(3, 5, 7), expands=(3, 4, 6), acts=(act,), ses=(se,)) for c, s, se, act in table)
    return MobileSpec("once-for-all", (first, *units), (16,), stem_act="hardswish", head_widths=(960,), head_act="hardswish", hidden=1280)


def fbnet_space() -> MobileSpec:
    """FBNet's space (Wu et al. 2019, table 1): 22 positions of nine candidate blocks, as kind, kernel and expansion of each position."""
    kinds = ("mbconv", "mbconv_g2", "skip")
    table = [(16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1)]
    stages = tuple(Stage((c,), (n,), s, kinds=kinds, kernels=(3, 5), expands=(1, 3, 6), tied=False) for c, n, s in table)
    return MobileSpec("fbnet", stages, (16,), head_widths=(1984,))


def fit_to(spec: MobileSpec, size: int, smallest_map: int = 4) -> MobileSpec:
    """Drop the earliest strides until the last feature map of a `size` pixel image has `smallest_map` pixels: usual for small images."""
    strides = [min(spec.stem_strides), *(stage.stride for stage in spec.stages)]
    number = 0
    while -(-size // _product(strides)) < smallest_map and number < len(strides):
        strides[number] = 1
        number += 1
    stages = tuple(replace(stage, stride=s) for stage, s in zip(spec.stages, strides[1:], strict=True))
    return replace(spec, stem_strides=(strides[0],), stages=stages)


def _product(values: Sequence[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result
