"""`sartor devices check`: one truth with the search that would begin so, and what a runtime says here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sartor.cli import main
from sartor.deploy.check_device import examine
from sartor.hardware.devices import find
from sartor.job.context import Job
from sartor.job.device_space import fit_device
from sartor.request import SearchRequest


def test_it_names_what_a_search_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "check", "stm32f746", "--space", "catalogue", "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    job = Job(SearchRequest(data="digits", device="stm32f746", space="catalogue", out=str(tmp_path / "run")), tmp_path / "run")
    fit_device(job)
    assert found["left_out"] == [list(one) for one in job.state["restriction"]["removed"]] and found["left_out"]
    assert found["notes"][: len(job.state["restriction"]["notes"])] == job.state["restriction"]["notes"]
    assert {one["level"] for one in found["findings"]} == {"unfriendly"}
    grouped = [one for one in found["findings"] if "grouped" in one["reason"]]
    assert {label for one in found["findings"] if one not in grouped for label in one["choices"].values()} >= {"hardswish", True}
    kinds = {label for one in grouped for choice, label in one["choices"].items() if choice.endswith(".kind")}
    assert kinds == {"mbconv_g2"}
    assert main(["devices", "check", "stm32f746", "--space", "catalogue", "--input", "1x8x8"]) == 0
    shown = capsys.readouterr().out
    assert "mbconv_g2" in shown and "unfriendly" in shown and "No runtime was asked" in shown


def test_this_machines_runtime_is_asked_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "check", "host", "--space", "mobile", "--input", "1x28x28", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["choices"], one["level"]) for one in found["findings"]] == [({"resolution": 20}, "unfriendly")]  # resized in floats
    assert found["findings"][0]["source"].startswith("onnxruntime ") and found["left_out"] == [] and found["refused"] is None
    assert any("was asked" in note for note in found["notes"])


def test_a_space_that_a_device_cannot_run_is_told_as_refused() -> None:
    spec = find("stm32f746").model_copy(update={"unsupported": {"linear": "no such kernel"}})
    found = examine(spec, "mobile", (1, 8, 8), 10)
    assert "no such kernel" in found["refused"] and any("is refused" in note for note in found["notes"])
    assert {"choices": {}, "level": "unsupported"}.items() <= found["findings"][0].items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("stm32f746", ["--data", "--input"]),
        ("stm32f746 --data digits --input 1x8x8", ["not both"]),
        ("stm32f746 --input 8x8", ["1x28x28", "'8x8'"]),
        ("stm32f746 --input 1x0x8", ["1x28x28"]),
        ("stm32f746 --input 1x8x8 --classes 1", ["--classes"]),
        ("stm32f746 --input 1x8x8 --precision bf16", ["precision", "'bf16'"]),
        ("stm32f746 --input 1x8x8 --space nowhere", ["nowhere"]),
        ("nowhere --input 1x8x8", ["'nowhere'"]),
        ("host --input 1x8x8 --runtime litert", ["ONNX"]),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "check", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said


def test_of_a_microcontroller_it_says_what_was_looked_for_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "check", "stm32f746", "--input", "3x96x96"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no network of it has what the device's file objects to" in shown and "conv:grouped" in shown
    fit = int(shown.partition("Of 200 networks drawn from the space ")[2].split()[0])
    assert 0 < fit < 200 and "327,680 bytes of SRAM and 1,048,576 of flash" in shown
