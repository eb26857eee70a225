"""ExecuTorch with its XNNPACK kernels: `.pte` files, as `sartor.export.executorch` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup, image


def load(file: Path, setup: Setup, seed: int = 0) -> Loaded:
    """A loaded program with its random input. The batch is fixed in the file. Raises UserError for what ExecuTorch cannot load."""
    import torch
    from executorch.runtime import Runtime, Verification

    try:
        # The program's memory must outlive its method: both are kept by the closures below.
        program = Runtime.get().load_program(str(file), verification=Verification.InternalConsistency)
        method = program.load_method("forward")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"expected a program that ExecuTorch can run, got {file}: {str(error).splitlines()[0][:300]}") from error
    if method is None:
        raise UserError(f"expected a program with a method 'forward', got {file} without one")
    shape = tuple(int(size) for size in method.metadata.input_tensor_meta(0).sizes())
    if shape[0] != setup.batch:
        raise UserError(f"expected batch {shape[0]}, which {file} fixes, got batch {setup.batch}: export it for that batch")
    example = [torch.from_numpy(image(shape, seed))]
    execute: Any = method.execute

    def run(kept: Any = program) -> object:
        return execute(example)

    def infer(x: np.ndarray, kept: Any = program) -> np.ndarray:
        return np.asarray(execute([torch.from_numpy(np.ascontiguousarray(x))])[0].numpy().copy())

    from sartor.hardware.runtimes import installed

    return Loaded(run, infer, installed("executorch") or "unknown", _threads(setup.threads))


def _threads(count: int) -> Any:
    """Sets ExecuTorch's own pool, which all programs of a process share."""
    from executorch.extension.pybindings import portable_lib

    def enter() -> None:
        if portable_lib._threadpool_get_thread_count() != count:
            portable_lib._unsafe_reset_threadpool(count)

    return enter
