"""Runtimes by name. Each is a module with one function, `load(file, setup, seed) -> Loaded`, imported when it is first used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup

__all__ = ["RUNTIMES", "Loaded", "Runtime", "Setup", "installed", "load"]


@dataclass(frozen=True)
class Runtime:
    """What a runtime is: the module that loads for it, the file it takes, its precisions, and how to get it."""

    name: str
    module: str
    suffix: str
    precisions: tuple[str, ...]
    package: str  # as it is imported
    distribution: str  # as it is installed
    extra: str = ""  # of this project; empty: always there


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "ort", ".onnx", ("fp32", "int8"), "onnxruntime", "onnxruntime"),
        Runtime("openvino", "ov", ".onnx", ("fp32", "int8", "bf16", "fp16"), "openvino", "openvino", "openvino"),
        Runtime("executorch", "xnnpack", ".pte", ("fp32", "int8"), "executorch", "executorch", "executorch"),
        Runtime("litert", "tflite", ".tflite", ("fp32", "int8"), "ai_edge_litert", "ai-edge-litert", "litert"),
        Runtime("torch", "eager", ".py", ("fp32", "bf16"), "torch", "torch"),
    )
}


def installed(name: str) -> str | None:
    """The version of a runtime here, None when it is not installed. Raises UserError for an unknown name."""
    runtime = _known(name)
    if find_spec(runtime.package) is None:
        return None
    try:
        return version(runtime.distribution)
    except PackageNotFoundError:
        return "unknown"


def load(file: Path | str, setup: Setup, seed: int = 0) -> Loaded:
    """A file, ready to run with a random input, which it has done once.

    Raises UserError for an unknown runtime or one that is not installed, a precision it has not, and a file that is missing, of another
    kind, or that it cannot load or run.
    """
    runtime, path = _known(setup.runtime), Path(file)
    if setup.precision and setup.precision not in runtime.precisions:
        raise UserError(f"expected a precision that {runtime.name} has ({', '.join(runtime.precisions)}), got {setup.precision!r}")
    if not path.is_file():
        what = "an ONNX" if runtime.suffix == ".onnx" else f"a {runtime.suffix}"
        raise UserError(f"expected {what} file, got {path}, which does not exist or is no file")
    if path.suffix != runtime.suffix:
        raise UserError(f"expected a {runtime.suffix} file for the runtime {runtime.name}, got {path.name}")
    if installed(setup.runtime) is None:
        raise UserError(f"The runtime {runtime.name} is not installed: install it with  pip install 'sartor[{runtime.extra}]'.")
    found: Loaded = importlib.import_module(f"sartor.hardware.runtimes.{runtime.module}").load(path, setup, seed)
    try:
        found.run()
    except MemoryError:
        raise
    except Exception as error:  # the runtimes have classes of their own, which differ by version
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"expected a model that {runtime.name} {found.version} can run on a random input, got {path}: {reason}") from error
    return found


def _known(name: str) -> Runtime:
    if name not in RUNTIMES:
        raise UserError(f"expected a runtime, one of {', '.join(RUNTIMES)}, got {name!r}")
    return RUNTIMES[name]
