"""Carries out one order in a child process, watches the clock, and says what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sartor.hardware.wire import HEARTBEAT_S, Order

Event = Mapping[str, Any]
START_S = 60.0  # time for the child to start and import, on a slow board
_LINE = 1 << 20  # longest event but for a result, which may hold a model


@dataclass(frozen=True)
class Limits:
    """What one order may take. `seconds` is for each model, on top of the time that measuring takes by its settings."""

    upload_bytes: int = 512 << 20
    memory_bytes: int = 2 << 30
    seconds: float = 120.0

    def wall(self, order: Order) -> float:
        """Longest time for an order in seconds, once its process is ready."""
        return 2 * order.seconds + self.seconds * order.models


class Stopped(Exception):
    """The agent is being ended."""


def carry_out(order: Order, folder: Path, limits: Limits, emit: Callable[[Event], None], stop: threading.Event) -> Event:
    """Runs the order, whose files lie in `folder`, and passes events on; returns the last one, a `result` or an `error`.

    Between events `emit` gets a heartbeat; when it raises, because nobody listens any more, the child is killed at once.
    """
    (folder / "order.json").write_text(json.dumps({"task": order.task, "settings": dict(order.settings), "sizes": list(order.sizes)}))
    wall = limits.wall(order)
    bounds = (limits.memory_bytes, int(wall * (os.cpu_count() or 1)) + 1, 4 * limits.upload_bytes)
    with (folder / "stderr").open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "sartor.agent.child", str(folder), *map(str, bounds)], cwd=folder, env=_environment(folder),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    lines: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child.stdout, lines, 4 * limits.upload_bytes + _LINE), daemon=True)
    reader.start()
    try:
        return _relay(lines, child, wall, emit, stop)
    finally:
        child.kill()
        child.wait()
        reader.join(5)
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _relay(
    lines: queue.Queue[bytes], child: subprocess.Popen[bytes], wall: float, emit: Callable[[Event], None], stop: threading.Event
) -> Event:
    said = time.monotonic()
    deadline = said + START_S
    while True:
        if stop.is_set():
            raise Stopped
        now = time.monotonic()
        if now > deadline:
            return _error("time", "the model took longer than the agent allows (its --seconds)")
        try:
            line = lines.get(timeout=min(0.25, max(0.01, deadline - now)))
        except queue.Empty:
            if now - said >= HEARTBEAT_S:
                emit({"event": "alive"})
                said = now
            continue
        event = _parse(line)
        if event is None:
            return _gone(child)
        if event["event"] in ("result", "error"):
            return event
        if event["event"] == "ready":
            deadline = time.monotonic() + wall
            continue
        emit(event)
        said = time.monotonic()


def _read(stdout: IO[bytes], lines: queue.Queue[bytes], most: int) -> None:
    """Lines of the child until it ends, which is an empty line."""
    with contextlib.suppress(OSError, ValueError):
        while line := stdout.readline(most):
            lines.put(line)
    lines.put(b"")


def _parse(line: bytes) -> Event | None:
    """An event, or None for the end and for what a process gone wrong leaves behind."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _gone(child: subprocess.Popen[bytes]) -> Event:
    """The error for a child that ended without a result."""
    try:
        code = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return _error("crash", "the process that measured the model went wrong")
    if code == -signal.SIGXCPU:
        return _error("time", "the model took more CPU time than the agent allows")
    if code == -signal.SIGKILL:
        return _error("memory", "the system killed the process that measured the model, as it does when memory runs out")
    name = signal.Signals(-code).name if code < 0 and -code in {s.value for s in signal.Signals} else f"exit code {code}"
    return _error("crash", f"the process that measured the model died ({name}), as runtimes do on broken models or without memory")


def _error(kind: str, message: str) -> Event:
    return {"event": "error", "kind": kind, "message": message}


def _environment(folder: Path) -> dict[str, str]:
    """As little as the child needs; its temporary files land in the order's folder."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT") if name in os.environ}
    paths = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    return {**kept, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE"}
