"""Requests that no client of good will makes, drawn at random."""

from __future__ import annotations

import errno
import io
import json
import socket
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sartor.hardware import wire
from sartor.hardware.arrays import pack_arrays

from .running import TOKEN, endless, hungry, model, outside

MEASURE = {"threads": 1, "batch": 1, "seconds": 0.01, "seed": 0, "patience": 1}
TRICKS = (
    "/v1/run/../identity", "/../../../etc/passwd", "//v1/run", "/v1/%2e%2e/etc", "/v1/run%00.onnx", "/v1/run?file=/etc/passwd", "*",
    "/v1\\run",
)  # fmt: skip


def _request(body: bytes, length: object = None, path: str = wire.RUN_PATH, token: str = TOKEN, **headers: str) -> bytes:
    fixed = {
        "Host": "127.0.0.1", "Authorization": f"Bearer {token}", "Content-Type": wire.CONTENT_TYPE,
        "Content-Length": str(len(body) if length is None else length),
    }  # fmt: skip
    lines = [f"{name}: {value}" for name, value in {**fixed, **headers}.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body


def _order(task: str, settings: object, *files: bytes, sizes: list[int] | None = None) -> bytes:
    """An order of whatever is given: nothing is checked here."""
    header = json.dumps({"task": task, "settings": settings, "sizes": sizes or [len(file) for file in files]}).encode()
    return wire.MAGIC + struct.pack(">I", len(header)) + header + b"".join(files)


def _bomb() -> bytes:
    """An archive whose array says that it takes 64 GB, beside one with a path out of any folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("names.npy", "w") as entry:
            np.lib.format.write_array_header_1_0(entry, {"descr": "<f8", "fortran_order": False, "shape": (2**33,)})
            entry.write(bytes(1 << 20))
        archive.writestr("../../../tmp/a0.npy", b"out")
    return buffer.getvalue()


def _inputs() -> bytes:
    return pack_arrays({"x": np.zeros((1, 4), np.float32)})


def _damaged(rng: np.random.Generator) -> bytes:
    data = bytearray(endless())
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data[: int(rng.integers(len(data) // 2, len(data) + 1))])


@dataclass(frozen=True)
class Attack:
    """`send` makes the bytes; `process`: it reaches the process that measures, and costs the time that one takes to start."""

    name: str
    send: Callable[[np.random.Generator], bytes]
    process: bool = False


def _settings(rng: np.random.Generator) -> bytes:
    name = str(rng.choice(sorted(MEASURE)))
    value = [None, -1, 1e300, "1; rm -rf /", [], {"a": 1}, True, 2**70][int(rng.integers(8))]
    return _request(_order("measure", {**MEASURE, name: value}, model()))


# fmt: off
ATTACKS: tuple[Attack, ...] = (
    Attack("wrong token", lambda rng: _request(_order("measure", MEASURE, model()), token="x" * int(rng.integers(0, 60)))),
    Attack("token with strange characters", lambda rng: _request(b"", token="ümlaut" * int(rng.integers(1, 9)))),
    Attack("truncated body", lambda rng: _request(_order("measure", MEASURE, model())[: int(rng.integers(0, 60))], length=4000)),
    Attack("body longer than its header says", lambda rng: _request(_order("measure", MEASURE, model()) + bytes(int(rng.integers(1, 99))))),
    Attack("sizes that lie", lambda rng: _request(_order("measure", MEASURE, model(), sizes=[len(model()) + int(rng.integers(1, 2**40))]))),
    Attack("oversized", lambda rng: _request(bytes(int(rng.integers(0, 10_000))), length=int(rng.integers(2**22, 2**49)))),
    Attack("length that is no number", lambda rng: _request(b"", length=["-1", "1e3", "0x10", "", "٣", "9" * 400][int(rng.integers(6))])),
    Attack("chunked", lambda rng: _request(b"5\r\nhello\r\n0\r\n\r\n", **{"Transfer-Encoding": "chunked"})),
    Attack("path trick", lambda rng: _request(_order("measure", MEASURE, model()), path=str(rng.choice(TRICKS)))),
    Attack("path trick, GET", lambda rng: f"GET {rng.choice(TRICKS)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()),
    Attack("unknown task", lambda rng: _request(_order(str(rng.choice(["exec", "../measure", "Measure", ""])), MEASURE, model()))),
    Attack("strange settings", _settings),
    Attack("no magic", lambda rng: _request(rng.bytes(int(rng.integers(1, 3000))))),
    Attack("deep JSON", lambda rng: _request(wire.MAGIC + struct.pack(">I", 90_000) + b"[" * 90_000)),
    Attack("noise", lambda rng: rng.bytes(int(rng.integers(1, 3000)))),
    Attack("endless header", lambda rng: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * int(rng.integers(90, 3000))),
    Attack("endless line", lambda rng: b"G" * int(rng.integers(60_000, 200_000))),
    Attack("nothing", lambda rng: b""),
    Attack("malformed model", lambda rng: _request(_order("measure", MEASURE, rng.bytes(int(rng.integers(1, 2000))))), True),
    Attack("damaged model", lambda rng: _request(_order("measure", MEASURE, _damaged(rng))), True),
    Attack("zip for a model", lambda rng: _request(_order("optimise", {}, _bomb())), True),
    Attack("zip bomb for inputs", lambda rng: _request(_order("values", {"names": ["y"]}, model(), _bomb())), True),
    Attack("unknown output", lambda rng: _request(_order("values", {"names": ["../y"]}, model(), _inputs())), True),
    Attack("weights outside", lambda rng: _request(_order("measure", MEASURE, outside())), True),
    Attack("weights outside, to optimise", lambda rng: _request(_order("optimise", {}, outside())), True),
    Attack("eats memory", lambda rng: _request(_order("measure", MEASURE, hungry())), True),
    Attack("loops", lambda rng: _request(_order("measure", MEASURE, endless())), True),
    Attack("more threads than cores", lambda rng: _request(_order("measure", {**MEASURE, "threads": 1000}, model())), True),
)
# fmt: on


def attack(port: int, data: bytes, rng: np.random.Generator, *, hang_up: bool = False) -> bytes:
    """Sends the bytes, perhaps in pieces, and returns what the agent answers, up to 1 MB; `hang_up`: does not wait for it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            cut = int(rng.integers(0, len(data) + 1))
            connection.sendall(data[:cut])
            connection.sendall(data[cut:])
            if hang_up:
                return b""
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while len(answer) < 1 << 20 and (part := connection.recv(1 << 16)):
                answer += part
            return answer
        except ConnectionError:
            return b""
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the agent hung up first, which it may: not an error class of its own
                raise
            return b""
