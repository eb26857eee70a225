"""`sartor train`: a genotype by name or from a model card, trained, exported, tested on the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sartor.cli import main
from sartor.deploy.train_cells import genotype_from
from sartor.errors import UserError
from sartor.spaces.darts import GENOTYPES, SPACE, arch_of, genotype_of

SMALL = ["--channels", "4", "--cells", "3", "--epochs", "1", "--batch", "32", "--limit-train", "96"]


def test_it_trains_exports_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", "digits", "--genotype", "p-darts", *SMALL, "--out", str(out), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert {"model.onnx", "model.py", "model.safetensors", "result.json"} <= {path.name for path in out.iterdir()}
    assert 0.0 <= first["test"]["accuracy"] <= 1.0 and first["epochs"] == 1.0
    before = (out / "model.onnx").read_bytes()
    assert main(command) == 0
    assert (out / "model.onnx").read_bytes() == before  # the finished training is read, not repeated
    assert json.loads(capsys.readouterr().out)["test"] == first["test"]


def test_genotypes_come_by_name_or_from_a_card(tmp_path: Path) -> None:
    assert genotype_from("pc-darts") == GENOTYPES["pc-darts"]
    arch = SPACE.sample(np.random.default_rng(0))
    for number, content in enumerate((SPACE.labels(arch), {"name": "s01", "arch": SPACE.labels(arch)})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        assert genotype_from(str(path)) == genotype_of(arch)
    assert arch_of(genotype_from(str(path))) == arch


@pytest.mark.parametrize(
    ("content", "said"), [("{", "readable JSON"), ("[]", "object of labels"), ('{"resolution": 3}', "g.json: .*resol")]
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        genotype_from(str(path))


def test_mistakes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "digits", "--genotype", "darts-v3", "--out", out]) == 2
    assert "darts-v1" in capsys.readouterr().err
    assert main(["train", "digits", "--epochs", "0", "--out", out]) == 2
    assert "epochs" in capsys.readouterr().err
    assert main(["train", "digits", "--auxiliary", *SMALL, "--out", out]) == 2
    assert "leave it out" in capsys.readouterr().err
