"""LiteRT (TensorFlow Lite): `.tflite` files, as `sartor.export.litert` writes them or of any origin."""

from __future__ import annotations

from pathlib import Path

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
        scale, zero = entry["quantization"]
        given = x if np.issubdtype(entry["dtype"], np.floating) else np.clip(np.round(x / scale) + zero, -128, 127)
        interpreter.set_tensor(entry["index"], np.ascontiguousarray(given.astype(entry["dtype"])))
        interpreter.invoke()
        out = interpreter.get_tensor(end["index"])
        if np.issubdtype(end["dtype"], np.floating):
            return np.asarray(out)
        scale, zero = end["quantization"]
        return np.asarray((out.astype(np.float32) - zero) * scale)

    from sartor.hardware.runtimes import installed

    return Loaded(interpreter.invoke, infer, installed("litert") or "unknown")
