"""Published networks, parameter for parameter."""

from __future__ import annotations

import pytest
import torch

from sartor.hardware import trace
from sartor.spaces import MobileNet, build
from sartor.spaces.published import fit_to, mobilenet_v2, mobilenet_v3, once_for_all

# parameters with 1000 classes, and millions of multiply-accumulates at 224x224 as their papers print them
PUBLISHED = {
    "mobilenet-v2": (3_504_872, 0.0, 300),
    "mobilenet-v3-large": (5_483_032, 0.0, 219),
    "mobilenet-v3-small": (2_542_856, 0.0, 56),
    "mnasnet-a1": (3_887_038, 0.0, 312),
    "proxylessnas-mobile": (4_080_512, 0.0, 320),
    "fbnet-c": (5_571_912, 0.01, 375),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs(name: str) -> None:
    params, tolerance, millions = PUBLISHED[name]
    with torch.device("meta"):
        net = build(name, (3, 224, 224), 1000)
        plain = net.extract(net.space.at(0))
    assert net.space.size == 1
    numel = sum(p.numel() for p in plain.parameters())
    assert numel == net.costs(net.space.at(0))["params"]
    assert numel == pytest.approx(params, rel=tolerance, abs=0)
    assert trace(plain, (3, 224, 224)).macs / 1e6 == pytest.approx(millions, rel=0.03)


def test_once_for_all_size() -> None:
    with torch.device("meta"):
        net = MobileNet(once_for_all(), (3, 224, 224), 1000)
    assert net.space.size == 21_758_655_492_572_485_851


def test_fbnet_offers_nine_candidates_at_22_positions() -> None:
    """Two kinds with kernels 3, 5 and ratios 1, 3, 6 hold FBNet's eight blocks; a skip where width and size stay."""
    with torch.device("meta"):
        net = build("fbnet", (3, 224, 224), 10)
    assert len(net.positions) == 22
    skips = [p for p in net.positions if "skip" in p.modules]
    assert len(skips) == 15 and all(p.number > 0 for p in skips)


@pytest.mark.parametrize(("size", "smallest"), [(224, 7), (64, 4), (32, 4), (28, 4), (8, 4)])
def test_fitting_drops_the_earliest_strides(size: int, smallest: int) -> None:
    spec = fit_to(mobilenet_v2(), size)
    strides = [spec.stem_strides[0], *(stage.stride for stage in spec.stages)]
    pixels = size
    for stride in strides:
        pixels = -(-pixels // stride)
    assert smallest <= pixels < 2 * smallest
    original = [2, 1, 2, 2, 2, 1, 2, 1]
    changed = [i for i, (a, b) in enumerate(zip(strides, original, strict=True)) if a != b]
    kept = [i for i, s in enumerate(strides) if s > 1]
    assert not changed or not kept or max(changed) < min(kept)


def test_a_width_multiplier_scales_channels() -> None:
    """MobileNetV2 x 1.4 as commonly built has 6.11 million parameters (the paper's table 4 prints 6.9)."""
    with torch.device("meta"):
        wide, narrow = MobileNet(mobilenet_v2(1.4), (3, 224, 224), 1000), MobileNet(mobilenet_v3("small", 0.5), (3, 224, 224), 1000)
    assert wide.costs(wide.largest)["params"] == pytest.approx(6.11e6, rel=0.002)
    assert narrow.costs(narrow.largest)["params"] < 2_542_856
