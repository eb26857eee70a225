"""What the recipes need of a dataset: the part of :mod:`sartor.data` that they see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


class TrainingSplit(Protocol):
    """Images with labels; :class:`sartor.data.Split` is one."""

    def __len__(self) -> int: ...

    def batches(
        self, size: int, rng: np.random.Generator | None = None, augment: Any = None, drop_last: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Normalised float32 images (b, C, H, W) with labels: int64 (b,)."""
        ...


class TrainingData(Protocol):
    """Training and validation images; :class:`sartor.data.Dataset` is one. Test images are no business of a recipe."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def train(self) -> TrainingSplit: ...

    @property
    def validation(self) -> TrainingSplit: ...
