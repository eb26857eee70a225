"""sartor's own mobile space for images of any size, and the hand-designed small ResNets that it is compared with."""

from __future__ import annotations

from typing import Any

from sartor.layers.choice import make_divisible
from sartor.spaces.mobile import MobileSpec, Stage


def mobile(size: int) -> MobileSpec:
    """The default space for square-ish images of `size` pixels.

    Blocks are inverted residuals (few multiplications) or plain convolutions (few, dense operations): which is faster depends on device,
    runtime and picture size, so each stage chooses. The first stride is a choice too, because it scales the cost of everything after it.
    """
    if size < 16:
        return _tiny()
    return _small(size) if size < 48 else _large(size)


def _small(size: int) -> MobileSpec:
    """Three widths at a half, a quarter and an eighth of the picture (at twice that with the first stride 1).

    Ordinary convolutions of 32 and more channels are what a CPU is good at: per multiplication they train and run about four times as
    fast as depthwise ones, so they are offered in every stage, and wide.
    """
    kinds, squeeze = ("conv", "mbconv"), (False, True)
    stages = (
        Stage((16, 24, 32), (1, 2, 3), 1, kinds, _kernels(size, 0, 5), (1, 2)),
        Stage((32, 48, 64, 96), (1, 2, 3), 2, kinds, _kernels(size, 1, 5), (1, 2, 4), ses=squeeze),
        Stage((64, 96, 128), (1, 2), 2, kinds, _kernels(size, 2, 5), (1, 2, 4), ses=squeeze),
    )
    return MobileSpec("mobile", stages, (8, 16, 24), (1, 2), "relu", (64, 128, 192), "relu", resolutions=_resolutions(size))


def _large(size: int) -> MobileSpec:
    kinds = ("mbconv", "conv")
    stages = [
        Stage((8, 16), (1, 2), 1, kinds, (3,), (1, 2)),
        Stage((16, 24, 32), (1, 2, 3), 2, kinds, _kernels(size, 1, 5), (1, 2, 4)),
        Stage((32, 48, 64), (1, 2, 3), 2, kinds, _kernels(size, 2, 5), (1, 2, 4), ses=(False, True)),
    ]
    last: dict[str, Any] = {"acts": ("relu", "hardswish"), "ses": (False, True)}
    stages.append(Stage((64, 96, 128), (1, 2, 3), 2, ("mbconv",), _kernels(size, 3, 5), (3, 4, 6), **last))
    if size >= 96:
        stages.append(Stage((128, 160, 192), (1, 2, 3), 2, ("mbconv",), _kernels(size, 4, 7), (3, 4, 6), **last))
    strides = (1, 2) if size < 96 else (2,)
    heads = (128, 256, 512)
    return MobileSpec("mobile", tuple(stages), (8, 16, 24), strides, "relu", heads, "relu", resolutions=_resolutions(size))


def _resolutions(size: int) -> tuple[int, ...]:
    return tuple(sorted({size, max(16, make_divisible(0.75 * size, 4))}))


def _kernels(size: int, halvings: int, most: int) -> tuple[int, ...]:
    """Kernels up to `most`; those beyond 3 only where they fit into the map after the stem's stride and so many halvings.

    Taps beyond the map fall on padding alone, and the backward pass of such a depthwise convolution is twenty times as slow.
    """
    room = size // 2 ** (halvings + 1)
    return tuple(k for k in (3, 5, 7) if k == 3 or k <= min(most, room))


def _tiny() -> MobileSpec:
    kinds = ("mbconv", "conv")
    stages = (
        Stage((8, 16, 32), (1, 2), 1, kinds, (3, 5), (1, 2, 3)),
        Stage((16, 32, 48, 64), (1, 2, 3), 2, kinds, (3, 5), (1, 2, 4), ses=(False, True)),
    )
    return MobileSpec("mobile", stages, (8, 16, 32), (1, 2), "relu", (32, 64, 128), "relu")


def catalogue(size: int) -> MobileSpec:
    """Every kind of the edge block catalogue, chosen for each block, with every activation: wide rather than quick."""
    kinds = ("mbconv", "mbconv_g2", "fused", "basic", "conv", "sep5as33", "ghost", "dense", "maxpool", "avgpool", "skip")
    offer: dict[str, Any] = {"acts": ("relu", "relu6", "hardswish"), "ses": (False, True), "tied": False}
    widths = ((16, 24), (24, 32), (48, 64))
    count = 2 if size < 16 else 3
    stages = tuple(Stage(w, (1, 2), 1 if i == 0 else 2, kinds, (3, 5), (1, 2, 4), **offer) for i, w in enumerate(widths[:count]))
    return MobileSpec("catalogue", stages, (8, 16), (1, 2) if size >= 16 else (1,), "relu", (64, 128))


def resnet(width: int, blocks: int = 1) -> MobileSpec:
    """A small ResNet for small images (He et al. 2016, section 4.2): three stages of `blocks` basic blocks at width, 2x and 4x width."""
    stages = []
    for scale in (1, 2, 4):
        first, later = (1,) if scale == 1 else (2,), {"expands": (1,)}  # the width between two convolutions is that of the output
        overrides = ({"expands": first}, *(later for _ in range(blocks - 1)))
        stages.append(Stage((width * scale,), (blocks,), 1 if scale == 1 else 2, ("basic",), overrides=overrides))
    return MobileSpec("resnet", tuple(stages), (width,), (1,), "relu")
