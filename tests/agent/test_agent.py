from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sartor.agent.server import CONNECTIONS, Agent, Settings
from sartor.agent.slots import Slots
from sartor.errors import UserError
from sartor.hardware import wire
from sartor.hardware.graph import Op
from sartor.hardware.local import LocalDevice
from sartor.hardware.remote import AgentClient, RemoteDevice

from .running import TOKEN, Running, agent, endless, hungry, model, spec_of, start, token_file

MEASURE = {"threads": 1, "batch": 1, "seconds": 0.02, "seed": 0, "patience": 1}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with agent(tmp_path_factory.mktemp("board"), "--seconds", "2", "--memory-mb", "300", "--max-mb", "2") as running:
        yield running


def waited(condition: object, seconds: float = 20.0) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]  # a callable
            return True
        threading.Event().wait(0.05)
    return False


def ask(running: Running, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        connection.request(method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


def test_the_agent_needs_neither_torch_nor_onnx_nor_pydantic(tmp_path: Path) -> None:
    """A board has numpy and ONNX Runtime. Both the server and the process that measures are run with the rest forbidden."""
    code = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "pydantic", "typer", "rich", "scipy", "sklearn", "matplotlib", "plotly", "moocore"}:
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden())
import sartor.agent.server
from sartor.agent.child import carry_out
from sartor.hardware.wire import order
from pathlib import Path
size = Path(sys.argv[1], "part0.onnx").stat().st_size
settings = {"threads": 1, "batch": 1, "seconds": 0.01, "seed": 0, "patience": 1}
print(len(carry_out(order("measure", settings, [size]), Path(sys.argv[1]), lambda event: None)["measurements"]))
"""
    (tmp_path / "part0.onnx").write_bytes(model())
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "1", done.stderr


def test_identity_is_that_of_the_machine(board: Running) -> None:
    device = RemoteDevice(spec_of(board))
    assert device.identity("fp32") == LocalDevice().identity("fp32")
    assert device.describe()["name"] == "board" and device.describe()["measured"] is True
    with pytest.raises(UserError, match="threads"):
        device.identity("int8", 1000)


def test_measures_as_the_host_does(board: Running, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.onnx")
        files[-1].write_bytes(model(4))
    said: list[tuple[str, int, int]] = []
    found = RemoteDevice(spec_of(board)).measure_many(files, seconds=0.02, progress=lambda *what: said.append(what))
    assert len(found) == 2 and all(one.runs >= 100 and 0 < one.p10 <= one.p50 <= one.p90 for one in found)
    assert said[-1][1] == said[-1][2]
    assert not board.uploads()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_latency_table_is_built_through_it(board: Running, tmp_path: Path, precision: str) -> None:
    device = RemoteDevice(spec_of(board))
    table = device.table(tmp_path / "t.sqlite", device.identity(precision))
    ops = [Op("conv", (16, 8, 8), (32, 8, 8), act="relu"), Op("add", (16, 8, 8), (16, 8, 8))]
    assert table.ensure(ops, input_shapes=[(3, 8, 8)]) == 3
    assert table.entries[ops[0].signature].us > 0 and table.entries["input:3x8x8"].us > 0
    assert table.entries[ops[1].signature].kind == ("fused" if precision == "fp32" else "measured")
    assert table.ensure(ops) == 0


def test_the_optimised_model_and_its_values_are_the_runtimes_own(board: Running) -> None:
    device, here = RemoteDevice(spec_of(board)), LocalDevice()
    assert device.optimise(model()) == here.optimise(model())
    feeds = {"x": np.array([[1.0, -2.0, 3.0, 4.0]], np.float32)}
    assert np.array_equal(device.values(model(), ["y"], feeds)["y"], -feeds["x"])


def test_a_model_that_loops_is_stopped(board: Running) -> None:
    client = AgentClient("board", spec_of(board).agent)  # type: ignore[arg-type]  # it has one
    with pytest.raises(UserError, match="took longer"):
        list(client.run("measure", MEASURE, [endless()]))
    assert not board.children() and not board.uploads()


def test_a_model_that_eats_memory_is_refused(board: Running) -> None:
    client = AgentClient("board", spec_of(board).agent)  # type: ignore[arg-type]  # it has one
    with pytest.raises(UserError, match=r"\((memory|crash)\)"):
        list(client.run("measure", MEASURE, [hungry()]))
    assert not board.children() and not board.uploads()


def test_one_measurement_at_a_time(board: Running) -> None:
    address = spec_of(board).agent
    assert address is not None
    events = AgentClient("board", address).run("measure", MEASURE, [endless()])
    assert next(events)["event"] == "begin"
    status, answer = ask(board, "POST", wire.RUN_PATH, b"x", Content_Type=wire.CONTENT_TYPE)
    assert status == 409 and "measuring" in str(answer["error"])
    assert ask(board, "GET", wire.IDENTITY_PATH)[1]["busy"] is True
    waits: list[float] = []
    device = RemoteDevice(spec_of(board, patience_s=60), sleep=lambda seconds: (waits.append(seconds), time.sleep(seconds))[0])
    assert device.optimise(model())  # waits until the endless one was stopped
    assert waits
    events.close()  # type: ignore[attr-defined]  # a generator


def test_who_hangs_up_stops_the_measurement(tmp_path: Path) -> None:
    with agent(tmp_path, "--seconds", "600") as running:
        body = wire.order("measure", MEASURE, [len(endless())]).to_bytes() + endless()
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        connection.request("POST", wire.RUN_PATH, body, {"Content-Type": wire.CONTENT_TYPE})
        answer = connection.getresponse()
        assert json.loads(answer.readline())["event"] == "begin" and waited(running.children)
        answer.close()
        connection.close()
        assert waited(lambda: not running.children() and not running.uploads())


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/v1/identity/../../../etc/passwd", {}, 404),
        ("GET", "/v1/identity/", {}, 404),
        ("GET", "/v1/run", {}, 404),
        ("POST", "/v1/run/", {"Content_Type": wire.CONTENT_TYPE}, 404),
        ("POST", "/v1/identity", {}, 404),
        ("POST", "//v1/run", {"Content_Type": wire.CONTENT_TYPE}, 404),
        ("PUT", "/v1/run", {}, 501),
        ("DELETE", "/v1/run", {}, 501),
        ("GET", "/v1/identity?precision=int4", {}, 400),
        ("GET", "/v1/identity?threads=-1", {}, 400),
        ("GET", "/v1/identity?a=1&b=2&c=3&d=4&e=5", {}, 400),
        ("POST", "/v1/run", {}, 415),
        ("POST", "/v1/run", {"Content_Type": wire.CONTENT_TYPE}, 400),
        ("POST", "/v1/run", {"Content_Type": "application/zip"}, 415),
        ("POST", "/v1/run", {"Content_Type": wire.CONTENT_TYPE, "Content_Length": "-5"}, 400),
        ("POST", "/v1/run", {"Content_Type": wire.CONTENT_TYPE, "Content_Length": "99999999999"}, 413),
        ("POST", "/v1/run", {"Content_Type": wire.CONTENT_TYPE, "Transfer_Encoding": "chunked"}, 411),
        ("GET", "/v1/identity", {"Origin": "http://evil.example"}, 403),
        ("GET", "/v1/identity", {"Host": "evil.example"}, 403),
    ],
)
def test_other_requests_are_refused(board: Running, method: str, path: str, headers: dict[str, str], status: int) -> None:
    found, answer = ask(board, method, path, b"junk" if method == "POST" and "Content_Length" not in headers else b"", **headers)
    assert found == status and str(answer["error"])


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    token = token_file(tmp_path / "secret")
    with agent(tmp_path / "work", "--token-file", str(token)) as running:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
            assert ask(running, "GET", wire.IDENTITY_PATH, **given)[0] == 401
            assert ask(running, "POST", wire.RUN_PATH, b"x", Content_Type=wire.CONTENT_TYPE, **given)[0] == 401
        assert ask(running, "GET", wire.IDENTITY_PATH, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert RemoteDevice(spec_of(running, token)).identity().runtime == "onnxruntime"
        with pytest.raises(UserError, match=r"token.*none"):
            RemoteDevice(spec_of(running)).identity()
        with pytest.raises(UserError, match="token"):
            RemoteDevice(spec_of(running, tmp_path / "missing")).identity()
        (tmp_path / "two").write_text(f"{TOKEN}\n{TOKEN}\n")  # a header holds one line
        with pytest.raises(UserError, match="token"):
            RemoteDevice(spec_of(running, tmp_path / "two")).identity()


def test_an_agent_that_others_can_reach_needs_a_token(tmp_path: Path) -> None:
    from sartor.agent import main
    from sartor.agent.server import is_loopback

    with pytest.raises(UserError, match="--token-file"):
        main(["--host", "0.0.0.0", "--port", "0", "--folder", str(tmp_path)])
    assert all(is_loopback(name) for name in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(name) for name in ("0.0.0.0", "192.168.0.2", "::", "pi", "127.0.0.1.evil.example", ""))
    (tmp_path / "short").write_text("abc")
    with pytest.raises(UserError, match="at least 16"):
        main(["--token-file", str(tmp_path / "short")])
    with pytest.raises(UserError, match="key"):
        main(["--key", str(tmp_path / "short"), "--port", "0"])


def test_a_missing_token_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with agent(tmp_path / "work", "--token-file", str(tmp_path / "new")) as running:
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600 and len((tmp_path / "new").read_text().strip()) >= 32
        assert RemoteDevice(spec_of(running, tmp_path / "new")).identity()


def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*command, *names], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl to make a certificate")
    with agent(tmp_path / "work", "--certificate", str(certificate), "--key", str(key)) as running:
        assert running.url.startswith("https://")
        assert RemoteDevice(spec_of(running, certificate=certificate)).optimise(model())
        with pytest.raises(UserError, match="certificate"):
            RemoteDevice(spec_of(running)).identity()
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as plain:  # no handshake: must not stop the others
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            context = ssl.create_default_context(cafile=str(certificate))
            with context.wrap_socket(socket.create_connection(("127.0.0.1", running.port), 10), server_hostname="127.0.0.1") as other:
                other.sendall(b"GET /v1/identity HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert other.recv(15) == b"HTTP/1.1 200 OK"


def test_killed_in_the_middle_the_client_waits_and_goes_on(tmp_path: Path) -> None:
    """kill -9 while it measures; started again on its port, the measurement is asked for once more, and nothing is left behind."""
    first = start(tmp_path, "--seconds", "60")
    (tmp_path / "m.onnx").write_bytes(model())
    said: list[str] = []
    revived: list[Running] = []

    def sleep(seconds: float) -> None:
        if not revived:
            revived.append(start(tmp_path, port=first.port))
        time.sleep(min(seconds, 0.2))

    def on_progress(what: str, done: int, total: int) -> None:
        if done == 3 and not revived:
            first.process.kill()
            first.process.wait(10)

    device = RemoteDevice(spec_of(first, patience_s=60), progress=lambda what, done, total: said.append(what), sleep=sleep)
    device.identity()
    try:
        found = device.measure_many([tmp_path / "m.onnx"], seconds=1.0, progress=on_progress)
        assert found[0].runs >= 100 and revived
        assert any(what.startswith("waiting for board: it") for what in said)
        assert len(list(tmp_path.glob("sartor-agent-*"))) == 1, "the folder of the killed agent is removed"
        assert waited(lambda: not _orphans(tmp_path)), "the process that measured ends with its agent"
    finally:
        for running in (first, *revived):
            running.process.terminate()
            running.process.wait(15)
            assert running.process.stdout is not None
            running.process.stdout.close()
    assert not list(tmp_path.glob("sartor-agent-*"))


def _orphans(folder: Path) -> list[str]:
    """Command lines of processes that measure in the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "sartor.agent.child" in line and str(folder) in line:
            found.append(line)
    return found


