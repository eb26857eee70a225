"""A device at the other end of a `sartor agent`: measured there, asked from here, and waited for while it does not answer."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode, urlsplit

import numpy as np

from sartor.errors import UserError
from sartor.hardware import wire
from sartor.hardware.arrays import pack_arrays, unpack_arrays
from sartor.hardware.device import Identity
from sartor.hardware.measure import Measurement
from sartor.hardware.pace import QuietTime
from sartor.hardware.spec import AgentAddress, DeviceSpec

if TYPE_CHECKING:
    from sartor.hardware._lower import Quantize
    from sartor.hardware.table import LatencyTable
    from sartor.hardware.target import Progress

T = TypeVar("T")
Event = Mapping[str, Any]
SILENCE_S = 10 * wire.HEARTBEAT_S  # an agent that says nothing for so long has gone
LONGEST_PAUSE_S = 30.0
_TOGETHER = 64  # kernels sent in one order


class Unreachable(Exception):
    """Nobody answers, or the answer was cut off: worth another try."""


class Busy(Exception):
    """The agent measures for someone else."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy for {seconds:g} s")
        self.seconds = seconds


class AgentClient:
    """Speaks to one agent. Each call is one connection, and raises Unreachable, Busy, or UserError for what no waiting mends."""

    def __init__(self, name: str, address: AgentAddress) -> None:
        self.name, self.address = name, address

    def identity(self, precision: str = "int8", threads: int = 1) -> dict[str, Any]:
        """What the agent says of its machine: identity, describe, facts, limits, busy."""
        query = urlencode({"precision": precision, "threads": threads})
        with self._answer("GET", f"{wire.IDENTITY_PATH}?{query}", {}, None) as response:
            try:
                found = json.loads(response.read(1 << 20))
            except (ValueError, OSError, http.client.HTTPException):
                raise Unreachable("gave half an answer") from None
        if not isinstance(found, dict) or found.get("protocol") != wire.PROTOCOL:
            theirs = found.get("protocol") if isinstance(found, dict) else None
            raise UserError(
                f"device {self.name}: expected an agent of protocol {wire.PROTOCOL}, got {theirs!r}: install the same sartor there and here"
            )
        return found

    def run(self, task: str, settings: Mapping[str, Any], files: Sequence[bytes | Path]) -> Iterator[Event]:
        """The events of an order but heartbeats, the last one being its result."""
        sizes = [len(file) if isinstance(file, bytes) else file.stat().st_size for file in files]
        start = wire.order(task, settings, sizes).to_bytes()
        headers = {"Content-Type": wire.CONTENT_TYPE, "Content-Length": str(len(start) + sum(sizes))}
        with self._answer("POST", wire.RUN_PATH, headers, _body(start, files)) as response:
            while True:
                try:
                    event = json.loads(response.readline())
                    failed = f"{event['message']} ({event['kind']})" if event["event"] == "error" else ""
                except (ValueError, TypeError, KeyError, OSError, http.client.HTTPException):  # cut off, or no answer of an agent
                    raise Unreachable("broke off in the middle of a measurement") from None
                if failed:
                    raise UserError(f"device {self.name}: {failed}")
                if event["event"] != "alive":
                    yield event
                if event["event"] == "result":
                    return

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: Iterator[bytes] | None) -> http.client.HTTPResponse:
        connection = self._connection()
        response: http.client.HTTPResponse | None = None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent: the answer says why
                connection.request(method, path, body=body, headers={**headers, **self._authorisation(), "Connection": "close"})
            response = connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise UserError(
                f"device {self.name}: expected a certificate to trust at {self.address.url}, got: {error.verify_message}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"does not answer at {self.address.url} ({error or type(error).__name__})") from None
        finally:
            if response is None:
                connection.close()
        if response.status == 200:
            return response
        with response:
            raise self._refusal(response)

    def _refusal(self, response: http.client.HTTPResponse) -> Exception:
        try:
            sentence = str(json.loads(response.read(1 << 16))["error"])
        except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
            sentence = response.reason
        if response.status == 409:
            given = response.headers.get("Retry-After") or ""
            return Busy(float(given) if given.isdecimal() and len(given) < 5 else 2.0)
        if response.status in (408, 502, 503, 504):
            return Unreachable(f"answers {response.status} ({sentence})")
        if response.status == 401:
            sentence += f" (token file here: {self.address.token_file or 'none'})"
        return UserError(f"device {self.name}: {sentence}")

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address.url)
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SILENCE_S)
        try:
            context = ssl.create_default_context(cafile=self.address.certificate)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"device {self.name}: expected a PEM file of certificates at {self.address.certificate}, got: {error}"
            ) from None
        return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=SILENCE_S, context=context)

    def _authorisation(self) -> dict[str, str]:
        if self.address.token_file is None:
            return {}
        try:
            token = Path(self.address.token_file).expanduser().read_text(encoding="utf-8").strip()
            if not token.isascii() or not token.isprintable():  # it travels in one line of a header
                raise ValueError("it holds more than one line of plain characters")
        except (OSError, ValueError) as error:
            raise UserError(
                f"device {self.name}: expected a file with the agent's token at {self.address.token_file}, got: {error}"
            ) from None
        return {"Authorization": f"Bearer {token}"}


