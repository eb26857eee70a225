"""Checks every source goes through: one clear sentence for each way in which arrays can be unfit for training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.dataset import Labels, Pixels
from sartor.errors import UserError


def as_pixels(array: NDArray[Any], what: str) -> Pixels:
    """uint8 or float32 values of an image array of any layout: integers within 0..255 become uint8, everything else float32.

    Raises:
        UserError: empty, not numbers, or NaN / infinite values (the first such image is named).
    """
    if array.size == 0:
        raise UserError(f"{what}: expected images, got an empty array of shape {array.shape}")
    if array.dtype.kind not in "buif":
        raise UserError(f"{what}: pixels must be numbers, got values of type {array.dtype}; store them as uint8 or float32")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    with np.errstate(over="ignore"):
        pixels: Pixels = array.astype(np.float32, copy=False)
    if not np.isfinite(pixels).all():
        bad = np.flatnonzero(~np.isfinite(pixels.reshape(len(pixels), -1)).all(axis=1))
        raise UserError(
            f"{what}: pixels must be finite, got NaN or infinity in {len(bad)} images (number {bad[0]} first); repair or remove them"
        )
    return pixels


def as_labels(array: NDArray[Any], what: str) -> Labels:
    """int64 labels (n,) from integers, or floats with whole values, of shape (n,) or (n, 1).

    Raises:
        UserError: any other shape, type or a fractional value.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; if they are one-hot, store argmax(axis=1)" if array.ndim == 2 else ""
        raise UserError(f"{what}: labels must have shape (n,), got {array.shape}{hint}")
    whole = array.dtype.kind in "bui" or (
        array.dtype.kind == "f" and bool(np.isfinite(array).all()) and bool((array == np.floor(array)).all())
    )
    if not whole:
        raise UserError(
            f"{what}: labels must be whole numbers from 0 to classes-1, got values of type {array.dtype} such as {array[:1].tolist()}"
        )
    return array.astype(np.int64)


def count_classes(labels: Labels, names: tuple[str, ...] | None, what: str, *, least: int) -> int:
    """The number of classes of the training labels, each of which must have at least `least` images.

    Raises:
        UserError: labels out of range, only one class, or a class that is too small.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise UserError(f"{what}: labels must be from 0 to classes-1, got {low}")
    count = len(names) if names is not None else high + 1
    if high >= count:
        raise UserError(f"{what}: labels must be from 0 to {count - 1} for the {count} named classes, got {high}")
    if count > len(labels):
        raise UserError(f"{what}: labels must be from 0 to classes-1, got {high} among {len(labels)} images; renumber the classes from 0")
    if len(np.unique(labels)) < 2:
        raise UserError(f"{what}: at least two classes are needed, got one only (label {low})")
    sizes = np.bincount(labels, minlength=count)
    small = np.flatnonzero(sizes < least)
    if len(small):
        called = f"{small[0]}" if names is None else f'"{names[small[0]]}"'
        hint = "; labels must start at 0" if sizes[0] == 0 and names is None else ""
        raise UserError(
            f"{what}: every class needs at least {least} training images to be split, class {called} has {sizes[small[0]]}"
            f" ({len(small)} such classes){hint}; add images or remove the class"
        )
    return count


def check_pair(images: Pixels, labels: Labels, what: str, *, shape: tuple[int, ...] | None = None, classes: int | None = None) -> None:
    """Images (n, C, H, W) and labels (n,) of one split fit together, and the training split's `shape`, (C, H, W) or (C,), and `classes`."""
    if len(images) != len(labels):
        raise UserError(f"{what}: images and labels must be equally many, got {len(images)} images and {len(labels)} labels")
    if shape is not None and images.shape[1 : 1 + len(shape)] != shape:
        needed = f"{shape} (channels, height, width)" if len(shape) == 3 else f"of {shape[0]} channels"
        raise UserError(
            f"{what}: images must be {needed} as in training, got {images.shape[1:]}; --input-size (size= in Python) resizes them"
        )
    if classes is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise UserError(f"{what}: labels must be from 0 to {classes - 1} as in training, got {bad}")
