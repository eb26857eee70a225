"""Architectures as points whose squared Euclidean distances, choice by choice, are the distances that kernels need.

A choice of labels without an order has the Hamming distance (0 or 1). Numbers (a kernel size, a width) have the difference of their
ranks, scaled to 0..1. A choice that is switched off is at distance 1 from every option. Each of these is a sum of cuts (an L1 metric, Deza
& Laurent 1997, Geometry of Cuts and Metrics, chapter 4), so that one 0/1 column for each cut embeds it and `exp(-w * distance)` is a kernel
for any w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Arch, Space

Floats = NDArray[np.float64]
#: structural features of architectures: named groups of columns, each `(n, columns)`; a space may offer them as a method `features`
Features = Callable[[Sequence[Arch]], Mapping[str, np.ndarray]]

_SCALE_SAMPLE = 256  # architectures from which the scale of a feature group is taken


class Embedding:
    """Rows of numbers for architectures, in groups: one a choice, then one a feature group (scaled to a mean squared distance of 1).

    Args:
        features: structural features; by default those of the space, if it has a method `features`.

    Attributes:
        names: the groups, in the order of their columns.
        group: number of the group of every column, `(columns,)`.
        choices: how many of the groups are choices; the others are features.
        cost_features: numbers of the feature groups that tell what an architecture costs, and not what it computes; a space names them in
            an attribute `cost_features`.
        executed: those of them that are alike for architectures that execute the same (`executed` of a space); all, if it does not say.
        cost_sums: columns of the feature groups whose costs add up, each group another reading of what is executed; a space names them
            in an attribute `cost_sums`.
    """

    def __init__(self, space: Space, features: Features | None = None) -> None:
        self.space = space
        self._features: Features | None = features if features is not None else getattr(space, "features", None)
        self._choice_names = [name for name in space.choices if len(space.allowed[name]) > 1]
        self._codes = {name: _codes(space, name) for name in self._choice_names}
        groups = [np.full(codes.shape[1], i) for i, codes in enumerate(self._codes.values())]
        self.names = list(self._choice_names)
        self.choices = len(self.names)
        for name, (columns, _) in self._scales.items():
            groups.append(np.full(columns, len(self.names)))
            self.names.append(name)
        own: Sequence[str] = getattr(space, "cost_features", ()) if features is None else ()
        self.cost_features = tuple(i for i, name in enumerate(self.names) if i >= self.choices and name in own)
        executed: Sequence[str] = getattr(space, "executed", own)
        self.executed = tuple(i for i in self.cost_features if self.names[i] in executed)
        self.group: NDArray[np.int64] = np.concatenate([*groups, np.zeros(0, dtype=np.int64)]).astype(np.int64)
        sums: Sequence[str] = getattr(space, "cost_sums", ()) if features is None else ()
        self.cost_sums = tuple(np.flatnonzero(self.group == self.names.index(name)) for name in sums if name in self.names[self.choices :])

    def rows(self, archs: Sequence[Arch]) -> Floats:
        """Embedded architectures `(n, columns)`."""
        states = np.full((len(archs), len(self._choice_names)), -1, dtype=np.int64)
        conditional = bool(self.space.conditions)
        for row, arch in zip(states, archs, strict=True):
            values = arch.as_dict()
            on = self.space.active(values) if conditional else values
            row[:] = [values[name] if name in on else -1 for name in self._choice_names]
        blocks = [codes[states[:, i]] for i, codes in enumerate(self._codes.values())]
        return np.hstack([np.zeros((len(archs), 0)), *blocks, *self._feature_blocks(archs)])

    @cached_property
    def _scales(self) -> dict[str, tuple[int, float]]:
        """Columns and factor of each feature group, from a fixed sample; groups that never vary have none."""
        if self._features is None:
            return {}
        rng = np.random.default_rng(0)
        sample = [self.space.sample(rng) for _ in range(_SCALE_SAMPLE)]
        scales = {}
        for name, block in self._features(sample).items():
            spread = 2 * float(np.asarray(block, dtype=float).var(axis=0).sum())  # the mean squared distance of two draws
            if spread > 0:
                scales[name] = (np.asarray(block).shape[1], 1 / np.sqrt(spread))
        return scales

    def _feature_blocks(self, archs: Sequence[Arch]) -> list[Floats]:
        if self._features is None or not self._scales:
            return []
        found: Mapping[str, Any] = self._features(archs) if len(archs) else {}
        return [
            np.asarray(found[name], dtype=float) * factor if len(archs) else np.zeros((0, columns))
            for name, (columns, factor) in self._scales.items()
        ]


def _codes(space: Space, name: str) -> Floats:
    """The embedding of every option of a choice, and in the last row (index -1) that of being switched off: `(options + 1, columns)`."""
    labels, allowed = space.choices[name], space.allowed[name]
    off = len(labels)
    ordered = len(allowed) > 2 and all(isinstance(labels[i], int | float) and not isinstance(labels[i], bool) for i in allowed)
    if not ordered:  # one-hot: two different options differ in two columns
        return np.eye(off + 1)[:, [*allowed, off]] * np.sqrt(0.5)
    by_size = sorted(allowed, key=lambda i: labels[i])
    columns = []
    for split in range(1, len(by_size)):  # each gap between neighbours, half with "off" on the one side and half on the other
        for side in (0.0, 1.0):
            column = np.zeros(off + 1)
            column[by_size[split:]] = 1.0
            column[off] = side
            columns.append(column * np.sqrt(0.5 / (len(by_size) - 1)))
    last = np.zeros(off + 1)
    last[off] = np.sqrt(0.5)
    return np.column_stack([*columns, last])
