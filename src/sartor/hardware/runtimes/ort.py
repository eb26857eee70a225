"""ONNX Runtime on the CPU: `.onnx` files, fp32 or quantised as the file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup, draw

if TYPE_CHECKING:
    import onnxruntime as ort

_INPUTS: dict[str, Any] = {
    "float": np.float32, "uint8": np.uint8, "int8": np.int8, "double": np.float64, "float16": np.float16, "int32": np.int32,
    "int64": np.int64, "bool": np.bool_,
}  # fmt: skip


def load(file: Path, setup: Setup, seed: int = 0) -> Loaded:
    """A session with its random input. Raises UserError for what ONNX Runtime cannot load."""
    import onnxruntime as ort

    session = open_session(file, setup.threads)
    if not session.get_inputs():
        raise UserError(f"expected a network with an input, got {file}, which computes from constants alone")
    feeds = synthetic_input(session, setup.batch, seed)
    run: Any = session.run
    name = session.get_inputs()[0].name
    return Loaded(lambda: run(None, feeds), lambda x: np.asarray(run(None, {name: x})[0]), ort.__version__)


def open_session(model: Path | str | bytes, threads: int = 1, *, optimise: bool = True, profile: str | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session as this package measures: `threads` inside ops, one op at a time, no spinning when idle threads would
    steal from other processes. `model` is a file or the serialised model. Raises UserError for what the runtime cannot load."""
    import onnxruntime as ort

    if isinstance(model, str | Path) and not Path(model).is_file():
        raise UserError(f"expected an ONNX file, got {model}, which does not exist")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")  # a file may pass for both formats; only this one was checked
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exception classes differ by version
        name = "the model given" if isinstance(model, bytes) else str(model)
        raise UserError(
            f"expected an ONNX model that ONNX Runtime {ort.__version__} can run, got {name}: {str(error).splitlines()[0]}"
        ) from error


def synthetic_input(session: ort.InferenceSession, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images for a session's inputs, as `sartor.hardware.runtimes.setup.draw` makes them; free dimensions become `batch`.

    Raises UserError for inputs that are no arrays of numbers, and for free dimensions other than the first.
    """
    rng = np.random.default_rng(seed)
    kinds = {f"tensor({name})": kind for name, kind in _INPUTS.items()}
    feeds = {}
    for item in session.get_inputs():
        if item.type not in kinds:
            raise UserError(f"expected inputs of type {', '.join(kinds)}, got {item.type} for {item.name!r}")
        free = [place for place, size in enumerate(item.shape) if not isinstance(size, int)]
        if any(place > 0 for place in free):
            raise UserError(f"expected only the first dimension to be free, got shape {item.shape} for input {item.name!r}")
        if not free and item.shape and item.shape[0] != batch:
            raise UserError(f"expected batch {item.shape[0]}, which the file fixes for input {item.name!r}, got batch {batch}")
        shape = [batch if place in free else size for place, size in enumerate(item.shape)]
        try:
            feeds[item.name] = draw(rng, shape, kinds[item.type])
        except (MemoryError, ValueError):
            raise UserError(f"expected inputs that fit into memory, got shape {shape} for input {item.name!r}: out of memory") from None
    return feeds
