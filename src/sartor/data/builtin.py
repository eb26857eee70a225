"""The data sets known by name: where they may lie on this machine, and how they are read."""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import Source
from sartor.errors import UserError

FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR_FOLDER, _CIFAR_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Builtin:
    """One data set known by name; `locate` returns where it was found, or nothing."""

    name: str
    description: str
    how: str
    locate: Callable[[], str | None]
    read: Callable[[str], Source]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue; `where` is a folder, file or package, and empty when the data are missing."""

    name: str
    description: str
    found: bool
    where: str
    how: str


def catalogue() -> list[Entry]:
    """The built-in data sets, whether each was found here and where, and how to get it; reads no data."""
    entries = []
    for builtin in BUILTINS.values():
        where = builtin.locate()
        entries.append(Entry(builtin.name, builtin.description, where is not None, where or "", builtin.how))
    return entries


def read_builtin(name: str) -> Source:
    """Read a built-in data set.

    Raises:
        UserError: missing (says how to get it) or damaged.
    """
    builtin = BUILTINS[name]
    where = builtin.locate()
    if where is None:
        searched = "" if name == "digits" else f" (looked in {', '.join(str(place) for place in places(name))})"
        raise UserError(f"{name}: not found on this machine{searched}; {_cifar_pickles() if name == 'cifar10' else ''}{builtin.how}")
    return builtin.read(where)


def places(name: str) -> list[Path]:
    """The folders searched for a data set, in order: $SARTOR_DATA/name, $SARTOR_DATA, the user's cache, ./data, the system's."""
    root = os.environ.get("SARTOR_DATA")
    own = [Path(root) / name, Path(root)] if root else []
    return [*own, Path.home() / ".cache" / "sartor" / "data" / name, Path("data") / name, Path("/usr/share/datasets") / name]


def _locate_digits() -> str | None:
    return "scikit-learn" if importlib.util.find_spec("sklearn") is not None else None


def _read_digits(_: str) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Source("digits", ((bunch.images[:, None] / 16).astype(np.float32), bunch.target))


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _locate_fashion() -> str | None:
    return next((str(place) for place in places("fashion-mnist") if all(_idx_path(place, name) for name in _IDX_FILES)), None)


def _read_fashion(where: str) -> Source:
    arrays = [read_idx(path) for name in _IDX_FILES if (path := _idx_path(Path(where), name)) is not None]
    train_x, train_y, test_x, test_y = arrays
    for images, name in ((train_x, _IDX_FILES[0]), (test_x, _IDX_FILES[2])):
        if images.ndim != 3:
            raise UserError(
                f"fashion-mnist: {name} in {where} must hold images (n, height, width), got shape {images.shape}; fetch the file again"
            )
    return Source("fashion-mnist", (train_x[:, None], train_y), test=(test_x[:, None], test_y), classes=FASHION_CLASSES)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file (the MNIST format) of unsigned bytes, gzipped or not; the header gives the shape.

    Raises:
        UserError: not an idx file, or cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a gzip file ({error}); it is damaged or cut short, fetch it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path}: expected an idx file of unsigned bytes, got a file that begins with {data[:4]!r}; fetch it again")
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", data[3], 4))
    start = 4 + 4 * data[3]
    if len(data) - start != math.prod(shape):
        raise UserError(
            f"{path}: the header promises {math.prod(shape)} bytes of shape {shape}, got {len(data) - start}; fetch the file again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _locate_cifar10() -> str | None:
    for place in places("cifar10"):
        for folder in (place / _CIFAR_FOLDER, place):
            if all((folder / name).is_file() for name in (*_CIFAR_TRAIN, "test_batch.bin")):
                return str(folder)
        if (place / _CIFAR_ARCHIVE).is_file():
            return str(place / _CIFAR_ARCHIVE)
    return None


def _cifar_pickles() -> str:
    """Remarks on the python version of the files, where only that is present."""
    for place in places("cifar10"):
        for name in ("cifar-10-batches-py", "cifar-10-python.tar.gz"):
            if (place / name).exists():
                return f"{place / name} is the python version, which holds pickles, and those are not read; "
    return ""


def _read_cifar10(where: str) -> Source:
    names = (*_CIFAR_TRAIN, "test_batch.bin")
    path = Path(where)
    files = _cifar_archive(path, names) if path.is_file() else {name: (path / name).read_bytes() for name in names}
    train, test = (_cifar_records([(f"{where}: {name}", files[name]) for name in part]) for part in (_CIFAR_TRAIN, ("test_batch.bin",)))
    return Source("cifar10", train, test=test, classes=CIFAR10_CLASSES)


def _cifar_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The named members, read in place: nothing is extracted."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in names and member.isfile() and (handle := archive.extractfile(member)) is not None:
                    files[name] = handle.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read as a tar.gz archive ({error}); it is damaged or cut short, fetch it again") from error
    missing = [name for name in names if name not in files]
    if missing:
        raise UserError(f"{path}: expected the six files of CIFAR-10, {', '.join(missing)} missing; fetch the archive again")
    return files


def _cifar_records(files: Sequence[tuple[str, bytes]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) of records of one label byte and 3072 pixel bytes."""
    for what, data in files:
        if not data or len(data) % _CIFAR_RECORD:
            raise UserError(f"{what}: expected whole records of {_CIFAR_RECORD} bytes, got {len(data)} bytes; fetch the file again")
    records = np.frombuffer(b"".join(data for _, data in files), np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


BUILTINS: dict[str, Builtin] = {
    builtin.name: builtin
    for builtin in (
        Builtin("digits", "handwritten digits, 1,797 grey images 8x8, 10 classes", "install scikit-learn", _locate_digits, _read_digits),
        Builtin(
            "fashion-mnist",
            "clothing, 60,000 + 10,000 grey images 28x28, 10 classes",
            "install the Debian package dataset-fashion-mnist, or put the four idx files (train-images-idx3-ubyte.gz and so on, from "
            "github.com/zalandoresearch/fashion-mnist) into ~/.cache/sartor/data/fashion-mnist or $SARTOR_DATA",
            _locate_fashion,
            _read_fashion,
        ),
        Builtin(
            "cifar10",
            "CIFAR-10, 50,000 + 10,000 colour images 32x32, 10 classes",
            f'put {_CIFAR_ARCHIVE} ("CIFAR-10 binary version" on www.cs.toronto.edu/~kriz/cifar.html), as it is or extracted, into '
            "~/.cache/sartor/data/cifar10 or $SARTOR_DATA",
            _locate_cifar10,
            _read_cifar10,
        ),
    )
}
