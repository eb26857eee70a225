"""OpenVINO on the CPU: `.onnx` files, fp32 or quantised as the file is; floats in fp32, bf16 or fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup, image

# Left to itself the plugin computes floats in bf16 where the processor can, without a word.
HINTS = {"": "f32", "fp32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}


def load(file: Path, setup: Setup, seed: int = 0) -> Loaded:
    """A compiled model with its random input. Raises UserError for what OpenVINO cannot load, and for floats it would not compute so."""
    import openvino as ov

    compiled = compile_model(file, setup)
    request = compiled.create_infer_request()
    entry = compiled.input(0)
    request.set_input_tensor(ov.Tensor(image(tuple(entry.shape), seed, entry.element_type.to_dtype())))

    def infer(x: np.ndarray) -> np.ndarray:
        return np.array(compiled([x])[0])

    return Loaded(request.infer, infer, str(ov.__version__).split("-")[0])


def compile_model(file: Path | str, setup: Setup, *, profile: bool = False) -> Any:
    """OpenVINO's compiled model of an ONNX file, one stream, batch fixed. `profile` counts the time of every node."""
    import openvino as ov

    core = ov.Core()
    hint = HINTS[setup.precision]
    settings = {
        "INFERENCE_NUM_THREADS": setup.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": hint,
        # Whoever asks for cores has put this thread on them already; the plugin's own choice would undo it.
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }
    if setup.precision in ("bf16", "fp16") and setup.precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError(f"expected a precision that OpenVINO computes in on this processor, got {setup.precision}: it would run in fp32")
    try:
        model = core.read_model(str(file))
        free = [place for place, size in enumerate(model.input(0).partial_shape) if size.is_dynamic]
        if any(place > 0 for place in free):
            raise UserError(f"expected only the first dimension to be free, got {model.input(0).partial_shape} in {file}")
        if free:
            shape = model.input(0).partial_shape
            shape[0] = setup.batch
            model.reshape(shape)
        elif model.input(0).shape[0] != setup.batch:
            raise UserError(f"expected batch {model.input(0).shape[0]}, which {file} fixes, got batch {setup.batch}")
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines()[::-1] if line.strip()), "no reason given")
        raise UserError(f"expected an ONNX model that OpenVINO {ov.__version__} can run, got {file}: {reason[:300]}") from error


def executed(file: Path | str, setup: Setup) -> list[dict[str, str]]:
    """The nodes that OpenVINO runs, in order: name, type, precision, and `fused`, the original nodes in it (comma-separated)."""
    nodes = []
    for node in compile_model(file, setup).get_runtime_model().get_ordered_ops():
        facts = {key: str(value.astype(str)) if hasattr(value, "astype") else str(value) for key, value in node.get_rt_info().items()}
        nodes.append(
            {
                "name": node.get_friendly_name(),
                "type": facts.get("layerType", node.get_type_name()),
                "precision": facts.get("runtimePrecision", ""),
                "fused": facts.get("originalLayersNames", ""),
            }
        )
    return nodes
