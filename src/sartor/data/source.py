"""What a reader returns, and how it becomes a :class:`Dataset`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.checks import as_labels, as_pixels, check_pair, count_classes
from sartor.data.dataset import Dataset, Labels, Pixels, Split, statistics
from sartor.data.resize import resize
from sartor.data.splits import stratified
from sartor.errors import UserError

TEST_FRACTION = 0.2
# One constant, not the run's seed: runs of different seeds must not train on each other's test images.
TEST_SEED = 20_180_815

Pair = tuple[Pixels, Labels]


@dataclass(frozen=True)
class Source:
    """Arrays as read: images (n, C, H, W) and labels (n,) of each split the source has."""

    name: str
    train: tuple[NDArray[Any], NDArray[Any]]
    validation: tuple[NDArray[Any], NDArray[Any]] | None = None
    test: tuple[NDArray[Any], NDArray[Any]] | None = None
    classes: tuple[str, ...] | None = None
    mean: NDArray[Any] | None = None
    std: NDArray[Any] | None = None


def assemble(source: Source, *, seed: int, validation: float, limit: int | None, size: tuple[int, int] | None) -> Dataset:
    """Check, split, cut down, resize and measure: see :func:`sartor.data.load` for the meaning of the arguments.

    Raises:
        UserError: the arrays are unfit, or cannot be split as asked.
    """
    source, classes = _checked(source, resized=size is not None)
    train, held, test = source.train, source.validation, source.test
    if test is None:
        count, leave = round(TEST_FRACTION * len(train[1])), 2 if held is None else 1
        picked, rest = stratified(train[1], count, np.random.default_rng(TEST_SEED), leave=leave)
        train, test = _take(train, rest), _take(train, picked)
    rng = np.random.default_rng(seed)
    if limit is not None:
        train, held = _limited(source.name, train, held, limit, classes, rng)
    if held is None:
        picked, rest = stratified(train[1], round(validation * len(train[1])), rng)
        train, held = _take(train, rest), _take(train, picked)
    else:
        train, held = _take(train, rng.permutation(len(train[1]))), _take(held, rng.permutation(len(held[1])))
    if size is not None:
        train, held, test = ((resize(images, size), labels) for images, labels in (train, held, test))
    mean, std = statistics(train[0])
    mean, std = source.mean if source.mean is not None else mean, source.std if source.std is not None else std
    names = source.classes if source.classes is not None else tuple(str(label) for label in range(classes))
    splits = (Split(*train, mean, std), Split(*held, mean, std), Split(*test, mean, std))
    return Dataset(source.name, splits[0], splits[1], splits[2], names, mean, std)


def _checked(source: Source, *, resized: bool) -> tuple[Source, int]:
    """The source with clean types, and its number of classes; every split is checked against the training one.

    Where all images will be `resized`, their heights and widths may differ between splits.
    """
    clean: dict[str, Pair] = {}
    for part in ("train", "validation", "test"):
        pair = getattr(source, part)
        if pair is not None:
            what = f"{source.name}, {part} split"
            clean[part] = as_pixels(pair[0], what), as_labels(pair[1], what)
            check_pair(*clean[part], what)
    what = f"{source.name}, train split"
    least = 1 + (source.validation is None) + (source.test is None)
    classes = count_classes(clean["train"][1], source.classes, what, least=max(least, 2))
    if len({getattr(source, part)[0].dtype.kind == "f" for part in clean}) != 1:
        types = ", ".join(f"{part} {getattr(source, part)[0].dtype}" for part in clean)
        raise UserError(f"{source.name}: all splits must have pixels of one kind, whole numbers or floats, got {types}; store them alike")
    floating = any(pixels.dtype == np.float32 for pixels, _ in clean.values())
    shape = clean["train"][0].shape[1 : 2 if resized else 4]
    for part, (pixels, labels) in clean.items():
        check_pair(pixels, labels, f"{source.name}, {part} split", shape=shape, classes=classes)
        if floating and pixels.dtype == np.uint8:
            # wide integers of which this split happens to hold only 0..255: same scale as the others, so no division by 255
            clean[part] = pixels.astype(np.float32), labels
    return replace(source, train=clean["train"], validation=clean.get("validation"), test=clean.get("test")), classes


def _take(pair: Pair, index: NDArray[np.int64]) -> Pair:
    return pair[0][index], pair[1][index]


def _limited(name: str, train: Pair, held: Pair | None, limit: int, classes: int, rng: np.random.Generator) -> tuple[Pair, Pair | None]:
    """At most `limit` images of train and validation together, in proportion."""
    if limit < 2 * classes:
        raise UserError(
            f"{name}: limit must be at least two images for each of the {classes} classes, {2 * classes}, got {limit} (--limit-train)"
        )
    total = len(train[1]) + (0 if held is None else len(held[1]))
    if limit >= total:
        return train, held
    if held is None:
        return _take(train, stratified(train[1], limit, rng, least=2, leave=0)[0]), None
    share = min(max(1, round(limit * len(held[1]) / total)), limit - classes)
    kept = stratified(train[1], limit - share, rng, leave=0)[0]
    return _take(train, kept), _take(held, stratified(held[1], share, rng, least=0, leave=0)[0])
