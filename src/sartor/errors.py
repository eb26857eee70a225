"""Errors that a user can act on."""

from __future__ import annotations

import errno
from pathlib import Path


class UserError(ValueError):
    """A user's mistake, said in one sentence: what was expected, which field, what came, what to do.

    The command line prints it and exits with code 2; from Python it is an ordinary `ValueError`.
    """


class Unusable(UserError):
    """A place that could not be written, or not any more: what was asked is in order, and goes on once there is room."""


#: Full disk, quota or file too large, read-only, forbidden: the user's place to write, not a fault inside.
PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def unusable(error: OSError, folder: Path | None) -> str:
    """The sentence for a place that cannot be written; `folder` is that of a run, which `resume` goes on with once it was begun."""
    what = f"{error.filename or folder or 'The disk'} cannot be used: {error.strerror or error}"
    if folder is not None and (folder / "config.json").is_file():
        return (
            f"{what}. What was finished is kept: make room or mend the rights, then go on with `sartor resume {folder}`, or choose "
            "another folder with --out."
        )
    return f"{what}{'; nothing was begun' if folder else ''}: make room, mend the rights or choose another folder."
