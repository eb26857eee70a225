"""Data sets in one NumPy ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import Source
from sartor.errors import UserError

_PARTS = ("train", "val", "test")
_OPTIONAL = ("classes", "layout", "name")
_EXPECTED = "expected the keys x_train and y_train (and x_val, y_val, x_test, y_test if you have them), or x and y alone"
_CHANNELS = (1, 3, 4)


def read_npz(path: Path) -> Source:
    """Read ``x_train, y_train[, x_val, y_val][, x_test, y_test]``, or ``x, y``.

    Images are (n, height, width) or have a channel axis, which is found so: of axes 1 and 3, the one of size 1, 3 or 4 holds the
    channels; if neither has such a size the layout is NCHW (a sensor series of C channels and T steps is (n, C, 1, T)); if both have,
    the file must say which by a further key ``layout`` ("NCHW" or "NHWC"), which always wins. Two more keys are optional: ``classes``
    (class names, in label order) and ``name`` (what the data set is called; the file's name otherwise).

    Raises:
        UserError: damaged, pickled objects inside, other keys, or a layout that cannot be told.
    """
    arrays = _arrays(path)
    if "x" in arrays and "y" in arrays and "x_train" not in arrays:
        arrays["x_train"], arrays["y_train"] = arrays.pop("x"), arrays.pop("y")
    known = {f"{axis}_{part}" for axis in "xy" for part in _PARTS} | set(_OPTIONAL)
    unknown = sorted(set(arrays) - known)
    halves = [part for part in _PARTS if (f"x_{part}" in arrays) != (f"y_{part}" in arrays)]
    if unknown or halves or "x_train" not in arrays:
        raise UserError(f"{path}: {_EXPECTED}, got {', '.join(sorted(arrays)) or 'none'}")
    layout = _text(arrays, "layout", path)
    if layout is None:
        layout = _layout(arrays["x_train"].shape, path)
    elif layout not in ("NCHW", "NHWC"):
        raise UserError(f'{path}: layout must be "NCHW" or "NHWC", got "{layout}"')
    pairs = {
        part: (_nchw(arrays[f"x_{part}"], layout, f"{path}, x_{part}"), arrays[f"y_{part}"]) for part in _PARTS if f"x_{part}" in arrays
    }
    name = _text(arrays, "name", path) or path.stem
    return Source(name, pairs["train"], pairs.get("val"), pairs.get("test"), classes=_classes(arrays, path))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: expected a .npz archive, got something else; it is damaged or cut short, save it again with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path}: holds pickled Python objects, which are not read; save plain numeric arrays of one shape") from error
        raise UserError(f"{path}: cannot be read as a .npz file ({error}); it is damaged, save it again") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as a .npz file ({error}); it is damaged or cut short, save it again") from error


def _layout(shape: tuple[int, ...], path: Path) -> str:
    if len(shape) == 3:
        return "NCHW"
    if len(shape) != 4:
        hint = "; a sensor series of C channels and T steps is (n, C, 1, T)" if len(shape) == 2 else ""
        raise UserError(f"{path}: x_train must be (n, height, width) or have one more axis of channels, got shape {shape}{hint}")
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        raise UserError(f'{path}: which axis of x_train {shape} holds the channels cannot be told; add the key layout, "NCHW" or "NHWC"')
    return "NHWC" if last else "NCHW"


def _nchw(images: NDArray[Any], layout: str, what: str) -> NDArray[Any]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise UserError(f"{what}: must be (n, height, width) or have one more axis of channels, got shape {images.shape}")
    return images.transpose(0, 3, 1, 2) if layout == "NHWC" else images


def _text(arrays: dict[str, NDArray[Any]], key: str, path: Path) -> str | None:
    if key not in arrays:
        return None
    if arrays[key].dtype.kind != "U" or arrays[key].size != 1:
        raise UserError(f"{path}: {key} must be one text, got {arrays[key].dtype} of shape {arrays[key].shape}")
    return str(arrays[key].item())


def _classes(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[str, ...] | None:
    if "classes" not in arrays:
        return None
    names = arrays["classes"]
    if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
        raise UserError(f"{path}: classes must be a list of different texts, got {names.dtype} of shape {names.shape}")
    return tuple(names.tolist())
