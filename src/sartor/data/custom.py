"""The user's own data: ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.checks import as_pixels
from sartor.data.dataset import Dataset
from sartor.data.resize import resize
from sartor.data.source import Source
from sartor.errors import UserError

_EXPECTED = "a sartor Dataset, or map-style data sets (train, test) or (train, validation, test) with items (image, label)"
_CHANNELS = (1, 3, 4)


def read_custom(spec: str, size: tuple[int, int] | None) -> Source:
    """Call ``module:function`` without arguments and read what it returns; the current folder is importable.

    The function returns a :class:`Dataset`, one map-style data set (``__len__`` and ``__getitem__``), or a tuple of two or three of them:
    (train, test) or (train, validation, test). Items are (image, label) with Pillow images, NumPy arrays (H, W), (H, W, C) or (C, H, W),
    or tensors (C, H, W); torchvision's data sets are such. Every item is read once, so a random transform would be frozen: leave
    augmentation to the training.

    Raises:
        UserError: cannot be imported, fails, or returns something else.
    """
    with _importable(Path.cwd()):
        return _source(spec, _call(spec), size)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _source(spec: str, result: Any, size: tuple[int, int] | None) -> Source:
    if isinstance(result, Dataset):
        train, held, test = ((split.raw, split.labels) for split in (result.train, result.validation, result._test))
        return Source(result.name, train, held, test, result.classes, result.mean, result.std)
    sets = list(result) if isinstance(result, tuple) else [result]
    fit = [not isinstance(one, type) and hasattr(one, "__len__") and hasattr(one, "__getitem__") for one in sets]
    if not 1 <= len(sets) <= 3 or not all(fit):
        got = f"({', '.join(type(one).__name__ for one in sets[:4])})" if isinstance(result, tuple) else type(result).__name__
        raise UserError(f"{spec}: the function must return {_EXPECTED}, got {got}")
    names = {1: ("train",), 2: ("train", "test"), 3: ("train", "validation", "test")}[len(sets)]
    pairs = {part: _items(one, f"{spec}, {part} split", size) for part, one in zip(names, sets, strict=True)}
    listed = getattr(sets[0], "classes", None)
    named = isinstance(listed, (list, tuple)) and bool(listed) and all(isinstance(name, str) for name in listed)
    classes = tuple(listed) if named and listed is not None else None
    return Source(spec.partition(":")[2], pairs["train"], pairs.get("validation"), pairs.get("test"), classes=classes)


def _call(spec: str) -> Any:
    function = _function(spec)
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{spec}: the function failed with {type(error).__name__}: {error}") from error


def _function(spec: str) -> Callable[[], Any]:
    module_name, _, function_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{spec}: module {module_name} cannot be imported ({type(error).__name__}: {error}); run from its folder or install it"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        close = get_close_matches(function_name, [name for name in dir(module) if callable(getattr(module, name))], 1)
        hint = f"; did you mean {module_name}:{close[0]}?" if close else ""
        raise UserError(f"{spec}: module {module_name} has no function {function_name}{hint}")
    found: Callable[[], Any] = function
    return found


def _items(dataset: Any, what: str, size: tuple[int, int] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """All items of a map-style data set as images (n, C, H, W) and labels (n,)."""
    images: list[NDArray[Any]] = []
    labels: list[Any] = []
    try:
        count = len(dataset)
    except Exception as error:
        raise UserError(f"{what}: its length failed with {type(error).__name__}: {error}") from error
    if count == 0:
        raise UserError(f"{what}: expected items (image, label), got an empty data set")
    for number in range(count):
        try:
            item = dataset[number]
        except Exception as error:
            raise UserError(f"{what}: item {number} failed with {type(error).__name__}: {error}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"{what}: items must be pairs (image, label), item {number} is a {type(item).__name__}")
        image = _image(item[0], f"{what}, item {number}")
        if size is not None:
            image = resize(as_pixels(image[None], f"{what}, item {number}"), size)[0]
        if images and image.shape != images[0].shape:
            raise UserError(
                f"{what}: all images must have one size (channels, height, width), item {number} is {image.shape} and the first"
                f" {images[0].shape}; resize them with --input-size (size= in Python), and convert them to one mode"
            )
        images.append(image)
        labels.append(item[1].item() if hasattr(item[1], "item") and np.ndim(item[1]) == 0 else item[1])
    try:
        return np.stack(images), np.asarray(labels)
    except ValueError as error:
        raise UserError(f"{what}: labels must be whole numbers, one for each image ({error})") from error


def _image(image: Any, what: str) -> NDArray[Any]:
    """One image as (C, H, W); tensors have the channels first, Pillow images last, and arrays where 1, 3 or 4 stands."""
    tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu() if tensor else image)
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3):
        raise UserError(
            f"{what}: expected an image of 2 or 3 axes, got {type(image).__name__} with {array.dtype} values of shape {array.shape}"
        )
    if array.ndim == 2:
        return array[None]
    if hasattr(image, "getbands"):
        return array.transpose(2, 0, 1)
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and last and not tensor:
        raise UserError(
            f"{what}: which axis of {array.shape} holds the channels cannot be told; return a Pillow image or a tensor (C, H, W)"
        )
    return array.transpose(2, 0, 1) if last and not tensor else array
