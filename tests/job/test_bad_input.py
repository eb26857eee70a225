"""Mistakes that only the job can find: one sentence, exit code 2, no traceback, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor import cli
from sartor.errors import UserError
from sartor.hardware.cache import table_path
from sartor.hardware.device import host
from sartor.hardware.table import LatencyTable
from sartor.job import Job
from sartor.job.explore import save_weights
from sartor.job.workers import Task, train_all
from sartor.request import SearchRequest

Say = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, table_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run `sartor search ...` and return the one sentence it refuses with."""
    monkeypatch.setenv("SARTOR_CACHE", str(table_folder))

    def run(data: object, *arguments: str) -> str:
        code = cli.main(["search", str(data), "--minutes", "0.2", "--no-baselines", "--out", str(tmp_path / "run"), *arguments])
        said = capsys.readouterr().err.strip()
        assert code == 2, said
        last = said.splitlines()[-1]
        assert "Traceback" not in said and last.startswith("sartor: ")
        assert not (tmp_path / "run" / "error.txt").exists()
        return last

    return run


def _save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


_RNG = np.random.default_rng(0)
_X = _RNG.integers(0, 255, (60, 8, 8), dtype=np.uint8)
_Y = np.arange(60) % 3
_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "one class": ({"x": _X, "y": np.zeros(60, np.int64)}, "class"),
    "empty": ({"x": _X[:0], "y": _Y[:0]}, ""),
    "labels too few": ({"x": _X, "y": _Y[:50]}, "50"),
    "labels not whole": ({"x": _X, "y": _Y + 0.5}, "label"),
    "no labels": ({"x": _X}, "y"),
    "five axes": ({"x": np.zeros((60, 2, 8, 8, 3), np.uint8), "y": _Y}, ""),
    "nan pixels": ({"x": np.full((60, 8, 8), np.nan, np.float32), "y": _Y}, ""),
    "objects": ({"x": np.array([{}] * 60), "y": _Y}, ""),
}


@pytest.mark.parametrize("case", _ARRAYS)
def test_unfit_arrays(case: str, refused: Say, tmp_path: Path) -> None:
    arrays, named = _ARRAYS[case]
    assert named in refused(_save(tmp_path / "data.npz", **arrays))


def test_a_truncated_file(refused: Say, tmp_path: Path) -> None:
    path = _save(tmp_path / "data.npz", x=_X, y=_Y)
    path.write_bytes(path.read_bytes()[:-500])
    assert "data.npz" in refused(path)


def test_an_image_that_is_none(refused: Say, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "images" / name / f"{number}.png").write_bytes(b"no picture")
    assert ".png" in refused(tmp_path / "images")


def test_images_too_small_for_the_space(refused: Say, tmp_path: Path) -> None:
    said = refused(_save(tmp_path / "data.npz", x=_X[:, :1, :1], y=_Y))
    assert "pixels" in said


def test_a_function_of_the_users_that_is_not_there(refused: Say) -> None:
    assert "no_such_module" in refused("no_such_module:data")


def test_a_network_of_the_users_that_is_not_there(refused: Say) -> None:
    assert "no_such_module" in refused("digits", "--space", "no_such_module:Net")


def test_a_latency_table_of_another_device(refused: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    LatencyTable(table_path(host()), replace(host(), cpu="another processor")).close()
    said = refused("digits", "--limit", "latency=5ms")
    assert "another processor" in said


def test_an_unattainable_limit_names_the_attainable_figure(refused: Say, tmp_path: Path) -> None:
    assert "peak_bytes = " in refused("digits", "--limit", "peak=64B")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "infeasible"


def test_start_weights_that_are_none(refused: Say, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"nonsense")
    assert "weights.safetensors" in refused("digits", "--weights", str(tmp_path / "weights.safetensors"))


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path, table_folder: Path) -> None:
    """A file size limit stands in for a full disk: writing fails in the same place, with an errno of the same family."""
    out = tmp_path / "run"
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); from sartor import cli; sys.exit(cli.main(sys.argv[1:]))"
    arguments = ["search", "digits", "--minutes", "0.2", "--no-baselines", "--limit-train", "300", "--out", str(out)]
    environment = {**os.environ, "SARTOR_CACHE": str(table_folder)}
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert f"go on with `sartor resume {out}`" in found.stderr
    assert (out / "config.json").is_file()


def test_a_disk_that_is_full_at_once_leaves_the_run_to_go_on_with(refused: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request was in order: only what is wrong with it takes the folder away."""
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "state.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr("sartor.job.state.os.replace", full)
    assert f"go on with `sartor resume {tmp_path / 'run'}`" in refused("digits")
    assert (tmp_path / "run" / "config.json").is_file()


def test_a_full_disk_under_a_worker_is_said_as_anywhere(
    request_for: Callable[..., SearchRequest], capfd: pytest.CaptureFixture[str]
) -> None:
    """What a training process cannot write is the user's place to write, too."""
    request = request_for()
    folder = request.save().parent
    job = Job(request, folder)
    save_weights(job.net, folder / "checkpoints" / "supernet.safetensors")
    task = Task("s01", "supernet", dict(job.net.space.labels(job.net.smallest)), seconds=0.1)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, most[1]))  # which its process inherits
    try:
        with pytest.raises(UserError, match=r"cannot be used: .*sartor resume") as caught:
            train_all(job, [task])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert "\n" not in str(caught.value) and "Traceback" not in capfd.readouterr().err
    (folder / "checkpoints" / "s01.safetensors").mkdir()  # no file can be written over a folder
    with pytest.raises(UserError, match=r"a training failed inside sartor .*error.txt; `sartor resume .* tries again"):
        train_all(job, [task])
    assert "Traceback" not in capfd.readouterr().err and "IsADirectoryError" in (folder / "error.txt").read_text()


def test_what_is_refused_at_once_leaves_the_folder_for_another_try(refused: Say, tmp_path: Path) -> None:
    refused(_save(tmp_path / "one.npz", x=_X, y=np.zeros(60, np.int64)))
    assert not (tmp_path / "run").exists()


def test_a_network_that_breaks_a_promise_is_refused_before_anything_is_measured(
    refused: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared_norm_net.py").write_text(SHARED_NORM)
    assert "'norm' is a BatchNorm2d with running statistics" in refused("digits", "--space", "shared_norm_net:SharedNorm")


SHARED_NORM = """
from sartor.extract import Net
from sartor.layers import Choice, ElasticConv2d, ElasticLinear
from torch import nn


class SharedNorm(Net):
    def __init__(self, input_shape, classes):
        super().__init__(input_shape, classes)
        self.conv = ElasticConv2d(input_shape[0], 8, Choice("kernel", (1, 3)))
        self.norm, self.head = nn.BatchNorm2d(8), ElasticLinear(8, classes)

    def forward(self, x, arch):
        return self.head(self.norm(self.conv(x, arch)).mean((2, 3)), arch)
"""


def test_a_folder_that_cannot_be_made(refused: Say, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("digits", "--out", str(tmp_path / "file" / "run"))
