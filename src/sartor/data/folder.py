"""Image folders: one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import Source
from sartor.errors import UserError

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"))
LARGEST_BYTES = 8 * 2**30
_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What cameras write. Asking a PNG file for its EXIF data would decode it whole.
_ROTATED = ("JPEG", "MPO", "TIFF", "WEBP")
_NAMED = 5


@dataclass(frozen=True)
class _Header:
    """What an image file says of itself before its pixels are decoded; `size` is (height, width) as displayed."""

    size: tuple[int, int]
    grey: bool


def read_folder(root: Path, size: tuple[int, int] | None) -> Source:
    """Read ``root/{train,val,test}/class/*.png`` or ``root/class/*.png``; classes are the sorted folder names.

    Images may lie deeper inside a class folder. Names beginning with a dot or two underscores and files that are no images by their
    extension are passed over. All-grey sets stay grey, all others become RGB. Transparency is dropped, EXIF rotation is applied (but not
    looked for in PNG files), 16-bit grey is brought to 8 bits, and of an animation the first frame counts.

    Args:
        size: (height, width) to resize to while reading; without it all images must have one size.

    Raises:
        UserError: no images, broken images (named), images of several sizes, or more than 8 GiB of pixels.
    """
    folders = {part: next((root / name for name in names if (root / name).is_dir()), None) for part, names in _SPLITS.items()}
    if folders["train"] is None:
        folders = {"train": root, "validation": None, "test": None}
    classes = _class_names(folders["train"] or root)
    files = {part: _listed(folder, classes) for part, folder in folders.items() if folder is not None}
    paths = [path for listed in files.values() for path, _ in listed]
    grey, size = _common(root, paths, size)
    images = _decode(root, paths, size, grey)
    pairs: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    start = 0
    for part, listed in files.items():
        pairs[part] = images[start : start + len(listed)], np.array([label for _, label in listed], np.int64)
        start += len(listed)
    return Source(root.resolve().name, pairs["train"], pairs.get("validation"), pairs.get("test"), classes=classes)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in _visible(folder) if path.is_dir())
    if not names:
        raise UserError(f"{folder}: expected one folder of images per class, such as {folder.name}/cat/1.png, got no folders")
    return names


def _listed(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The images of one split with their labels."""
    label = {name: number for number, name in enumerate(classes)}
    listed: list[tuple[Path, int]] = []
    for path in _visible(folder):
        if not path.is_dir():
            continue
        if path.name not in label:
            raise UserError(
                f"{folder}: class {path.name} is not among the training classes ({', '.join(classes[:10])}); add it there or remove it"
            )
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and not file.name.startswith((".", "__")))
        listed += [(file, label[path.name]) for file in inside]
    if not listed:
        raise UserError(f"{folder}: expected images ({', '.join(sorted(EXTENSIONS))}) in class folders, got none")
    return listed


def _workers() -> int:
    return min(4, os.cpu_count() or 1)


def _header(path: Path) -> _Header | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            # orientations 5 to 8 of the EXIF standard lay the image on its side
            turned = image.format in _ROTATED and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return _Header((width, height) if turned else (height, width), image.mode in ("1", "L", "LA", *_DEEP_GREY))
    except Exception:  # Pillow's decoders raise almost anything on damaged files
        return None


def _common(root: Path, paths: Sequence[Path], size: tuple[int, int] | None) -> tuple[bool, tuple[int, int]]:
    """Whether all images are grey, and their one (height, width); reads headers only."""
    with ThreadPoolExecutor(_workers()) as pool:
        headers = list(pool.map(_header, paths))
    _refuse_broken(root, [path for path, header in zip(paths, headers, strict=True) if header is None])
    known = [header for header in headers if header is not None]
    sizes = Counter(header.size for header in known)
    if size is None and len(sizes) > 1:
        (common, count), *_ = sizes.most_common(1)
        other = next(path for path, header in zip(paths, known, strict=True) if header.size != common)
        raise UserError(
            f"{root}: all images must have one size, got {len(sizes)} sizes ({count} of {len(paths)} images are {common[1]}x{common[0]},"
            f" {other.relative_to(root)} is not); --input-size resizes them (size= in Python), for example {common[0]}"
        )
    height, width = size or known[0].size
    grey = all(header.grey for header in known)
    needed = len(paths) * height * width * (1 if grey else 3)
    if needed > LARGEST_BYTES:
        raise UserError(
            f"{root}: {len(paths)} images of {width}x{height} would need {needed / 2**30:.1f} GiB; pass a smaller size= (--input-size)"
        )
    return grey, (height, width)


def _decode(root: Path, paths: Sequence[Path], size: tuple[int, int], grey: bool) -> NDArray[np.uint8]:
    """All images as one (n, C, H, W) uint8 array."""
    out = np.empty((len(paths), 1 if grey else 3, *size), np.uint8)

    def one(number: int) -> bool:
        try:
            out[number] = _pixels(paths[number], size, grey)
        except Exception:  # as in _header
            return False
        return True

    with ThreadPoolExecutor(_workers()) as pool:
        done = list(pool.map(one, range(len(paths))))
    _refuse_broken(root, [path for path, ok in zip(paths, done, strict=True) if not ok])
    return out


def _pixels(path: Path, size: tuple[int, int], grey: bool) -> NDArray[np.uint8]:
    """One image as (C, H, W) uint8."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened) if opened.format in _ROTATED else opened
        if image.mode in _DEEP_GREY:
            # Pillow's own conversion clips 16-bit values at 255 instead of scaling them
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        image = image.convert("L" if grey else "RGB")
        if image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1)


def _refuse_broken(root: Path, broken: Sequence[Path]) -> None:
    if broken:
        named = ", ".join(str(path.relative_to(root)) for path in broken[:_NAMED])
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        what, it = ("file", "it") if len(broken) == 1 else ("files", "them")
        raise UserError(f"{root}: {len(broken)} {what} cannot be decoded: {named}{more}; repair or remove {it}")
