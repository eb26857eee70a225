"""`sartor devices` and `sartor agent` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sartor.cli import main
from sartor.hardware.devices import find
from sartor.hardware.devices.text import to_toml


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SARTOR_DEVICES", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_list_says_what_was_never_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "list"]) == 0
    shown = capsys.readouterr().out
    assert "measured here" in shown and shown.count("never measured") == 11
    assert main(["devices", "list", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["devices"]}
    assert found["host"]["measured"] is True and len(found["host"]["fingerprint"]) == 16
    assert not any(entry["measured"] for name, entry in found.items() if name != "host")


def test_a_bad_file_hides_no_other_device(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_folder.mkdir()
    (own_folder / "mine.toml").write_text(to_toml(find("stm32h743").model_copy(update={"name": "mine"})))
    (own_folder / "broken.toml").write_text("name = [")
    (own_folder / "raspberry-pi-4.toml").write_text('name = "raspberry-pi-4"\n')  # it stands before the shipped one, as when it is used
    (own_folder / "host.toml").write_bytes(b"\xff")
    assert main(["devices", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    listed = [entry["name"] for entry in found["devices"]]
    assert listed[0] == "host" and {"mine", "pixel-3"} <= set(listed) and not {"broken", "raspberry-pi-4"} & set(listed)
    assert sorted(Path(said.partition(".toml")[0].split()[-1]).name for said in found["refused"]) == ["broken", "host", "raspberry-pi-4"]
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert all(f"Not listed: {said}" in shown for said in found["refused"]) and "mine" in shown
    assert main(["devices", "show", "broken"]) == 2
    assert "broken.toml" in capsys.readouterr().err


def test_without_a_subcommand_it_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    bare = json.loads(capsys.readouterr().out)
    assert main(["devices", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == bare


def test_show_gives_every_number_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "show", "stm32f746"]) == 0
    shown = capsys.readouterr().out
    assert "sram_bytes" in shown and "327,680" in shown and "DS10916" in shown and "Never measured" in shown
    assert main(["devices", "show", "stm32f746", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"] is False and found["sources"]["sram_bytes"]


def test_a_device_file_is_added_and_found(tmp_path: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = find("stm32h743").model_copy(update={"name": "mine"})
    (tmp_path / "any.toml").write_text(to_toml(spec))
    assert main(["devices", "add", str(tmp_path / "any.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"added": "mine", "file": str(own_folder / "mine.toml")}
    assert find("mine") == spec
    assert main(["devices", "add", str(tmp_path / "any.toml")]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["devices", "add", str(tmp_path / "any.toml"), "--force"]) == 0


def test_a_folder_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.toml").write_text(to_toml(find("stm32h743").model_copy(update={"name": "mine"})))
    assert main(["devices", "show", "mine", "--devices-dir", str(tmp_path / "there"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mine"
    assert main(["--devices-dir", str(tmp_path / "there"), "devices", "list", "--json"]) == 0
    assert "mine" in {entry["name"] for entry in json.loads(capsys.readouterr().out)["devices"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("devices show raspberry-pi", ["'raspberry-pi'", "did you mean"]),
        ("devices add board", ["--url", "'board'"]),
        ("devices add missing.toml", ["missing.toml"]),
        ("devices add any.toml --token-file t", ["--token-file", "--url"]),
        ("devices add any.toml --certificate c", ["--certificate", "--url"]),
        ("devices add any.toml --like host", ["--like", "--url"]),
        ("devices --json list", ["--json", "sartor devices list"]),
        ("devices --threads 2 show host", ["--threads", "sartor devices show"]),
        ("devices --precision fp32 list", ["--precision"]),
        ("devices add pi --url nowhere", ["url", "'nowhere'"]),
        ("devices add pi --url http://pi.local:99999", ["url", "99999"]),
        ("devices add pi --url http://[::1", ["url", "[::1"]),
        ("devices add pi --url http://127.0.0.1:9", ["pi", "sartor agent"]),
        ("devices add ../pi --url http://127.0.0.1:9", ["small letters", "'../pi'"]),
        ("devices add host --url http://127.0.0.1:9", ["'host' is this machine"]),
        ("devices probe stm32f746", ["stm32f746", "agent"]),
        ("devices --threads 100000", ["threads", "100000"]),
        ("agent --host 0.0.0.0", ["--token-file"]),
        ("agent --port x", ["--port"]),
        ("agent --max-mb 0", ["max-mb"]),
        ("search digits --device nowhere", ["device", "'nowhere'"]),
        ("search digits --device stm32f746 --threads 2", ["threads", "stm32f746"]),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said


def test_the_agents_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent", "--help"]) == 0
    assert "--token-file" in capsys.readouterr().out