def test_timing_goes_on_where_it_was_cut_off(board: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that were timed before the agent went away are not timed again."""
    from sartor.hardware.remote import Unreachable

    device, asked = RemoteDevice(spec_of(board), sleep=lambda seconds: time.sleep(0.05)), []
    real = device.client.run

    def cut(task: str, settings: object, files: list[bytes]) -> Iterator[object]:
        for number, event in enumerate(real(task, settings, files)):  # type: ignore[arg-type]  # as given
            if number == 0:  # taken on, not refused because the one that was cut off is still being noticed
                asked.append(len(files) // 2)
            if len(asked) == 1 and number == 3:  # begin and two times
                raise Unreachable("broke off")
            yield event

    monkeypatch.setattr(device.client, "run", cut)
    feeds = {"x": np.zeros((1, 4), np.float32)}
    assert len(list(device.time([(model(), feeds)] * 5, seconds=0.002))) == 5
    assert asked == [5, 3]


def test_patience_ends_in_one_sentence(tmp_path: Path) -> None:
    running = start(tmp_path)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(10)
    assert running.process.stdout is not None
    running.process.stdout.close()
    device = RemoteDevice(spec_of(running, patience_s=1.5))
    with pytest.raises(UserError, match=r"board: it does not answer at http.*sartor resume"):
        device.identity()


def test_another_device_at_the_address_is_noticed(board: Running) -> None:
    device = RemoteDevice(spec_of(board))
    told = device._told("int8", 1)
    told["identity"] = {**told["identity"], "version": "0.0.1"}
    with pytest.raises(UserError, match="the device has changed"):
        device.optimise(model())


def test_ended_by_a_signal_nothing_stays(tmp_path: Path) -> None:
    with agent(tmp_path, "--seconds", "600") as running:
        client = AgentClient("board", spec_of(running).agent)  # type: ignore[arg-type]  # it has one
        events = client.run("measure", MEASURE, [endless()])
        next(events)
        assert waited(running.children)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
        assert not list(tmp_path.iterdir()) and not _orphans(tmp_path)
        events.close()  # type: ignore[attr-defined]  # a generator


def test_silent_connections_without_a_token_do_not_keep_its_owner_out(tmp_path: Path) -> None:
    token = token_file(tmp_path / "secret")
    with agent(tmp_path / "work", "--token-file", str(token)) as running:
        silent = [socket.create_connection(("127.0.0.1", running.port), timeout=20) for _ in range(CONNECTIONS)]
        try:
            assert waited(lambda: len(list(Path(f"/proc/{running.process.pid}/task").iterdir())) > CONNECTIONS)
            assert ask(running, "GET", wire.IDENTITY_PATH, Authorization=f"Bearer {TOKEN}")[0] == 200
            assert silent[0].recv(1) == b""  # the oldest gave way
            silent[1].setblocking(False)
            with pytest.raises(BlockingIOError):
                silent[1].recv(1)
        finally:
            for one in silent:
                one.close()


def test_silent_connections_do_not_end_what_is_being_uploaded(tmp_path: Path) -> None:
    token = token_file(tmp_path / "secret")
    with agent(tmp_path / "work", "--token-file", str(token)) as running:
        before = list((tmp_path / "work").rglob("*"))
        opened = [socket.create_connection(("127.0.0.1", running.port), timeout=20)]
        try:
            known = ("Host: a", f"Authorization: Bearer {TOKEN}", "Content-Type: application/x-sartor", "Content-Length: 99")
            opened[0].sendall("\r\n".join((f"POST {wire.RUN_PATH} HTTP/1.1", *known, "", "")).encode())
            assert waited(lambda: list((tmp_path / "work").rglob("*")) != before)  # a folder for what comes
            for _ in range(CONNECTIONS):
                opened.append(socket.create_connection(("127.0.0.1", running.port), timeout=20))
            assert opened[1].recv(1) == b""  # the oldest silent one gave way, not the upload before it
            opened[0].sendall(b"?" * 99)
            assert opened[0].recv(20).startswith(b"HTTP/1.")
        finally:
            for one in opened:
                one.close()


def test_a_connection_that_is_allowed_gives_way_to_none() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    first, second, third, fourth = (one for one, _ in pairs)
    slots = Slots(2)
    assert slots.take(first) and slots.take(second)
    slots.allow(first)
    assert slots.take(third) and pairs[1][1].recv(1) == b""  # the second was ended for it
    slots.allow(third)
    assert not slots.take(fourth)
    slots.give_back(second)  # its thread ends only now, and gives back nothing that is another's
    assert not slots.take(fourth)
    slots.give_back(first)
    assert slots.take(fourth)
    for pair in pairs:
        for one in pair:
            one.close()


def test_no_place_is_lost_to_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = Agent(Settings(port=0, folder=tmp_path, quiet=True))
    server.slots = Slots(1)
    near, far = socket.socketpair()
    try:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            server.process_request(near, ("127.0.0.1", 1))
        server.slots.allow(near)
        assert server.slots.take(far)
    finally:
        server.server_close()
        near.close()
        far.close()
