"""Named arrays as bytes and back: an npz archive in which arrays are numbered, because names of tensors are no file names."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from sartor.errors import UserError


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An npz archive of the arrays, with their names in the array `names`."""
    buffer = io.BytesIO()
    numbered: dict[str, Any] = {f"a{number}": value for number, value in enumerate(arrays.values())}
    np.savez(buffer, names=np.array(list(arrays), dtype=str), **numbered)
    return buffer.getvalue()


def unpack_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of `pack_arrays`. Nothing is unpickled. Raises UserError for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {str(name): archive[f"a{number}"] for number, name in enumerate(archive["names"])}
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, struct and numpy each have their own for a broken archive
        raise UserError(f"expected arrays as an npz archive with their names, got a {type(error).__name__}") from None
