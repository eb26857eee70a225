"""The whole job on digits, and kill -9 at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sartor import job
from sartor.errors import UserError
from sartor.request import SearchRequest


@pytest.mark.slow
def test_a_search_delivers_measured_models_that_need_no_framework(request_for: Callable[..., SearchRequest], tmp_path: Path) -> None:
    seen: set[str] = set()
    request = request_for(limits=["latency_ms<=1", "file_bytes<=200KB"], baselines=False)
    result = job.search(request, progress=lambda what, done, total: seen.add(what.partition(":")[0]))
    assert result["status"] == "complete" and 1 <= len(result["models"]) <= 2
    assert {"latency table", "supernet", "explore", "measure"} <= seen
    run = tmp_path / "run"
    for record in result["models"]:
        folder = run / "models" / record["name"]
        assert record["metrics"]["latency_ms"] <= 1
        assert record["metrics"]["file_bytes"] == (folder / "model.onnx").stat().st_size <= 200 * 1024
        assert record["test"]["accuracy"] == record["metrics"]["accuracy"]
        assert json.loads((folder / "card.json").read_text())["name"] == record["name"]
        code = (
            "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession('model.onnx'); "
            "y = s.run(None, {'input': numpy.zeros((3, 1, 8, 8), 'float32')})[0]; assert y.shape == (3, 10); "
            "assert not {'torch', 'sartor'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    assert (run / "report.html").is_file()
    assert json.loads((run / "result.json").read_text()) == result
    before = (run / "history.sqlite").stat().st_mtime_ns
    again = job.resume(run)
    assert [r["metrics"] for r in again["models"]] == [r["metrics"] for r in result["models"]]
    assert (run / "history.sqlite").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds a run"):
        job.search(request)


@pytest.mark.slow
def test_kill_9_at_ten_random_moments_loses_nothing(request_for: Callable[..., SearchRequest], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sartor.cli"]
    options = ["--minutes", "0.5", "--models", "2", "--no-baselines", "--limit-train", "400"]
    search = [*command, "search", "digits", *options, "--out", str(out)]
    rng = random.Random(7)
    request_for()  # the private latency table
    trials: dict[str, str] = {}
    kills = 0
    for _ in range(60):
        started = (out / "config.json").is_file()
        process = subprocess.Popen([*command, "resume", str(out)] if started else search, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, error = process.communicate(timeout=rng.uniform(4, 22) if kills < 10 else None)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            trials = _grown(out, trials)
            continue
        assert process.returncode == 0, error.decode()
        break
    assert kills == 10, "the run was over before it could be killed ten times"
    _grown(out, trials)
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "complete" and result["models"]
    rows = _rows(out)
    assert len({labels for labels, _ in rows.values()}) == len(rows), "an architecture was evaluated twice"


@pytest.mark.slow
def test_ctrl_c_while_models_train_leaves_what_there_is_and_resume_finishes(
    request_for: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    """The interrupt reaches every process of the terminal: one sentence, no traceback, and a folder to go on from."""
    out = tmp_path / "run"
    # whoever runs the tests in the background has left the interrupt ignored
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from sartor import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", listening]
    options = ["--minutes", "0.3", "--models", "2", "--no-baselines", "--limit-train", "400", "--out", str(out)]
    request_for()  # the private latency table
    said: list[str] = []
    with subprocess.Popen(
        [*command, "search", "digits", *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "train s0" in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        said += process.stderr.readlines()
        assert process.wait() == 130, said
    assert said[-1].startswith("sartor: Stopped") and "Traceback" not in "".join(said)
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "partial" and all((out / m["file"]).is_file() for m in result["models"]) and result["models"]
    assert not any(m.get("test") for m in result["models"])
    before = _rows(out)
    done = subprocess.run([*command, "resume", str(out), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "complete" and _rows(out) == before


def _rows(out: Path) -> dict[str, tuple[str, str]]:
    path = out / "history.sqlite"
    if not path.is_file():
        return {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        names = [row[1] for row in database.execute("PRAGMA table_info(trials)")]
        found = [dict(zip(names, row, strict=True)) for row in database.execute("SELECT * FROM trials")]
    return {str(row["number"]): (str(row["labels"]), str(row["metrics"])) for row in found}


def _grown(out: Path, before: dict[str, str]) -> dict[str, str]:
    """Finished trials stay as they were."""
    now = {number: repr(row) for number, row in _rows(out).items()}
    assert all(now.get(number) == row for number, row in before.items())
    return now


def test_a_machine_without_the_data_says_so_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        SearchRequest(data=str(tmp_path / "missing.npz"), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((20, 8, 8), np.uint8), y=np.zeros(20, np.int64))
    with pytest.raises(UserError, match="class"):
        job.search(SearchRequest(data=str(tmp_path / "one.npz"), out=str(tmp_path / "run")))
