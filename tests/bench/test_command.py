"""`sartor bench` from the command line: the listing, a comparison, its files, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sartor.cli import main
from sartor.searchers import SEARCHERS

SMALL = ["--strategy", "random", "--strategy", "nsga2:population=4", "--seeds", "5", "--budget", "12", "--jobs", "1"]


def test_list_names_everything_with_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in found["strategies"]] == list(SEARCHERS)
    assert next(s for s in found["strategies"] if s["name"] == "nsga2")["settings"]["population"] == 50
    assert all(s["description"] for s in found["strategies"])
    assert [t["name"] for t in found["tasks"]] == ["nb201-cifar10", "nb201-cifar100", "nb201-imagenet16"]
    assert len(found["devices"]) == 27 and all(d["unit"] == "ms" for d in found["devices"])
    assert {t["licence"] for t in found["tables"]} and all(t["source"] and t["citation"] for t in found["tables"])
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    for word in ("nb201-cifar100", "raspi4", "Raspberry Pi 4", "MIT", "HW-NAS-Bench", *SEARCHERS):
        assert word in out


def test_a_comparison_and_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    command = ["bench", *SMALL, "--device", "none", "--device", "eyeriss", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    for word in (
        "nb201-cifar10, realistic, 5 seeds: regret in points",
        "nb201-cifar10 on eyeriss",
        "hypervolume gap",
        "±",
        "Mean rank over 2 tasks",
    ):
        assert word in said.out
    pictures = ["gap_nb201-cifar10_eyeriss_realistic.png", "ranks.png", "regret_nb201-cifar10_realistic.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*pictures, "results.sqlite", "summary.json"])
    for picture in pictures:
        with Image.open(out / picture) as image:
            assert image.size == (960, 576) and len(image.convert("L").getcolors(256) or []) > 20
    summary = json.loads((out / "summary.json").read_text())
    before = {picture: (out / picture).read_bytes() for picture in pictures}
    # Again, for machines: nothing is run, everything is the same.
    assert main([*command, "--json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == summary and summary["errors"] == []
    assert "20/20" in again.err or "done" in again.err
    assert {picture: (out / picture).read_bytes() for picture in pictures} == before


def test_limits_make_accuracy_the_only_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--device", "raspi4", "--limit", "latency=20ms", "--limit", "params<=1M"]
    assert main(["bench", *SMALL, *limits, "--out", str(tmp_path)]) == 0
    assert "on raspi4 with latency_ms<=20, params<=1000000, realistic, 5 seeds: regret in points" in capsys.readouterr().out
    assert (tmp_path / "regret_nb201-cifar10_raspi4_latency_ms--20_params--1000000_realistic.png").is_file()
    (group,) = json.loads((tmp_path / "summary.json").read_text())["groups"]
    assert group["limits"] == ["latency_ms<=20", "params<=1000000"] and "test_accuracy" in group["strategies"]["random"]


def test_oracle_says_how_many_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL, "--oracle", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "evaluations to the optimum" in out and "not reached (0 % of seeds)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--strategy rndom", "did you mean 'random'"),
        ("--task nb201", "unknown task 'nb201'"),
        ("--device iphone", "no device 'iphone'"),
        ("--seeds 0", "seeds: expected a whole number of at least 1, but got 0"),
        ("--seeds many", "'many'"),
        ("--jobs 0", "jobs"),
        ("--task all --device raspi4", "32x32"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    arguments: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments.split(), "--out", str(tmp_path / "bench")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and error.startswith("sartor: ") and "\n" not in error
    assert not (tmp_path / "bench").exists()


def test_a_strategy_that_fails_is_named_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self, space: object, goals: object) -> None: ...

        def ask(self, *arguments: object) -> list[object]:
            raise RuntimeError("no idea")

    monkeypatch.setitem(SEARCHERS, "broken", Broken)  # type: ignore[arg-type]
    assert main(["bench", *SMALL, "--strategy", "broken", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.count("broken on nb201-cifar10, seed") == 5 and "RuntimeError: no idea" in said.err
    assert "nsga2:population=4" in said.out
