"""Make `cifar10.npz` from a folder of lossless WebP sheets.

    python benchmarks/prepare_cifar10.py SHEETS cifar10.npz [--train 20000]

Each sheet (`train_00.webp` to `train_49.webp`, `test_00.webp` to `test_09.webp`) shows 1,000 tiles of 32x32 pixels, 20 in a row, row by
row, 100 of each class in label order. Each sheet is a class-balanced sample, so any multiple of 10 images is taken balanced: the same
number of each class, from the first sheets on.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TILES, SIDE, PER_ROW = 1000, 32, 20
ROWS = TILES // PER_ROW
PER_CLASS = TILES // len(CLASSES)


def read_sheet(path: Path) -> NDArray[np.uint8]:
    """The 1,000 tiles of one sheet, (1000, 32, 32, 3) uint8."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (ROWS * SIDE, PER_ROW * SIDE, 3):
        raise SystemExit(f"{path}: expected a sheet of {PER_ROW * SIDE}x{ROWS * SIDE} pixels, got {pixels.shape[1]}x{pixels.shape[0]}")
    return pixels.reshape(ROWS, SIDE, PER_ROW, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(TILES, SIDE, SIDE, 3)


def read_part(folder: Path, part: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first `count` images of a part, the same number of each class: (count, 32, 32, 3) uint8 and (count,) uint8."""
    sheets = sorted(folder.glob(f"{part}_*.webp"))
    if not 0 < count <= TILES * len(sheets) or count % len(CLASSES):
        raise SystemExit(f"{folder}: {part} images must be a multiple of {len(CLASSES)} up to {TILES * len(sheets)}, got {count}")
    images, labels = [], []
    for start, path in zip(range(0, count, TILES), sheets, strict=False):
        each = min(PER_CLASS, (count - start) // len(CLASSES))
        tiles = read_sheet(path).reshape(len(CLASSES), PER_CLASS, SIDE, SIDE, 3)[:, :each]
        images.append(tiles.reshape(-1, SIDE, SIDE, 3))
        labels.append(np.repeat(np.arange(len(CLASSES), dtype=np.uint8), each))
    return np.concatenate(images), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make cifar10.npz from a folder of lossless WebP sheets.")
    parser.add_argument("sheets", type=Path, help="folder with train_*.webp and test_*.webp")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--train", type=int, default=20_000, help="training images, balanced over the classes")
    parser.add_argument("--test", type=int, default=10_000, help="test images, balanced over the classes")
    options = parser.parse_args()
    began = time.perf_counter()
    x_train, y_train = read_part(options.sheets, "train", options.train)
    x_test, y_test = read_part(options.sheets, "test", options.test)
    # the name key makes `load` treat the file as CIFAR-10, for example in choosing its augmentation
    classes, name = np.array(CLASSES), np.array("cifar10")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        np.savez(handle, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, classes=classes, name=name)
    os.replace(temporary, options.out)
    mebibytes = options.out.stat().st_size / 2**20
    print(f"{options.out}: {len(x_train)} train, {len(x_test)} test, {mebibytes:.0f} MiB, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
