"""ExecuTorch with its XNNPACK kernels: `.pte` files, as `sartor.export.executorch` writes them.

All programs of a process share one pool of threads, and a loaded method holds on to the pool that it was loaded with: resetting the pool
under it is a use after free. So every loaded program is let go before the pool changes, and loaded again when its turn comes.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.runtimes.setup import Loaded, Setup, image


def load(file: Path, setup: Setup, seed: int = 0) -> Loaded:
    """A loaded program with its random input. The batch is fixed in the file. Raises UserError for what ExecuTorch cannot load."""
    import torch

    from sartor.hardware.runtimes import installed

    program = _Program(file, setup.threads)
    shape = program.input_shape
    if shape[0] != setup.batch:
        raise UserError(f"expected batch {shape[0]}, which {file} fixes, got batch {setup.batch}: export it for that batch")
    example = [torch.from_numpy(image(shape, seed))]

    def run() -> object:
        return program.execute(example)

    def infer(x: np.ndarray) -> np.ndarray:
        program.enter()
        return np.asarray(program.execute([torch.from_numpy(np.ascontiguousarray(x))])[0].numpy().copy())

    def enter() -> None:
        if program.enter():
            run()  # the first run of a method loaded anew is not like the others

    return Loaded(run, infer, installed("executorch") or "unknown", enter)


class _Program:
    """A program file with its method, in memory while the pool has the threads it wants."""

    def __init__(self, file: Path, threads: int) -> None:
        self.file, self.threads = file, threads
        self.input_shape: tuple[int, ...] = ()
        self.execute: Any = None
        self._held: Any = None  # the program's memory must outlive its method
        _LOADED.add(self)
        self.enter()

    def enter(self) -> bool:
        """Gives the pool this program's threads and loads the program where it is not loaded; whether it was loaded now."""
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != self.threads:
            for other in _LOADED:
                other.let_go()
            portable_lib._unsafe_reset_threadpool(self.threads)
        if self._held is not None:
            return False
        self._open()
        return True

    def let_go(self) -> None:
        self.execute = self._held = None

    def _open(self) -> None:
        from executorch.runtime import Runtime, Verification

        try:
            program = Runtime.get().load_program(str(self.file), verification=Verification.InternalConsistency)
            method = program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"expected a program that ExecuTorch can run, got {self.file}: {str(error).splitlines()[0][:300]}") from error
        if method is None:
            raise UserError(f"expected a program with a method 'forward', got {self.file} without one")
        self._held, self.execute = (program, method), method.execute
        self.input_shape = tuple(int(size) for size in method.metadata.input_tensor_meta(0).sizes())


_LOADED: weakref.WeakSet[_Program] = weakref.WeakSet()
