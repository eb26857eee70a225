"""Every Python block of the manual runs, one after the other as they stand in a page, with shorter times and smaller data."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.main import get_command

from sartor.cli import app
from sartor.export.onnx import to_onnx
from sartor.hardware import trace
from sartor.hardware.devices import find

ROOT = Path(__file__).parents[1]
SHORTER = {
    '"fashion-mnist", limit=5000': '"digits"',
    "seconds=600": "seconds=1",
    "evaluations=300": "evaluations=10",
    "minutes=6": "minutes=0.05",
    'Setup("openvino"': 'Setup("onnxruntime"',
}
QUICK = ["docs/benchmarks.md", "docs/tutorials/own-method.md", "docs/tutorials/own-network.md", "docs/tutorials/own-data.md"]
LONG = ["README.md", "docs/hardware.md", "docs/weight-sharing.md"]
PROSE = ["docs/architecture.md"]  # signatures, not code to run


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def run(page: str, names: dict[str, object]) -> dict[str, object]:
    found = blocks(page)
    assert found
    for block in found:
        for said, meant in SHORTER.items():
            block = block.replace(said, meant)
        exec(compile(block, page, "exec"), names)  # the page's own code
    return names


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_net", raising=False)
    return tmp_path


def test_no_page_is_left_out() -> None:
    pages = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]
    assert sorted(page for page in pages if blocks(page)) == sorted([*QUICK, *LONG, *PROSE, "README.zh.md"])
    assert blocks("README.zh.md") == blocks("README.md")


@pytest.mark.parametrize("page", QUICK)
def test_the_page_runs(page: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page.endswith("own-network.md"):
        (empty / "my_net.py").write_text(blocks(page)[0])
    names = run(page, {"images": np.zeros((6, 8, 8)), "labels": np.arange(6) % 3})
    if page.endswith("own-method.md"):
        page_of: Any = names
        front, lines = page_of["result"].front, capsys.readouterr().out.splitlines()
        assert front and all(trial.metrics["params"] <= 500_000 for trial in front)
        assert len(lines) == len(front) + 2 and all("edge01" in line for line in lines[-2:])
        assert page_of["params"](page_of["found"].arch) <= 50_000 and page_of["found"].trajectory
    if page.endswith("own-network.md"):
        assert vars(names["net"])["classes"] == 10 and names["space"].size == 18  # type: ignore[attr-defined]
    if page.endswith("own-data.md"):
        assert sorted(np.load(empty / "sensors.npz")) == ["classes", "x", "y"]


def test_the_gallery_counts_what_the_doctor_found() -> None:
    """Searches that derive after every epoch, of the kept runs of four minutes; a finding counts once for each search."""
    kept = ROOT / "benchmarks/results/differentiable-nb201/cifar10-240s-10000-16-8-1t"
    runs = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    told = [{finding.split(" ", 1)[0] for finding in run["doctor"]} for run in runs if run["epochs"]]
    collapse, vanishing = (sum(kind in kinds for kinds in told) for kind in ("skip-collapse", "vanishing"))
    said = f"{len(told)} searches of four minutes: skip collapse in {collapse}, vanishing parameters in {vanishing}, warnings included"
    assert said in (ROOT / "docs/gallery.md").read_text()
    assert set().union(*told) == {"skip-collapse", "vanishing"}  # the sentence leaves none out


def commands() -> list[str]:
    """What the manual says to type: lines of its blocks, and searches in its prose and tables."""
    found: dict[str, None] = {}
    for page in (ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        for block in re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL):
            typed = re.findall(r"^\s*(?:\$ )?(sartor [a-z].*)$", block, flags=re.MULTILINE)
            found |= dict.fromkeys(re.split(r"\s+#", line)[0].strip() for line in typed)
        found |= dict.fromkeys(re.findall(r"`(sartor (?:search|profile|predict|bench|devices) [^`\n]*)`", text))
    return list(found)


def test_every_documented_command_is_one(tmp_path: Path) -> None:
    """Its options exist and take what is given; nothing is run."""
    lines = commands()
    assert len(lines) > 60
    for line in lines:
        group: Any = get_command(app)
        words = shlex.split(line.replace("…", ""))[1:]
        while isinstance(getattr(group, "commands", None), dict) and words and words[0] in group.commands:
            group = group.commands[words.pop(0)]
        assert not getattr(group, "commands", None) or not words, f"{line}: there is no such command"
        try:
            group.make_context(line, words)
        except Exception as error:  # typer has its own click, whose classes are private
            if type(error).__name__ != "MissingParameter" or len(words) > 1:  # prose may name a command alone
                pytest.fail(f"{line}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG)
def test_the_long_page_runs(page: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3)) for width in range(4, 24)]
    to_onnx(nets[0], (3, 16, 16), empty / "model.onnx")
    graphs = [trace(net, (3, 16, 16)) for net in nets]
    given = {"spec": find("raspberry-pi-4"), "graphs": graphs, "graph": graphs[0], "measured_ms": [1.0 + 0.1 * i for i in range(len(nets))]}
    names = run(page, dict(given))
    if page.startswith("README"):
        assert len(capsys.readouterr().out.splitlines()) >= 1 and names["result"]
    if page.endswith("weight-sharing.md"):
        assert names["found"]
