"""From what the user typed to a data set."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from sartor.data.builtin import BUILTINS, read_builtin
from sartor.data.custom import read_custom
from sartor.data.dataset import Dataset
from sartor.data.folder import read_folder
from sartor.data.npz import read_npz
from sartor.data.resize import parse_size
from sartor.data.source import Source, assemble
from sartor.errors import UserError

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load(
    spec: str | Path, *, seed: int = 0, validation: float = 0.1, limit: int | None = None, size: int | tuple[int, int] | None = None
) -> Dataset:
    """Load a data set and split it; a built-in name goes before a path of the same name.

    Args:
        spec: a name of :func:`catalogue`, an image folder, a ``.npz`` file, or ``module:function``.
        seed: decides the validation split, the choice under `limit` and the order of training images, and nothing else. A test split
            that the source does not have is carved (one fifth, stratified) with a constant seed of its own, the same for every run.
        validation: share of the training images held out, stratified, in (0, 0.5]; not used when the source has a validation split.
        limit: keep at most this many images of train and validation together, stratified; the test split stays whole.
        size: resize to (height, width), or to a square.

    Returns:
        Train and validation in random order, so that any prefix is a random sample; the test split in the source's order. Mean and
        standard deviation come from the training images alone.

    Raises:
        UserError: not found, damaged, or unfit for training; the message says what to do.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number from 0, got {seed!r}")
    if not 0 < validation <= 0.5:
        raise UserError(f"validation must be a share above 0 and up to 0.5, such as 0.1, got {validation}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise UserError(f"limit must be a whole number of images, got {limit!r}")
    target = parse_size(size)
    return assemble(_read(str(spec), target), seed=seed, validation=validation, limit=limit, size=target)


def _read(spec: str, size: tuple[int, int] | None) -> Source:
    if spec in BUILTINS:
        return read_builtin(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return read_folder(path, size)
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise UserError(f"{path}: expected an image folder or a .npz file, got another kind of file; save the arrays with numpy.savez")
        return read_npz(path)
    if _FUNCTION.fullmatch(spec):
        return read_custom(spec, size)
    if path.suffix.lower() == ".npz" or len(path.parts) > 1:
        raise UserError(f"{spec}: there is no such file or folder here; check the path")
    close = get_close_matches(spec.lower(), BUILTINS, 1, 0.5)
    hint = f' (did you mean "{close[0]}"?)' if close else ""
    raise UserError(f'"{spec}" is no known data set{hint}: give {", ".join(BUILTINS)}, an image folder, a .npz file or module:function')
