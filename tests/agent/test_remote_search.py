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
