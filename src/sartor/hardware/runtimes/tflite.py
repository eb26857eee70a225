"""LiteRT (TensorFlow Lite): `.tflite` files, as `sartor.export.litert` writes them or of any origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup, image


def load(file: Path, setup: Setup, seed: int = 0) -> Loaded:
    """An interpreter (with its XNNPACK delegate) and its random input. Raises UserError for what LiteRT cannot load."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(file), num_threads=setup.threads)
        entry = interpreter.get_input_details()[0]
        if int(entry["shape"][0]) != setup.batch:
            interpreter.resize_tensor_input(entry["index"], [setup.batch, *(int(size) for size in entry["shape"][1:])])
        interpreter.allocate_tensors()
        entry, end = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        interpreter.set_tensor(entry["index"], image(tuple(int(size) for size in entry["shape"]), seed, entry["dtype"]))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"expected a model that LiteRT can run, got {file}: {str(error).splitlines()[0][:300]}") from error

    def infer(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry["index"], to_tensor(x, entry))
        interpreter.invoke()
        return from_tensor(interpreter.get_tensor(end["index"]), end)

    from sartor.hardware.runtimes import installed

    return Loaded(interpreter.invoke, infer, installed("litert") or "unknown")


def to_tensor(x: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Real values as a tensor holds them. `about` has the `dtype` of the tensor and its `quantization`: (scale, zero point), a scale of 0
    where it has none. Integers saturate at the ends of their own type: 0..255 for uint8, -128..127 for int8."""
    if np.issubdtype(about["dtype"], np.floating):
        return np.ascontiguousarray(x, about["dtype"])
    scale, zero = about["quantization"]
    ends = np.iinfo(about["dtype"])
    return np.ascontiguousarray(
        np.clip(np.round(np.asarray(x, np.float64) / (scale or 1.0)) + zero, ends.min, ends.max).astype(about["dtype"])
    )


def from_tensor(values: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """The real values that a tensor holds; `about` as in :func:`to_tensor`. Integers that are not quantised stand for themselves."""
    if np.issubdtype(about["dtype"], np.floating):
        return np.asarray(values)
    scale, zero = about["quantization"]
    return np.asarray((values.astype(np.float32) - zero) * (scale or 1.0))
