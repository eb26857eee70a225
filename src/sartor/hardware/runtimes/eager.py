"""PyTorch, operator by operator: the delivered `model.py` with its weights, or any file of Python with a function `load()`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup, image


def load(file: Path, setup: Setup, seed: int = 0) -> Loaded:
    """The network that `load()` in a Python file returns (the file is executed), batch norms folded, in channels-last layout.

    Raises UserError when the file cannot be executed, has no such function, or `setup.input_shape` is missing or does not fit.
    """
    if setup.input_shape is None:
        raise UserError(f"{file}: expected input_shape (C, H, W), which a Python file does not tell, got none")
    spec = importlib.util.spec_from_file_location(f"_sartor_model_{abs(hash(str(file.resolve())))}", file)
    try:
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        net = module.load()
    except Exception as error:  # whatever the file raises
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(f"expected a Python file whose load() returns a network, got {file}: {reason}") from error
    return from_module(net, setup, seed)


def from_module(net: Any, setup: Setup, seed: int = 0) -> Loaded:
    """A module in memory, ready to be measured as `load` does. The module itself is not changed."""
    import torch

    shape = (setup.batch, *(setup.input_shape or ()))
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    ready = _folded(net).to(dtype).to(memory_format=torch.channels_last)
    x = torch.from_numpy(image(shape, seed)).to(dtype)
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            return ready(x)

    def infer(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(ready(torch.from_numpy(np.ascontiguousarray(images)).to(dtype)).float().numpy())

    def enter() -> None:
        if torch.get_num_threads() != setup.threads:
            torch.set_num_threads(setup.threads)

    try:
        run()
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"expected a network that takes inputs {shape}, got an error: {str(error).splitlines()[0][:300]}") from error
    return Loaded(run, infer, torch.__version__, enter)


def _folded(net: Any) -> Any:
    """A copy in evaluation mode with batch norms folded into the convolutions before them, as the other runtimes have it."""
    import copy

    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(copy.deepcopy(net).eval())
    except Exception:  # what torch.fx cannot trace runs as it is
        return copy.deepcopy(net).eval()