class RemoteDevice:
    """A device behind an agent. Measures as the host does; raises UserError when the agent stays away for longer than its patience."""

    measured = True

    def __init__(self, spec: DeviceSpec, *, progress: Progress | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        if spec.agent is None:
            raise UserError(f"device {spec.name}: expected the address of an agent, got none")
        self.spec, self.name, self.address = spec, spec.name, spec.agent
        self.client = AgentClient(spec.name, spec.agent)
        self._progress, self._sleep = progress, sleep
        self._known: dict[tuple[str, int], dict[str, Any]] = {}
        self._pace: float | None = None

    # -- who it is --------------------------------------------------------------------------------------------------

    def identity(self, precision: str = "int8", threads: int = 1) -> Identity:
        return Identity.from_json(self._told(precision, threads)["identity"])

    def describe(self, precision: str = "int8", threads: int = 1) -> dict[str, Any]:
        return {**self._told(precision, threads)["describe"], "name": self.name, "measured": True}

    def _told(self, precision: str, threads: int) -> dict[str, Any]:
        key = (precision, threads)
        if key not in self._known:
            self._known[key] = self._patiently(lambda: self.client.identity(precision, threads))
        return self._known[key]

    # -- measuring --------------------------------------------------------------------------------------------------

    def measure_many(
        self, files: Sequence[Path | str], *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0,
        patience: int = 1, progress: Progress | None = None,
    ) -> list[Measurement]:  # fmt: skip
        settings = {"threads": threads, "batch": batch, "seconds": float(seconds), "seed": seed, "patience": patience}
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"expected an ONNX file, got {file}, which does not exist")

        def attempt() -> list[Measurement]:
            for event in self._run("measure", settings, [Path(file) for file in files]):
                if event["event"] == "progress" and progress is not None:
                    progress("measure", int(event["done"]), int(event["total"]))
            try:
                return [Measurement(**one) for one in event["measurements"]]
            except TypeError as error:
                raise UserError(f"device {self.name}: expected the same sartor there as here, got measurements with {error}") from None

        return self._patiently(attempt) if files else []

    def table(self, path: Path | str, identity: Identity, quantize: Quantize | None = None) -> LatencyTable:
        from sartor.hardware.table import LatencyTable

        return LatencyTable(path, identity, quantize=quantize, bench=self)

    def optimise(self, model: bytes) -> bytes:
        return base64.b64decode(self._result("optimise", {}, [model])["model"])

    def values(self, model: bytes, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return unpack_arrays(base64.b64decode(self._result("values", {"names": list(names)}, [model, pack_arrays(feeds)])["values"]))

    def time(
        self, models: Iterable[tuple[bytes, Mapping[str, np.ndarray]]], *, threads: int = 1, seconds: float = 0.02
    ) -> Iterator[QuietTime]:
        rest = iter(models)
        while batch := [part for model, feeds in islice(rest, _TOGETHER) for part in (model, pack_arrays(feeds))]:
            while batch:  # what was timed before an agent went away is not timed again
                found: list[QuietTime] = []
                self._patiently(lambda batch=batch, found=found: self._time(batch, threads, seconds, found))  # type: ignore[misc]  # bound now
                yield from found
                batch = batch[2 * len(found) :]

    def _time(self, files: Sequence[bytes], threads: int, seconds: float, found: list[QuietTime]) -> None:
        """Times of the models in `files`, into `found`; an agent that breaks off after some of them is no failure."""
        try:
            for event in self._run("time", {"threads": threads, "seconds": float(seconds), "pace": self._pace}, files):
                if event["event"] == "time":
                    found.append(QuietTime(**event["time"]))
            self._pace = float(event["pace"])
        except Unreachable:
            if not found:
                raise

    def _result(self, task: str, settings: Mapping[str, Any], files: Sequence[bytes]) -> Event:
        return self._patiently(lambda: list(self._run(task, settings, files))[-1])

    def _run(self, task: str, settings: Mapping[str, Any], files: Sequence[bytes | Path]) -> Iterator[Event]:
        for event in self.client.run(task, settings, files):
            if event["event"] == "begin":
                self._check_same(event)
            else:
                yield event

    def _check_same(self, said: Event) -> None:
        """An agent that came back on another machine, or with another runtime, must not go on with this one's figures."""
        for known in self._known.values():
            for key in ("cpu", "isa", "runtime", "version"):
                if known["identity"][key] != said[key]:
                    raise UserError(
                        f"device {self.name}: expected {key} {known['identity'][key]!r} as before, got {said[key]!r}: "
                        "the device has changed, start a new run"
                    )

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, tried again while the agent is away or busy, and said so, until patience ends."""
        began, pause, told = time.monotonic(), 0.5, False
        patience = self.address.patience_s
        while True:
            try:
                found = attempt()
            except Busy as error:
                reason, pause = "is busy", max(error.seconds, 0.5)
            except Unreachable as error:
                reason, pause = str(error), min(2 * pause, LONGEST_PAUSE_S)
            else:
                if told and self._progress is not None:
                    self._progress(f"waiting for {self.name}", int(patience), int(patience))
                return found
            waited = time.monotonic() - began
            if waited + pause > patience:
                raise UserError(
                    f"device {self.name}: it {reason}, for {waited:.0f} s by now: "
                    "see to the agent, then try again (a search: `sartor resume`)"
                )
            if self._progress is not None:
                self._progress(f"waiting for {self.name}: it {reason}", int(waited), int(patience))
            told = True
            self._sleep(pause)


def _body(start: bytes, files: Sequence[bytes | Path]) -> Iterator[bytes]:
    yield start
    for file in files:
        if isinstance(file, bytes):
            yield file
        else:
            with file.open("rb") as stream:
                while data := stream.read(1 << 16):
                    yield data
