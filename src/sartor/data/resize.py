"""Resizing with Pillow."""

from __future__ import annotations

import numpy as np

from sartor.data.dataset import Pixels
from sartor.errors import UserError

LARGEST_SIDE = 4096


def parse_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) from one number (square) or a pair.

    Raises:
        UserError: not whole numbers from 1 to 4096.
    """
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE for side in pair):
        raise UserError(f"size must be one whole number or (height, width), each from 1 to {LARGEST_SIDE}, got {size!r}")
    return pair[0], pair[1]


def resize(images: Pixels, size: tuple[int, int]) -> Pixels:
    """(n, C, H, W) images at `size` (height, width), bilinear and antialiased; uint8 stays uint8, float32 stays float32."""
    from PIL import Image

    if images.shape[2:] == size:
        return images
    count, channels = images.shape[:2]
    out = np.empty((count, channels, *size), images.dtype)
    target = (size[1], size[0])
    whole = channels == 3 and images.dtype == np.uint8
    for number, image in enumerate(images):
        if whole:
            tile = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            out[number] = np.asarray(tile.resize(target, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            continue
        for channel in range(channels):
            tile = Image.fromarray(np.ascontiguousarray(image[channel]))
            out[number, channel] = np.asarray(tile.resize(target, Image.Resampling.BILINEAR))
    return out
