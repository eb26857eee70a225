"""The form in which a client and a `sartor agent` speak: one request with its files, answered by a stream of JSON lines.

A request is `MAGIC`, the length of a JSON header (4 bytes, big endian), the header `{"task", "settings", "sizes"}`, and the files one
after the other. Files have no names. The answer is one JSON object a line, the last of which is `result` or `error`; a stream that ends
otherwise was cut off. Standard library only: a board has no more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sartor.errors import UserError

PROTOCOL = 1
MAGIC = b"sartor1\n"
CONTENT_TYPE = "application/x-sartor"
MAX_HEADER = 1 << 20
MAX_FILES = 256
HEARTBEAT_S = 2.0  # the longest silence in an answer

IDENTITY_PATH, RUN_PATH = "/v1/identity", "/v1/run"

_WHOLE: dict[str, tuple[int, int]] = {"threads": (1, 1024), "batch": (1, 4096), "seed": (0, 2**32 - 1), "patience": (1, 16)}
_REAL: dict[str, tuple[float, float]] = {"seconds": (0.0, 120.0), "pace": (0.0, 1e6)}
# The settings of each task; all are required.
TASKS: Mapping[str, frozenset[str]] = {
    "measure": frozenset({"threads", "batch", "seconds", "seed", "patience"}),  # files: models
    "optimise": frozenset(),  # one model
    "values": frozenset({"names"}),  # a model and its inputs as npz
    "time": frozenset({"threads", "seconds", "pace"}),  # model, inputs, model, inputs, …
}


@dataclass(frozen=True)
class Order:
    """A checked header: what to do, how, and the sizes of the files that follow, in bytes."""

    task: str
    settings: Mapping[str, Any]
    sizes: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """All that stands before the files."""
        header = json.dumps({"task": self.task, "settings": dict(self.settings), "sizes": list(self.sizes)}).encode()
        return MAGIC + struct.pack(">I", len(header)) + header

    @property
    def names(self) -> tuple[str, ...]:
        """What the files are called where they are received."""
        inputs = self.task in ("values", "time")  # every second file is a model's inputs
        return tuple(f"part{number}.{'npz' if inputs and number % 2 else 'onnx'}" for number in range(len(self.sizes)))

    @property
    def models(self) -> int:
        return len(self.sizes) if self.task == "measure" else len(self.sizes) // 2 or 1

    @property
    def seconds(self) -> float:
        """How long it takes if nothing is slow."""
        factor = {"measure": 1, "time": 6}.get(self.task, 0) * self.models
        return factor * float(self.settings.get("seconds", 0.0)) * int(self.settings.get("patience", 1))


def read_order(read: Callable[[int], bytes], length: int) -> Order:
    """The header at the beginning of a body of `length` bytes, checked. `read(n)` gives n bytes, fewer at the end.

    Raises UserError for anything else: wrong magic, unknown tasks and settings, values out of range, sizes that do not add up.
    """
    start = read(len(MAGIC) + 4)
    if start[: len(MAGIC)] != MAGIC or len(start) != len(MAGIC) + 4:
        raise UserError(f"expected a body that begins with {MAGIC!r}, got {start[:16]!r}")
    (size,) = struct.unpack(">I", start[len(MAGIC) :])
    if not 2 <= size <= MAX_HEADER:
        raise UserError(f"expected a header of at most {MAX_HEADER} bytes, got {size}")
    try:
        header = json.loads(read(size).decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise UserError("expected a header in JSON, got something else") from None
    order = check_order(header)
    if len(start) + size + sum(order.sizes) != length:
        raise UserError(f"expected a body of {len(start) + size + sum(order.sizes)} bytes, as its header says, got {length}")
    return order


def check_order(header: Any) -> Order:
    """An order from a parsed header. Raises UserError for what is not one."""
    if not isinstance(header, dict) or set(header) != {"task", "settings", "sizes"}:
        raise UserError("expected a header with task, settings and sizes")
    task, settings, sizes = header["task"], header["settings"], header["sizes"]
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"expected a task among {', '.join(TASKS)}, got {str(task)[:50]!r}")
    if not isinstance(settings, dict) or set(settings) != TASKS[task]:
        raise UserError(f"expected the settings {', '.join(sorted(TASKS[task])) or 'none'} for task {task}")
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 1 for size in sizes):
        raise UserError("expected sizes: a list of whole numbers of at least 1")
    count = len(sizes)
    fits = {"measure": count >= 1, "optimise": count == 1, "values": count == 2, "time": count >= 2 and count % 2 == 0}[task]
    if not fits or count > MAX_FILES:
        raise UserError(f"expected as many files as task {task} takes, and at most {MAX_FILES}, got {count}")
    for name, value in settings.items():
        _check_setting(name, value)
    return Order(task, settings, tuple(sizes))


def _check_setting(name: str, value: Any) -> None:
    if name == "names":
        if not (isinstance(value, list) and len(value) <= 1024 and all(isinstance(one, str) and len(one) <= 1024 for one in value)):
            raise UserError("names: expected a list of at most 1024 names")
    elif name in _WHOLE:
        low, high = _WHOLE[name]
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{name}: expected a whole number from {low} to {high}, got {str(value)[:50]!r}")
    elif not (name == "pace" and value is None):
        least, most = _REAL[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least < value <= most:
            raise UserError(f"{name}: expected a number above {least:g} and at most {most:g}, got {str(value)[:50]!r}")


def order(task: str, settings: Mapping[str, Any], sizes: Sequence[int]) -> Order:
    """An order that the other side will take. Raises UserError as `check_order`."""
    return check_order({"task": task, "settings": dict(settings), "sizes": list(sizes)})
