"""The process in which one order is carried out, with limits on itself.

`python -m sartor.agent.child FOLDER MEMORY_BYTES CPU_SECONDS FILE_BYTES` reads `order.json` and the files in
FOLDER, and writes events to standard output, one JSON object a line. It ends when its standard input does, so that it never outlives
the agent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.hardware.arrays import pack_arrays, unpack_arrays
from sartor.hardware.wire import Order, check_order

Emit = Callable[[Mapping[str, Any]], None]
_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate memory", "out of memory", "arena")


def main(arguments: list[str]) -> int:
    folder, memory, cpu, size = Path(arguments[0]), *(int(text) for text in arguments[1:4])
    emit = _private_output()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import onnxruntime  # noqa: F401  # what every task needs is the base that the memory limit comes on top of

        _limit(memory, cpu, size)
        emit({"event": "ready"})
        emit({"event": "result", **carry_out(check_order(json.loads((folder / "order.json").read_text())), folder, emit)})
    except MemoryError:
        emit({"event": "error", "kind": "memory", "message": "the model needs more memory than the agent allows"})
    except UserError as error:
        emit({"event": "error", **_judged(str(error))})
    except Exception as error:  # whatever a hostile model makes a runtime raise; the agent goes on
        emit({"event": "error", **_judged(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")})
    return 0


def _judged(message: str) -> dict[str, str]:
    memory = any(mark in message.lower() for mark in _MEMORY)
    return {"kind": "memory" if memory else "refused", "message": message}


def carry_out(order: Order, folder: Path, emit: Emit) -> dict[str, Any]:
    """The fields of an order's `result`; what it finds on the way goes to `emit`. Raises UserError for unfit models and settings."""
    from sartor.agent.onnx_file import check
    from sartor.hardware.local import LocalDevice

    device = LocalDevice()
    paths = [folder / name for name in order.names]
    models = [path for path in paths if path.suffix == ".onnx"]
    for number, path in enumerate(models):
        try:
            check(path.read_bytes())
        except UserError as error:
            raise UserError(f"model {number + 1} of {len(models)}: {error}") from None
    if "threads" in order.settings:
        device.identity("fp32", order.settings["threads"])  # refuses more threads than there are cores
    return _TASKS[order.task](device, order.settings, paths, emit)


def _measure(device: Any, settings: Mapping[str, Any], paths: list[Path], emit: Emit) -> dict[str, Any]:
    def progress(_: str, done: int, total: int) -> None:
        emit({"event": "progress", "done": done, "total": total})

    found = device.measure_many(paths, **settings, progress=progress)
    return {"measurements": [one.to_json() for one in found]}


def _optimise(device: Any, settings: Mapping[str, Any], paths: list[Path], emit: Emit) -> dict[str, Any]:
    return {"model": base64.b64encode(device.optimise(paths[0].read_bytes())).decode()}


def _values(device: Any, settings: Mapping[str, Any], paths: list[Path], emit: Emit) -> dict[str, Any]:
    values = device.values(paths[0].read_bytes(), settings["names"], unpack_arrays(paths[1].read_bytes()))
    return {"values": base64.b64encode(pack_arrays(values)).decode()}


def _time(device: Any, settings: Mapping[str, Any], paths: list[Path], emit: Emit) -> dict[str, Any]:
    if settings["pace"] is not None:
        device.pacer.fastest_us = min(device.pacer.fastest_us, float(settings["pace"]))
    models = ((model.read_bytes(), unpack_arrays(feeds.read_bytes())) for model, feeds in zip(paths[::2], paths[1::2], strict=True))
    for one in device.time(models, threads=settings["threads"], seconds=settings["seconds"]):
        emit({"event": "time", "time": asdict(one)})
    return {"pace": device.pacer.fastest_us}


_TASKS: Mapping[str, Callable[[Any, Mapping[str, Any], list[Path], Emit], dict[str, Any]]] = {
    "measure": _measure,
    "optimise": _optimise,
    "values": _values,
    "time": _time,
}


def _private_output() -> Emit:
    """A function that writes events to what was standard output; libraries that print find the null device there."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)

    def emit(event: Mapping[str, Any]) -> None:
        stream.write(json.dumps(event) + "\n")
        stream.flush()

    return emit


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(3)


def _limit(memory: int, cpu: int, size: int) -> None:
    """Limits of this process: `memory` bytes on top of what it has, `cpu` seconds, files of `size` bytes, no core dumps."""
    try:
        import resource
    except ImportError:  # no such limits on this system; the agent's clock remains
        return
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_CPU": cpu, "RLIMIT_FSIZE": size}
    statm = Path("/proc/self/statm")
    if statm.exists():
        wanted["RLIMIT_AS"] = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))
    with contextlib.suppress(OSError):  # if the board runs out of memory all the same, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
