"""A data set in memory: compact pixels, normalised batch by batch, with a guarded test split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Pixels = NDArray[Any]
Augment = Callable[[Floats, np.random.Generator], Floats]

_CHUNK = 1024


class Split:
    """Images and labels of one split.

    Pixels are kept as the source has them (uint8 or float32) and normalised when they are read: uint8 is scaled to 0..1 first, then
    ``(x - mean) / std`` per channel. `mean` and `std` are therefore on the 0..1 scale for uint8 sources and on the source's own scale
    for float ones. `load` stores training and validation images in random order, so that any prefix is a random sample.

    Args:
        raw: (n, C, H, W) uint8 or float32.
        labels: (n,) integers 0..classes-1.
        mean: (C,) per-channel mean of the training images.
        std: (C,) per-channel standard deviation of the training images, all positive.

    Raises:
        ValueError: the arrays do not have these shapes and types.
    """

    def __init__(self, raw: Pixels, labels: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> None:
        if raw.ndim != 4 or raw.dtype not in (np.uint8, np.float32):
            raise ValueError(f"images must be (n, C, H, W) uint8 or float32, got {raw.shape} {raw.dtype}")
        if labels.shape != raw.shape[:1]:
            raise ValueError(f"labels must be ({len(raw)},), got {labels.shape}")
        if mean.shape != (raw.shape[1],) or std.shape != (raw.shape[1],) or not (std > 0).all():
            raise ValueError(f"mean and std must be ({raw.shape[1]},) and std positive, got {mean} and {std}")
        self.raw = np.ascontiguousarray(raw)
        self.labels: Labels = labels.astype(np.int64)
        self.mean: Floats = mean.astype(np.float32)
        self.std: Floats = std.astype(np.float32)
        unit = 255.0 if raw.dtype == np.uint8 else 1.0
        # from the rounded values, so that a split rebuilt from `mean` and `std` gives the same bits
        exact = self.std.astype(np.float64)
        self._scale = (1.0 / (unit * exact)).astype(np.float32).reshape(-1, 1, 1)
        self._shift = (self.mean / exact).astype(np.float32).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {self.shape}, {self.raw.dtype})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.raw.shape[1:]
        return int(channels), int(height), int(width)

    def images(self, index: slice | NDArray[Any] = slice(None)) -> Floats:
        """Normalised images, a fresh (b, C, H, W) float32 array; `index` is a slice or an array of positions."""
        out: Floats = np.multiply(self.raw[index], self._scale, dtype=np.float32)
        out -= self._shift
        return out

    def batches(
        self, size: int, rng: np.random.Generator | None = None, augment: Augment | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Floats, Labels]]:
        """One pass over the split as (float32 (b, C, H, W) normalised, int64 (b,)) pairs.

        Without `rng` the images come in order; with it they are shuffled, and `augment(images, rng)` changes each batch. `drop_last`
        leaves out a last batch smaller than `size`.

        Raises:
            ValueError: `size` below 1, or `augment` without `rng`.
        """
        if size < 1:
            raise ValueError(f"batch size must be at least 1, got {size}")
        if augment is not None and rng is None:
            raise ValueError("augmentation is random: pass rng too")
        return self._batches(size, rng, augment, drop_last)

    def _batches(
        self, size: int, rng: np.random.Generator | None, augment: Augment | None, drop_last: bool
    ) -> Iterator[tuple[Floats, Labels]]:
        order = None if rng is None else rng.permutation(len(self))
        stop = len(self) - len(self) % size if drop_last else len(self)
        for start in range(0, stop, size):
            index = slice(start, start + size) if order is None else order[start : start + size]
            images = self.images(index)
            if augment is not None and rng is not None:
                images = augment(images, rng)
            yield images, self.labels[index].copy()

    def subset(self, index: slice | NDArray[Any]) -> Split:
        """The split of the images at `index`, with the same normalisation."""
        return Split(self.raw[index], self.labels[index], self.mean, self.std)


class Dataset:
    """Train, validation and a guarded test split of one classification task.

    Search, training and calibration use `train` and `validation`. The test split comes out of :meth:`read_test` only, which counts, so
    that a run can prove it looked once.
    """

    def __init__(
        self, name: str, train: Split, validation: Split, test: Split, classes: tuple[str, ...], mean: NDArray[Any], std: NDArray[Any]
    ) -> None:
        if len({split.shape for split in (train, validation, test)}) != 1:
            raise ValueError(f"splits of different image shapes: {train.shape}, {validation.shape}, {test.shape}")
        self.name = name
        self.train = train
        self.validation = validation
        self.classes = tuple(classes)
        self.mean: Floats = mean.astype(np.float32)
        self.std: Floats = std.astype(np.float32)
        self.test_reads = 0
        self._test = test

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.validation)} validation, {len(self._test)} test"
        return f"Dataset({self.name!r}, {sizes}, {len(self.classes)} classes, {self.input_shape})"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.shape

    @property
    def test_size(self) -> int:
        """Number of test images; asking does not count as a read."""
        return len(self._test)

    @property
    def test(self) -> Split:
        """Always raises: the test split must be asked for knowingly."""
        raise RuntimeError("the test split is read once, at the end of a run: call read_test(), which counts")

    def read_test(self) -> Split:
        """The test split; adds one to `test_reads`."""
        self.test_reads += 1
        return self._test

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 (first 16 digits) over classes, normalisation, and every label and pixel of the three splits, in order."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.mean.tobytes() + self.std.tobytes())
        for split in (self.train, self.validation, self._test):
            digest.update(f"{split.raw.shape}{split.raw.dtype}".encode())
            digest.update(split.labels.tobytes())
            digest.update(split.raw.data)
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """The ``data`` block of ``result.json``."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "input_shape": list(self.input_shape),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": self.test_size,
        }


def statistics(raw: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per-channel mean and standard deviation, each (C,), of (n, C, H, W) pixels on the scale :class:`Split` normalises on.

    A constant channel gets a standard deviation of 1, so that it becomes zero instead of a division by zero.
    """
    unit = 255.0 if raw.dtype == np.uint8 else 1.0
    values = raw[:, 0].size
    total = np.zeros(raw.shape[1])
    for start in range(0, len(raw), _CHUNK):
        total += raw[start : start + _CHUNK].sum(axis=(0, 2, 3), dtype=np.float64)
    mean = total / values
    squares = np.zeros(raw.shape[1])
    for start in range(0, len(raw), _CHUNK):
        centred = raw[start : start + _CHUNK] - mean.reshape(-1, 1, 1)
        squares += np.einsum("nchw,nchw->c", centred, centred)
    std = np.sqrt(squares / values)
    # relative to the values' size: rounding leaves a constant float channel with a tiny, meaningless spread
    std[std <= 1e-7 * np.maximum(np.abs(mean), 1e-30)] = unit
    return mean / unit, std / unit
