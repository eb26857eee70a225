"""The command line: light, one sentence a mistake, and an end that says where things lie."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor import __version__
from sartor.cli import main
from sartor.request import SearchRequest

HEAVY = ("torch", "onnx", "onnxruntime", "sklearn", "scipy", "pandas", "plotly", "matplotlib", "numpy", "pydantic", "lightgbm")
COMMANDS = ("search", "bench", "train", "resume", "report", "devices", "profile", "export", "baseline", "data", "spaces")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def record(name: str, **changes: Any) -> dict[str, Any]:
    metrics = {"accuracy": 0.9, "latency_ms": 0.5, "peak_bytes": 2048, "file_bytes": 4096, "params": 1000, "macs": 20000}
    return {"name": name, "origin": "search", "metrics": metrics, "front": True, **changes}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with two models, `a` with its files and `gone` without."""
    folder = tmp_path / "run"
    SearchRequest(data="digits", out=str(folder)).save()
    (folder / "result.json").write_text(json.dumps({"schema": 1, "status": "complete", "models": [record("a"), record("gone")]}))
    (folder / "models" / "a").mkdir(parents=True)
    for file in ("model.onnx", "model.py"):
        (folder / "models" / "a" / file).write_text(f"content of {file}")
    return folder


@pytest.mark.parametrize("module", ["sartor", "sartor.cli", "sartor.errors", "sartor.report"])
def test_importing_is_light(module: str) -> None:
    done = fresh(f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_help_imports_nothing_heavy_and_names_every_command() -> None:
    done = fresh(
        f"import sys; from sartor.cli import main; code = main(['--help']); print([m for m in {HEAVY!r} if m in sys.modules], code)"
    )
    assert done.stdout.strip().endswith("[] 0"), done.stderr
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_checking_a_request_needs_no_torch() -> None:
    done = fresh("import sys; from sartor.request import SearchRequest; SearchRequest(data='digits'); print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sartor {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


# Arguments, and what the sentence must name: the field or the value that is wrong, and where there is one, the way out.
BAD: list[tuple[str, list[str]]] = [
    ("searhc digits", ["'searhc'", "'search'"]),
    ("search", ["data"]),
    ("search digits --limits latency_ms<=2", ["--limits"]),
    ("search digits --minutes", ["--minutes"]),
    ("search digits --minutes abc", ["--minutes", "number", "'abc'"]),
    ("search digits --minutes 0", ["minutes", "above 0", "0.0"]),
    ("search digits --minutes -1", ["minutes", "above 0", "-1.0"]),
    ("search digits --minutes nan", ["minutes", "nan"]),
    ("search digits --seed 1.5", ["--seed", "whole number", "'1.5'"]),
    ("search digits --seed -1", ["seed", "-1"]),
    ("search digit", ["data", "'digit'", "did you mean 'digits'?"]),
    ("search no/such/folder", ["data", "no/such/folder", "there is no"]),
    ("search digits --space mobil", ["space", "'mobil'", "did you mean 'mobile'?"]),
    ("search digits --strategy asha", ["strategy", "'asha'", "sartor bench"]),
    ("search digits --strategy nsga22", ["strategy", "'nsga22'", "did you mean 'nsga2'?"]),
    ("search digits --device phone", ["device", "host", "'phone'"]),
    ("search digits --precision int4", ["precision", "int8 or fp32", "'int4'"]),
    ("search digits --threads 0", ["threads", "at least 1", "0"]),
    ("search digits --threads 100000", ["threads", "cores", "100000"]),
    ("search digits --limit latensy<=2", ["latensy", "latency_ms"]),
    ("search digits --limit latency", ["'latency'", "METRIC<=NUMBER"]),
    ("search digits --limit latency=", ["'latency='", "number after the sign", "got nothing"]),
    ("search digits --limit latency=-2", ["latency_ms", "above zero", "-2"]),
    ("search digits --limit peak=2ms", ["peak_bytes", "no unit 'ms'", "KB"]),
    ("search digits --limit latency_ms<=two", ["latency_ms<=two", "number"]),
    ("search digits --limit latency_ms>=2", ["latency_ms>=2", "upper"]),
    ("search digits --limit accuracy>=95", ["accuracy", "95", "fraction"]),
    ("search digits --limit latency=2 --limit latency=3", ["limit", "latency_ms", "twice"]),
    ("search digits --objective speed", ["objective", "'speed'", "known metrics"]),
    ("search digits --objective accuracy --objective accuracy", ["accuracy", "twice"]),
    ("search digits --models 0", ["models", "1 to 100", "0"]),
    ("search digits --validation 0.9", ["validation", "up to 0.5", "0.9"]),
    ("search digits --limit-train 0", ["limit_train", "at least 1"]),
    ("search digits --input-size 2", ["input_size", "4 to 4096", "2"]),
    ("search digits --weights model.pt", ["weights", ".safetensors", "'model.pt'"]),
    ("search digits --weights none.safetensors", ["weights", "no file", "none.safetensors"]),
    ("search digits --out {run}", ["out", "already holds a run", "sartor resume"]),
    ("search digits --out {run}/models", ["out", "empty folder"]),
    ("baseline digits --out {run}/config.json", ["out", "is a file"]),
    ("search digits --out {run}/config.json/x", ["out", "config.json' is a file"]),
    ("resume {tmp}/none", ["no run", "none"]),
    ("report {tmp}/none", ["no run", "none"]),
    ("resume {run}/config.json", ["no run", "config.json"]),
    ("export {run} b {tmp}/x", ["MODEL", "'b'", "a, gone"]),
    ("export {run} gone {tmp}/x", ["gone", "expected them in"]),
    ("export {run} a {run}", ["DEST", "in use"]),
    ("profile {tmp}/none.onnx", ["no file", "none.onnx"]),
    ("profile {run}/config.json", ["ONNX", "config.json"]),
    ("devices --threads 100000", ["threads", "100000"]),
    ("devices --precision int4", ["precision", "'int4'"]),
    ("devices --devices-dir {run}/config.json", ["--devices-dir", "is a file", "config.json"]),
    ("data digit", ["digit", "digits"]),
    ("data digits --validation 0", ["validation", "above 0 and up to 0.5", "0.0"]),
    ("spaces --size 0", ["size", "at least 4", "0"]),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[arguments for arguments, _ in BAD])
def test_a_mistake_gives_one_sentence_and_code_2(
    arguments: str, named: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([part.format(run=run, tmp=tmp_path) for part in arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sartor: ") and err.count("\n") == 1 and err.rstrip().endswith((".", "?", ")")), err
    assert "Traceback" not in err and "validation error" not in err
    for word in named:
        assert word in err, err
    assert not (tmp_path / "runs").exists(), "a refused request leaves nothing behind"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", ["config.json", "readable JSON"]),
        ("[]", ["config.json", "object", "list"]),
        ('{"schema": 7}', ["config.json", "schema 1", "7"]),
        ('{"schema": 1, "request": {"data": "digits", "minute": 3}}', ["config.json", "'minute'", "'minutes'"]),
        ('{"schema": 1, "request": {"data": "digits", "minutes": "3"}}', ["config.json", "minutes", "'3'"]),
        ('{"schema": 1, "request": {"data": "digits", "baselines": 1}}', ["config.json", "baselines", "true or false", "1"]),
        ('{"schema": 1, "request": {"minutes": 3}}', ["config.json", "data", "missing"]),
    ],
)
def test_resume_refuses_a_damaged_config(content: str, named: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text(content)
    assert main(["resume", str(run)]) == 2
    err = capsys.readouterr().err
    for word in named:
        assert word in err, err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", ["result.json", "readable JSON"]),
        ('{"schema": 2, "models": []}', ["result.json", "schema 1", "got 2", "version"]),
        ('{"schema": 1}', ["result.json", "list of models", "sartor resume"]),
        ('{"schema": 1, "models": [3]}', ["result.json", "list of models", "sartor resume"]),
    ],
)
@pytest.mark.parametrize("command", ["report {run}", "export {run} a {run}/new"])
def test_a_damaged_or_foreign_result_is_refused(
    command: str, content: str, named: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").write_text(content)
    before = sorted(run.rglob("*"))
    assert main(command.format(run=run).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in named), err
    assert sorted(run.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_the_users_to_mend(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "new"))

    monkeypatch.setattr("sartor.report.folder.shutil.copytree", full)
    assert main(["export", str(run), "a", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "new") in err and os.strerror(errno.ENOSPC) in err and "make room" in err
    assert not (tmp_path / "new").exists() and (run / "models" / "a" / "model.onnx").is_file()


def test_report_of_an_unfinished_run_says_how_to_finish_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "result.json").unlink()
    assert main(["report", str(run)]) == 2
    assert f"sartor resume {run}" in capsys.readouterr().err


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of the searching job: how a run ends is the command line's business, not how it searches."""

    def install(function: Callable[..., Any]) -> None:
        module = types.ModuleType("sartor.job")
        for name in ("search", "resume", "baseline"):
            setattr(module, name, function)
        monkeypatch.setitem(sys.modules, "sartor.job", module)
        monkeypatch.setattr("sartor.job", module, raising=False)

    return install


def test_an_interrupt_says_where_the_results_lie_and_how_to_resume(
    job: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stopped"

    def interrupted(request: SearchRequest, *, progress: Any) -> dict[str, Any]:
        request.save()
        progress("table", 1, 10)
        raise KeyboardInterrupt

    job(interrupted)
    assert main(["search", "digits", "--out", str(folder)]) == 130
    err = capsys.readouterr().err
    assert f"lies in {folder}" in err and f"sartor resume {folder}." in err and "Traceback" not in err
    assert SearchRequest.load(folder).data == "digits"


def test_a_crash_stores_its_traceback_in_the_run_folder(job: Callable[..., None], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def crashing(folder: Path, *, progress: Any) -> dict[str, Any]:
        raise ZeroDivisionError("a defect\nof two lines")

    job(crashing)
    assert main(["resume", str(run)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ZeroDivisionError: a defect of two lines" in err and str(run / "error.txt") in err
    stored = (run / "error.txt").read_text()
    assert "Traceback" in stored and "in crashing" in stored


def test_a_mistake_found_by_the_job_is_still_one_sentence(
    job: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sartor.errors import UserError

    def refusing(request: SearchRequest, *, progress: Any) -> dict[str, Any]:
        raise UserError("the folder has one class only")

    job(refusing)
    assert main(["search", "digits", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "sartor: the folder has one class only.\n"


def test_search_passes_every_option_on_and_prints_json_alone(
    job: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def echo(request: SearchRequest, *, progress: Any) -> dict[str, Any]:
        progress("table", 1, 1)
        return request.model_dump()

    job(echo)
    folder = str(tmp_path / "x")
    options = (
        "--limit latency=2ms --limit peak=256KB --objective accuracy --objective latency --objective params --minutes 3 --space catalogue"
    )
    more = "--strategy random --precision fp32 --models 3 --no-baselines --from-scratch --validation 0.2 --limit-train 900 --input-size 16"
    several = "--platform pixel-3:weight=2 --platform raspberry-pi-4:limit=30ms --composite 1,0.5,2 --merit 2,1,1"
    assert main(["search", "digits", *options.split(), *more.split(), *several.split(), "--seed", "7", "--out", folder, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "data": "digits",
        "space": "catalogue",
        "platforms": ["pixel-3:weight=2", "raspberry-pi-4:limit=30ms"],
        "composite": [1.0, 0.5, 2.0],
        "merit": [2.0, 1.0, 1.0],
        "device": "host",
        "precision": "fp32",
        "threads": 1,
        "limits": ["latency=2ms", "peak=256KB"],
        "objectives": ["accuracy", "latency_ms", "params"],
        "strategy": "random",
        "minutes": 3.0,
        "seed": 7,
        "out": folder,
        "models": 3,
        "baselines": False,
        "weights": None,
        "from_scratch": True,
        "guard": False,
        "check_ranks": 0,
        "validation": 0.2,
        "limit_train": 900,
        "input_size": 16,
    }
    assert "table: done" in err


def test_help_states_the_defaults_of_the_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    main(["search", "--help"])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.strip("│ ").startswith("--")}
    request = SearchRequest(data="digits")
    for option in ("space", "strategy", "device", "precision", "threads", "models", "minutes", "validation", "seed"):
        value = getattr(request, option)
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        assert f"(default: {shown})" in lines[f"--{option}"]
    assert f"(default: {', '.join(request.objectives)})" in lines["--objective"]


def test_export_copies_the_model_whole(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "deep" / "delivered"
    assert main(["export", str(run), "a", str(destination), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["model.onnx", "model.py"]
    assert (destination / "model.py").read_text() == "content of model.py"
    assert [path.name for path in destination.parent.iterdir()] == ["delivered"], "no temporary folder is left"


def test_report_prints_the_models_and_writes_a_missing_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert "90.00 %" in out and "0.500" in out and str(run / "report.html") in out
    assert (run / "report.html").stat().st_size > 1000


def test_devices_and_data_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    host = json.loads(capsys.readouterr().out)["devices"][0]
    assert host["name"] == "host" and host["cores"] >= 1 and len(host["fingerprint"]) == 16
    assert main(["data", "--json"]) == 0
    assert {"digits", "fashion-mnist", "cifar10"} <= {entry["name"] for entry in json.loads(capsys.readouterr().out)["data"]}
    assert main(["data", "digits", "--validation", "0.25", "--json"]) == 0
    digits = json.loads(capsys.readouterr().out)
    assert digits["input_shape"] == [1, 8, 8] and digits["train"] + digits["validation"] + digits["test"] == 1797
    assert digits["validation"] == pytest.approx(0.25 * (digits["train"] + digits["validation"]), abs=10)


def test_spaces_gives_exact_sizes_and_knows_every_space(capsys: pytest.CaptureFixture[str]) -> None:
    from sartor.request import SPACES as NAMED
    from sartor.spaces import NETWORKS, SPACES, build

    assert list(NAMED) == [*SPACES, *NETWORKS], "sartor.request.SPACES repeats the names of the registry, which imports torch"
    assert main(["spaces", "--size", "8", "--channels", "1", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["spaces"]}
    assert found["mobile"]["architectures"] == str(build("mobile", (1, 8, 8), 10).space.size)
    assert found["once-for-all"]["architectures"] == "21758655492572485851"  # Cai et al. 2020, without resolution


def test_profile_measures_a_foreign_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="first", kernel_shape=[3, 3])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 30, 30])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, str(tmp_path / "conv.onnx"))
    assert main(["profile", str(tmp_path / "conv.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    latency = found["latency"]
    assert 0 < latency["p10"] <= latency["p50"] <= latency["p90"] and latency["low"] <= latency["p50"] <= latency["high"]
    assert len(found["layers"]) >= 1 and all(layer["latency_us"] > 0 for layer in found["layers"])
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert main(["profile", str(tmp_path / "bad.onnx")]) == 2
    assert "bad.onnx" in capsys.readouterr().err
