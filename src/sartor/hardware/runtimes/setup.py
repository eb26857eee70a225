"""How a file is run: the runtime and its settings, and what a runtime gives back once it has loaded a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sartor.errors import UserError

PRECISIONS = ("", "fp32", "int8", "bf16", "fp16")


@dataclass(frozen=True)
class Setup:
    """A runtime and its settings.

    `precision`: "" runs the file as it is, floats in fp32; "fp32" and "int8" say what the file holds; "bf16" and "fp16" ask the runtime
    to compute floats in these types, and are refused where it would not. `cores` pins the computation to these cores (Linux).
    `input_shape` (C, H, W) is needed only where the file does not tell it (torch).
    """

    runtime: str = "onnxruntime"
    precision: str = ""
    threads: int = 1
    batch: int = 1
    cores: tuple[int, ...] = ()
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"expected precision to be one of fp32, int8, bf16, fp16, got {self.precision!r}")
        if self.batch < 1 or self.threads < 1:
            raise UserError(f"expected batch and threads of at least 1, got batch {self.batch}, threads {self.threads}")
        here = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        if self.cores and (here is None or not set(self.cores) <= here):
            known = "this system cannot pin" if here is None else f"of {sorted(here)}"
            raise UserError(f"expected cores {known}, got {list(self.cores)}")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cores": list(self.cores), "input_shape": list(self.input_shape) if self.input_shape else None}

    def __str__(self) -> str:
        parts = [self.runtime, self.precision, f"{self.threads} thread{'s' if self.threads != 1 else ''}"]
        parts += [f"batch {self.batch}"] if self.batch != 1 else []
        parts += [f"on core{'s' if len(self.cores) != 1 else ''} {', '.join(map(str, self.cores))}"] if self.cores else []
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Loaded:
    """A file that a runtime is ready to run."""

    run: Callable[[], object]  # one inference on a fixed random input
    infer: Callable[[np.ndarray], np.ndarray]  # first output for images (batch, C, H, W), for checks of the numbers
    version: str
    enter: Callable[[], None] | None = None  # sets what belongs to the process; called before a stretch of runs


def image(shape: tuple[int, ...], seed: int, dtype: Any = np.float32) -> np.ndarray:
    """The random input that a file is measured with, see :func:`draw`."""
    return draw(np.random.default_rng(seed), shape, dtype)


def draw(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Random values: floats standard normal, integers of 8 bits over all that they hold, others, which may be indices, over 0..126."""
    if np.issubdtype(dtype, np.floating):
        return np.asarray(rng.standard_normal(shape).astype(dtype))
    ends = np.iinfo(dtype) if np.dtype(dtype) in (np.uint8, np.int8) else None
    return np.asarray(rng.integers(0 if ends is None else ends.min, 127 if ends is None else ends.max + 1, shape).astype(dtype))
