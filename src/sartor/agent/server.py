"""The agent's HTTP server: standard library, one measurement at a time, nothing left behind.

GET /v1/identity says who the device is, POST /v1/run carries out one order (`sartor.hardware.wire`). Everything else is refused. A
request names no file and no path, its size is known before it is read, and what it uploads lies in a folder of its own until then.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import ipaddress
import json
import os
import shutil
import socket
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sartor import __version__
from sartor.agent.slots import Slots
from sartor.agent.worker import Event, Limits, Stopped, carry_out
from sartor.errors import UserError
from sartor.hardware.device import describe, host
from sartor.hardware.facts import system_facts
from sartor.hardware.wire import CONTENT_TYPE, IDENTITY_PATH, PROTOCOL, RUN_PATH, Order, read_order

HEADER_S = 15.0  # time for a request's line and headers
UPLOAD_BYTES_PER_S = 50_000  # slowest upload that is waited for, after HEADER_S
CONNECTIONS = 32  # at once; a further one takes the place of one that has not asked for anything allowed, or is closed
_CHUNK = 1 << 16
_PREFIX = "sartor-agent-"


@dataclass(frozen=True)
class Settings:
    """How an agent is started. Beyond loopback a token is required; `certificate` and `key` are PEM files and switch TLS on."""

    host: str = "127.0.0.1"
    port: int = 8421
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    limits: Limits = field(default_factory=Limits)
    folder: Path | None = None  # where uploads lie while they are measured (default: the system's temporary folder)
    quiet: bool = False


class Agent(ThreadingHTTPServer):
    """The server, bound on construction. Raises UserError when it cannot be, or when settings leave the device open to anyone."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, settings: Settings) -> None:
        if settings.token is None and not is_loopback(settings.host):
            raise UserError(f"host: expected --token-file for an agent that listens on {settings.host}, which others can reach, got none")
        self.settings = settings
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._tls = _tls(settings)
        self.slots = Slots(CONNECTIONS)
        self.measuring = threading.Lock()
        self.stopping = threading.Event()
        try:
            super().__init__((settings.host, settings.port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"expected to listen on {settings.host} port {settings.port}, got: {error}") from None
        try:
            self.base = _own_folder(settings.folder)
        except OSError as error:
            self.server_close()
            raise UserError(f"folder: expected one to write to, got: {error}") from None

    def server_bind(self) -> None:
        # Not the HTTP server's, which asks the network for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        name = self.settings.host if ":" not in self.settings.host else f"[{self.settings.host}]"
        return f"{'https' if self._tls else 'http'}://{name}:{self.server_address[1]}"

    def serve(self) -> None:
        """Serve until `stop`; the measurement in progress is then ended and every file removed."""
        try:
            self.serve_forever(poll_interval=0.2)
        finally:
            self.stopping.set()
            self.server_close()
            if self.measuring.acquire(timeout=10):
                self.measuring.release()
            shutil.rmtree(self.base, ignore_errors=True)

    def stop(self) -> None:
        """From any thread but the serving one."""
        self.stopping.set()
        self.shutdown()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake happens on first use, in the request's own thread: a silent client must not stop the others.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.slots.take(request):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started that would give it back
            self.slots.give_back(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.give_back(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke, or a fault: one line, and on with the next."""
        if not self.settings.quiet:
            kind, error = sys.exc_info()[:2]
            print(f"{client_address[0]} gave up: {kind.__name__ if kind else ''}: {error}", file=sys.stderr, flush=True)


class Refused(Exception):
    """A request that is not carried out: HTTP status, the sentence, and headers."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class Handler(BaseHTTPRequestHandler):
    """One request, one connection."""

    server: Agent
    protocol_version = "HTTP/1.1"
    server_version = f"sartor/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        self._deadline = _Deadline(self.request, time.monotonic() + HEADER_S)
        self.connection = self.request
        self.connection.settimeout(HEADER_S)
        self.rfile = io.BufferedReader(self._deadline, _CHUNK)
        self.wfile = self.connection.makefile("wb")
        self._answered = False

    def handle(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # timeouts, resets, broken TLS: nobody is there to be told
            self.handle_one_request()
        self.close_connection = True

    def do_GET(self) -> None:
        self._answer(self._identity)

    def do_POST(self) -> None:
        self._answer(self._run)

    def _answer(self, method: Callable[[], None]) -> None:
        self.close_connection = True
        try:
            self._authorise()
            self.server.slots.allow(self.request)
            method()
        except Refused as error:
            self._refuse(error)
        except UserError as error:
            self._refuse(Refused(400, str(error)))
        except ValueError as error:  # what the library makes of strange addresses, queries and numbers
            self._refuse(Refused(400, f"the request cannot be read: {str(error)[:200]}"))

    def _authorise(self) -> None:
        token = self.server.settings.token
        if token is None:
            # Without a token only programs of this machine may ask, and no web page that a browser here shows.
            name = (self.headers.get("Host") or "").rsplit(":", 1)[0].strip("[]")
            if self.headers.get("Origin") is not None or not is_loopback(name):
                raise Refused(403, "expected a request from a program on this machine")
            return
        given = self.headers.get("Authorization") or ""
        if not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {token}".encode()):
            raise Refused(401, "expected the agent's token, got none or another", **{"WWW-Authenticate": "Bearer"})

    @property
    def _target(self) -> str:
        """What was asked for, letter by letter: `path` has `/` where the request had `//`."""
        return self.requestline.split()[1]

    # -- identity ---------------------------------------------------------------------------------------------------

    def _identity(self) -> None:
        parts = urlsplit(self._target)
        if parts.path != IDENTITY_PATH:
            raise Refused(404, f"expected {IDENTITY_PATH} or {RUN_PATH}")
        query = parse_qs(parts.query, max_num_fields=4)
        precision, threads = query.get("precision", ["int8"])[0], query.get("threads", ["1"])[0]
        if not threads.isdecimal() or len(threads) > 4:
            raise UserError(f"threads: expected a whole number, got {threads[:20]!r}")
        limits = self.server.settings.limits
        self._send(200, {
            "protocol": PROTOCOL, "sartor": __version__, "identity": host(precision, int(threads)).to_json(),
            "describe": describe(precision, int(threads)), "facts": system_facts(), "busy": self.server.measuring.locked(),
            "limits": {"upload_bytes": limits.upload_bytes, "memory_bytes": limits.memory_bytes, "seconds": limits.seconds},
        })  # fmt: skip

    # -- orders -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._target != RUN_PATH:
            raise Refused(404, f"expected {IDENTITY_PATH} or {RUN_PATH}")
        length = self._length()
        # Before the body is read: even receiving a file would disturb the measurement in progress.
        if not self.server.measuring.acquire(blocking=False):
            raise Refused(409, "the device is measuring something else", **{"Retry-After": "2"})
        try:
            folder = Path(tempfile.mkdtemp(dir=self.server.base))
            try:
                last = self._carry_out(self._receive(folder, length), folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except TimeoutError:
            raise Refused(408, "the body came too slowly") from None
        except (ConnectionError, ssl.SSLError):
            raise
        except OSError as error:
            raise Refused(507, f"the device has no room: {error.strerror}") from None
        finally:
            self.server.measuring.release()
        if last is not None:  # said only now: who hears it may ask for the next measurement at once
            self._emit(last)

    def _length(self) -> int:
        if self.headers.get("Transfer-Encoding") is not None:
            raise Refused(411, "expected a body of a length given beforehand, got Transfer-Encoding")
        given = self.headers.get_all("Content-Length") or []
        if len(given) != 1:
            raise Refused(411, "expected one Content-Length")
        if not (given[0].isascii() and given[0].isdecimal()) or len(given[0]) > 15:
            raise Refused(400, f"Content-Length: expected a whole number, got {given[0][:30]!r}")
        if self.headers.get("Content-Type") != CONTENT_TYPE:
            raise Refused(415, f"Content-Type: expected {CONTENT_TYPE}")
        most = self.server.settings.limits.upload_bytes
        if int(given[0]) > most:
            raise Refused(413, f"expected at most {most} bytes, got {given[0]}")
        return int(given[0])

    def _receive(self, folder: Path, length: int) -> Order:
        """The order, with its files in `folder` under the names that it gives them."""
        self._deadline.at = time.monotonic() + HEADER_S + length / UPLOAD_BYTES_PER_S
        left = length

        def read(count: int) -> bytes:
            nonlocal left
            data = self.rfile.read(min(count, left))
            left -= len(data)
            return data

        order = read_order(read, length)
        for name, size in zip(order.names, order.sizes, strict=True):
            with (folder / name).open("wb") as file:
                while size > 0:
                    data = read(min(size, _CHUNK))
                    if not data:
                        raise Refused(400, "expected a body of the announced length, got a shorter one")
                    file.write(data)
                    size -= len(data)
        return order

    def _carry_out(self, order: Order, folder: Path) -> Event | None:
        """Begins the answer and streams events; returns the last one, None when the agent is being stopped."""
        self.connection.settimeout(30)
        self._answered = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        identity = host("fp32", 1).to_json()
        self._emit({"event": "begin", **{key: identity[key] for key in ("cpu", "isa", "runtime", "version")}})
        try:
            return carry_out(order, folder, self.server.settings.limits, self._emit, self.server.stopping)
        except Stopped:  # the stream ends without a result, and the client asks again
            return None
        except (TimeoutError, ConnectionError, ssl.SSLError):
            raise
        except OSError as error:
            return {"event": "error", "kind": "device", "message": f"the device cannot carry it out: {error.strerror}"}

    def _emit(self, event: Event) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    # -- answers ----------------------------------------------------------------------------------------------------

    def _refuse(self, refusal: Refused) -> None:
        if self._answered:  # the stream has begun: an error is an event there
            return
        self._send(refusal.status, {"error": str(refusal)}, refusal.headers)
        # A client still sending would lose the answer when the connection closes under it: what it sends is read for a moment.
        self._deadline.at = time.monotonic() + (2.0 if refusal.status in (409, 413) else 0.3)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(_CHUNK):
                pass

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self._answered = True
        self.send_response(status)
        fixed = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library itself refuses (methods, request lines, headers) is answered in the same form."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self._send(code, {"error": message or "the request cannot be read"})

    def log_message(self, format: str, *args: Any) -> None:
        if not self.server.settings.quiet:
            text = (format % args).encode("ascii", "backslashreplace").decode()
            print(f"{self.log_date_time_string()} {self.client_address[0]} {text[:300]}", file=sys.stderr, flush=True)


class _Deadline(io.RawIOBase):
    """A socket to read from until a moment, however slowly the bytes drip."""

    def __init__(self, connection: socket.socket, at: float) -> None:
        self._connection, self.at = connection, at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def is_loopback(name: str) -> bool:
    """Whether an address or name is this machine's own, which no other can reach."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _own_folder(parent: Path | None) -> Path:
    """A new folder of this process; those that killed agents of the same user left behind are removed."""
    for path in Path(parent or tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        number = path.name.removeprefix(_PREFIX).split("-")[0]
        with contextlib.suppress(OSError):
            mine = not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()
            if mine and number.isdecimal() and not _alive(int(number)):
                shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        if settings.key is not None:
            raise UserError("key: expected --certificate beside --key, got none")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"certificate: expected PEM files of a certificate and its key, got an error: {error}") from None
    return context
