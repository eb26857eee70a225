"""A search here for a board over there, in two processes, whose agent is killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .running import agent, start, token_file
from .test_agent import waited


@pytest.mark.slow
def test_a_search_survives_its_agent(tmp_path: Path) -> None:
    token = token_file(tmp_path / "secret")
    environment = {**os.environ, "SARTOR_DEVICES": str(tmp_path / "own"), "SARTOR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "sartor.cli"]
    run, work = tmp_path / "run", tmp_path / "work"
    with agent(work, "--token-file", str(token)) as first:
        given = ["devices", "add", "board", "--url", first.url, "--token-file", str(token)]
        subprocess.run([*command, *given], env=environment, check=True, timeout=60)
        options = ["--minutes", "0.3", "--models", "2", "--no-baselines", "--limit-train", "400", "--out", str(run)]
        search = subprocess.Popen(
            [*command, "search", "digits", "--device", "board", *options],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert waited(lambda: (run / "history.sqlite").is_file() or search.poll() is not None, 600), "the measured stage never began"
            assert search.poll() is None
            assert waited(first.children, 60)
            first.process.kill()
            first.process.wait(10)
            second = start(work, "--token-file", str(token), port=first.port)
            _, said = search.communicate(timeout=600)
        except BaseException:
            search.kill()
            raise
        second.process.terminate()
        second.process.wait(15)
        assert second.process.stdout is not None
        second.process.stdout.close()
    assert search.returncode == 0, said
    assert "waiting for board: it" in said
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "complete" and result["models"]
    assert result["device"]["name"] == "board" and result["device"]["measured"] is True
    assert all(model["latency"]["runs"] >= 100 for model in result["models"])
    assert not list(work.iterdir())
    # The board is gone; a finished run is reported all the same.
    again = subprocess.run(
        [*command, "resume", str(run), "--json"], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(again.stdout)["device"] == result["device"]


@pytest.mark.slow
def test_a_further_device_is_measured_by_its_agent(tmp_path: Path) -> None:
    """This machine and a board in one search: the board's latencies are measured there, tabulated, promised, and told without it later."""
    token = token_file(tmp_path / "secret")
    environment = {**os.environ, "SARTOR_DEVICES": str(tmp_path / "own"), "SARTOR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "sartor.cli"]
    run = tmp_path / "run"
    with agent(tmp_path / "work", "--token-file", str(token)) as board:
        given = ["devices", "add", "board", "--url", board.url, "--token-file", str(token)]
        subprocess.run([*command, *given], env=environment, check=True, timeout=60)
        options = ["--minutes", "0.2", "--models", "2", "--no-baselines", "--limit-train", "400", "--limit", "latency=5ms", "--json"]
        options += ["--platform", "board:limit=5ms", "--objective", "accuracy", "--objective", "worst_latency", "--out", str(run)]
        done = subprocess.run([*command, "search", "digits", *options], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "complete" and result["models"]
    assert [(one["name"], one["measured"]) for one in result["platforms"]] == [("board", True)]
    assert result["table"]["platforms"]["board"]["entries"] > 0
    assert {"metric": "latency_ms@board", "bound": 5.0, "statistic": "p50"} in result["limits"]
    for model in result["models"]:
        there, metrics = model["platforms"]["board"], model["metrics"]
        assert there["runs"] >= 100 and there["measured"] is True and there["p50"] == metrics["latency_ms@board"] <= 5
        assert metrics["worst_latency"] == max(metrics["latency_ms"], metrics["latency_ms@board"]) / 5 <= 1
        assert model["predicted"]["latency_ms@board"] > 0
    again = subprocess.run(
        [*command, "resume", str(run), "--json"], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(again.stdout)["platforms"] == result["platforms"]
