"""What a run has finished: a small JSON file, written atomically, from which `resume` goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sartor.errors import Unusable, UserError, unusable


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Only one process at a time carries out the run in `folder`. The system releases it, however the process ends.

    Raises:
        UserError: while another process does.
        Unusable: for a place that cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # no such locks: the user's care alone
        yield
        return
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        file = (folder / "checkpoints" / "running").open("w")
    except OSError as error:
        raise Unusable(unusable(error, folder)) from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"{folder}: another process is carrying out this run; wait until it has ended, or end it first") from None
        except OSError:  # a file system without locks
            pass
        yield


class State:
    """Facts by phase. A phase with facts is done; its seconds add up over interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._opened = time.perf_counter()
        if path.is_file():
            try:
                stored = json.loads(path.read_text())
                self.facts, self.seconds = dict(stored["facts"]), dict(stored["seconds"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                why = f"it lacks {error}" if isinstance(error, KeyError) else error
                raise UserError(f"{path}: expected the state of a run, but it cannot be read ({why}): start a new run.") from None

        self._before = dict(self.seconds)

    def __contains__(self, phase: str) -> bool:
        return phase in self.facts

    def __getitem__(self, phase: str) -> Any:
        return self.facts[phase]

    def put(self, phase: str, facts: Any = True) -> None:
        """Remember that a phase is done, with what later phases need of it (plain JSON)."""
        self.facts[phase] = facts
        self._write()

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Adds the wall time of the block to the phase's seconds, also when it is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
            self._write()

    def account(self) -> float:
        """Seconds of the run so far; what belongs to no phase (loading, reports) is put down as "other"."""
        phases = sum(value - self._before.get(name, 0.0) for name, value in self.seconds.items() if name != "other")
        other = self._before.get("other", 0.0) + max(0.0, time.perf_counter() - self._opened - phases)
        self.seconds["other"] = other
        return sum(self.seconds.values())

    def _write(self) -> None:
        write_json(self.path, {"facts": self.facts, "seconds": self.seconds})


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one.

    Raises:
        Unusable: on a full disk or a folder that cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        raise Unusable(unusable(OSError(error.errno, error.strerror, str(path)), run)) from None
