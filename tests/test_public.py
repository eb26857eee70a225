"""Guards the public names: what docs/architecture.md promises exists, under these names and with these parameters."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import sartor

ROOT = Path(__file__).parents[1]

# module -> name -> the parameters that callers may use by position or name, in order ("" where the name is no callable, or takes any)
PUBLIC: dict[str, dict[str, str]] = {
    "sartor.errors": {"UserError": ""},
    "sartor.arch": {"Arch": "", "Space": "choices conditions"},
    "sartor.trial": {"Proposal": "arch fidelity meta", "Trial": "number arch metrics status fidelity seconds error meta"},
    "sartor.goals": {
        "METRICS": "",
        "Metric": "name direction unit description",
        "Limit": "metric bound statistic",
        "Goals": "objectives limits",
        "parse_limit": "text",
    },
    "sartor.pareto": {"ranks": "", "crowding": "", "front": "", "hypervolume": "", "knee": "", "trade_off": ""},
    "sartor.searchers": {"SEARCHERS": ""},
    "sartor.run": {"search": "searcher evaluate goals space budget batch store executor seed on_trial"},
    "sartor.store": {"Store": "path"},
    "sartor.hardware": {
        "Op": "kind in_shape out_shape kernel stride groups act inputs name",
        "OpGraph": "ops input_shape",
        "Factor": "scope ops",
        "trace": "module input_shape",
        "cost": "factors price arch",
        "peak_bytes": "graph bytes_per_value",
    },
    "sartor.hardware.measure": {"measure": "file threads batch seconds seed", "measure_many": "files threads batch seconds seed"},
    "sartor.hardware.table": {"LatencyTable": "path identity"},
    "sartor.export.onnx": {"to_onnx": "module input_shape path"},
    "sartor.export.quantize": {"quantize": "fp32_path calibration out"},
    "sartor.export.source": {"to_source": "module class_name", "save_source": "module folder name"},
    "sartor.data": {"Dataset": "name train validation test classes mean std", "Split": "", "load": "seed validation"},
    "sartor.recipes.train": {"train": "module data"},
    "sartor.recipes.sandwich": {"train_sandwich": "net data"},
    "sartor.recipes.bn": {"calibrate_bn": "module images"},
    "sartor.evaluators.supernet": {"SupernetEvaluator": "net data seed"},
    "sartor.spaces": {"SPACES": "", "build": "name input_shape classes"},
    "sartor.request": {"SearchRequest": ""},
    "sartor.report.terminal": {"Progress": "plain stream", "print_result": "result folder out"},
    "sartor.report.html": {"write_report": "run_dir result trials"},
    "sartor.job": {"search": "request progress", "resume": "run_dir progress", "baseline": "request progress"},
    "sartor.cli": {"main": "arguments"},
}
METHODS: dict[str, str] = {
    "sartor.arch:Space": "choices size fingerprint at index sample mutate crossover neighbours canonical active encode labels from_labels",
    "sartor.arch:Arch": "to_json from_json keys items",
    "sartor.goals:Goals": "values violation feasible",
    "sartor.store:Store": "add trials",
    "sartor.request:SearchRequest": "goals save load",
    "sartor.hardware:OpGraph": "ops input_shape",
    "sartor.hardware:Op": "signature macs params",
    "sartor.hardware.table:LatencyTable": "predict ensure",
}
PACKAGES = sorted({module.name for module in pkgutil.iter_modules(sartor.__path__, "sartor.") if module.ispkg})


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_and_their_parameters(module: str) -> None:
    found = importlib.import_module(module)
    for name, parameters in PUBLIC[module].items():
        assert hasattr(found, name), f"{module}.{name} is gone: it is public (docs/architecture.md)"
        if parameters:
            present = list(inspect.signature(getattr(found, name)).parameters)
            wanted = parameters.split()
            assert [p for p in present if p in wanted] == wanted, f"{module}.{name} takes {present}"


@pytest.mark.parametrize("owner", METHODS)
def test_public_members(owner: str) -> None:
    module, name = owner.split(":")
    members = {*dir(getattr(importlib.import_module(module), name))}
    members |= {*getattr(getattr(importlib.import_module(module), name), "__annotations__", {})}
    source = inspect.getsource(getattr(importlib.import_module(module), name))
    members |= {*re.findall(r"self\.(\w+)\b.*? = ", source)}
    assert not {*METHODS[owner].split()} - members


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_exports_exists(package: str) -> None:
    module = importlib.import_module(package)
    exported = getattr(module, "__all__", [])
    assert [name for name in exported if not hasattr(module, name)] == []
    assert len(exported) == len(set(exported))


def test_every_public_thing_is_documented() -> None:
    bare = []
    for module, names in PUBLIC.items():
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            if callable(thing) and not (thing.__doc__ or "").strip():
                bare.append(f"{module}.{name}")
    assert bare == []


def test_the_version_is_the_same_everywhere() -> None:
    assert re.search(rf'^version = "{re.escape(sartor.__version__)}"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_constraints_pin_every_dependency_and_torch_without_a_local_version() -> None:
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0]
    wanted = {re.split(r"[<>=]", item)[0] for item in re.findall(r'"([a-z0-9-]+[<>=][^"]+)"', project)} - {"python"}
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "constraints" / "ci.txt").read_text(), re.MULTILINE))
    assert {"torch", "numpy", "typer"} <= wanted <= pins.keys()
    assert "+" not in pins["torch"]
