"""Hostile requests leave the agent serving, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sartor.hardware.remote import RemoteDevice

from .hostile import ATTACKS, attack
from .running import Running, agent, model, spec_of, token_file
from .test_agent import waited


def storm(running: Running, picks: list[int], token: Path, seed: int) -> None:
    """Sends the attacks, each of which must be answered by a refusal or an error, then measures as if nothing had been."""
    rng = np.random.default_rng(seed)
    (token.parent / "good.onnx").write_bytes(model())
    device = RemoteDevice(spec_of(running, token, patience_s=60))
    assert device.measure_many([token.parent / "good.onnx"], seconds=0.02)
    before = handles(running)
    for pick in picks:
        kind = ATTACKS[pick]
        hang_up = not kind.process and bool(rng.integers(8) == 0)
        data = kind.send(rng)
        answer = attack(running.port, data, rng, hang_up=hang_up)
        while kind.process and b" 409 " in answer.split(b"\r\n", 1)[0]:  # one that was hung up on is still being noticed
            answer = attack(running.port, data, rng)
        assert running.process.poll() is None, kind.name
        assert answer or not kind.process, kind.name
        refused = not answer.startswith(b"HTTP/1.1 2")
        event = "" if refused else json.loads(answer.rstrip().rsplit(b"\n", 1)[-1])["event"]
        damaged_but_whole = kind.name == "damaged model" and event == "result"  # the damage may have spared all that counts
        assert refused or event == "error" or damaged_but_whole, (kind.name, answer[-300:])
        assert b"root:" not in answer, kind.name
    assert device.measure_many([token.parent / "good.onnx"], seconds=0.02)[0].runs >= 100
    assert waited(lambda: not running.uploads() and not running.children())
    assert waited(lambda: handles(running) <= before + 2), "no connection or file stays open"


def handles(running: Running) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


@pytest.fixture
def board(tmp_path: Path) -> tuple[Path, list[str]]:
    token = token_file(tmp_path / "secret")
    return token, ["--token-file", str(token), "--seconds", "1", "--memory-mb", "200", "--max-mb", "2"]


def test_fifty_hostile_requests(tmp_path: Path, board: tuple[Path, list[str]]) -> None:
    token, arguments = board
    light = [number for number, kind in enumerate(ATTACKS) if not kind.process]
    rng = np.random.default_rng(0)
    picks = [*range(len(ATTACKS)), *rng.choice(light, 50 - len(ATTACKS))]
    with agent(tmp_path / "work", *arguments) as running:
        storm(running, [int(pick) for pick in rng.permutation(picks)], token, 0)
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_a_thousand_hostile_requests(tmp_path: Path, board: tuple[Path, list[str]], part: int) -> None:
    """In five parts of 200, a fifth of which reach the process that measures."""
    token, arguments = board
    rng = np.random.default_rng(100 + part)
    groups = [[number for number, kind in enumerate(ATTACKS) if kind.process is heavy] for heavy in (True, False)]
    picks = [int(rng.choice(groups[0] if place % 5 == 0 else groups[1])) for place in range(200)]
    with agent(tmp_path / "work", *arguments) as running:
        storm(running, picks, token, part)
    assert not list((tmp_path / "work").iterdir())
