"""Spaces for microcontrollers, and the choice of one: TinyNAS (MCUNet, Lin et al. 2020, section 3.1).

A space is a width multiplier and a picture size; within it, depth, kind, kernel and expansion of the blocks are searched. Which space to
search is decided first, without training: networks are sampled from each, those within the device's memory are kept, and the space whose
kept networks compute the most is taken, because among networks that fit, more computation means more capacity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.layers.choice import make_divisible
from sartor.spaces.mobile import MobileNet, MobileSpec, Stage

MULTIPLIERS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_WIDTHS = (24, 48, 96, 144, 192)  # at multiplier 1
_STEM = 24
SAMPLES = 300  # networks drawn from each space
LEAST = 15  # networks within the limits below which a space counts as out of reach
_LEVELS = np.linspace(0.05, 0.95, 19)  # where distributions are compared

Feasible = Callable[[MobileNet, Arch], bool]


def mcu(size: int, multiplier: float = 1.0) -> MobileSpec:
    """The space for square pictures of `size` pixels: inverted residuals or plain 3x3 convolutions, no squeeze-excite, ReLU throughout.

    The first stride is a choice for small pictures, whose maps are small enough to keep their size. Widths are multiples of 8.
    """
    halvings = min(5, max(1, int(math.log2(max(size, 8) / 4))))
    count = max(1, halvings - 1) + 1 if size >= 16 else 2
    widths = [make_divisible(width * multiplier) for width in _WIDTHS[:count]]
    kinds = ("mbconv", "conv")
    stages = [Stage((widths[0],), (1, 2), 1, kinds, (3, 5), (1, 3))]
    stages += [Stage((width,), (1, 2, 3), 2, kinds, (3, 5, 7) if size >= 48 else (3, 5), (3, 4, 6)) for width in widths[1:]]
    return MobileSpec("mcu", tuple(stages), (make_divisible(_STEM * multiplier),), (1, 2) if size < 64 else (2,), "relu")


def sizes(size: int) -> tuple[int, ...]:
    """Picture sizes to choose from: half of `size` to all of it, in steps of 8 (16 from 96 pixels on)."""
    step = 16 if size >= 96 else 8 if size >= 16 else 4
    low = max(8, -(-size // 2 // step) * step)
    return tuple(sorted({size, *range(low, size + 1, step)}))


@dataclass(frozen=True)
class Row:
    """One space of the grid: the share of its networks within the limits, and the multiply-accumulates of those (None without any)."""

    multiplier: float
    size: int
    share: float
    mean_macs: float | None
    quantiles: tuple[float, ...] = ()

    def dominates(self, other: Row) -> bool:
        """First-order dominance of the distributions: at every level at least as many multiply-accumulates, somewhere more."""
        if not self.quantiles or not other.quantiles:
            return bool(self.quantiles)
        mine, theirs = np.array(self.quantiles), np.array(other.quantiles)
        return bool((mine >= theirs).all() and (mine > theirs).any())


@dataclass(frozen=True)
class SpaceChoice:
    """The space that was chosen, all that were looked at, and whether the chosen distribution dominates every other one."""

    multiplier: float
    size: int
    dominates_all: bool
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """What was chosen and why, for a report."""
        best = next(r for r in self.rows if (r.multiplier, r.size) == (self.multiplier, self.size))
        how = "more at every level than those of any other" if self.dominates_all else "the most on average"
        return (
            f"TinyNAS looked at {len(self.rows)} spaces before any training and chose width multiplier {self.multiplier:g} at {self.size} "
            f"pixels: {best.share:.0%} of its networks keep the limits, and those compute {(best.mean_macs or 0.0) / 1e6:.3g} M "
            f"multiply-accumulates, {how}."
        )


def choose_space(
    channels: int,
    size: int,
    classes: int,
    feasible: Feasible,
    *,
    multipliers: Sequence[float] = MULTIPLIERS,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> SpaceChoice:
    """TinyNAS's first stage over multipliers x picture sizes (:func:`sizes`).

    `feasible(net, arch)` judges an architecture by costs alone; the networks have no weights. The distribution of multiply-accumulates that
    dominates is taken; if none dominates all others, the one with the largest mean.

    Raises:
        UserError: if no space has enough networks within the limits.
    """
    grid = [(multiplier, picture) for multiplier in multipliers for picture in sizes(size)]
    rows: list[Row] = []
    for number, (multiplier, picture) in enumerate(grid):
        with torch.device("meta"):
            net = MobileNet(mcu(picture, multiplier), (channels, picture, picture), classes)
        rng = np.random.default_rng((seed, number))
        drawn = [net.space.sample(rng) for _ in range(samples)]
        macs = sorted(net.costs(arch)["macs"] for arch in drawn if feasible(net, arch))
        share = len(macs) / samples
        if len(macs) < min(LEAST, samples):
            rows.append(Row(multiplier, picture, share, None))
        else:
            rows.append(Row(multiplier, picture, share, float(np.mean(macs)), tuple(np.quantile(macs, _LEVELS).tolist())))
        if progress is not None:
            progress("choose space", number + 1, len(grid))
    return pick(rows)


def pick(rows: Sequence[Row]) -> SpaceChoice:
    """The row whose distribution dominates, or has the largest mean where distributions cross.

    A distribution that dominates all others has the largest mean as well, so the mean decides and dominance is told.

    Raises:
        UserError: if no row has networks within the limits.
    """
    able = [row for row in rows if row.mean_macs is not None]
    if not able:
        share = max((row.share for row in rows), default=0.0)
        raise UserError(
            f"no space for microcontrollers has enough networks within the limits (at best {share:.1%} of those drawn): relax a limit"
        )
    best = max(able, key=lambda row: (row.mean_macs or 0.0, row.share))
    return SpaceChoice(best.multiplier, best.size, all(best.dominates(row) for row in rows if row is not best), tuple(rows))
