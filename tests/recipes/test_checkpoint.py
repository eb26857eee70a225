from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sartor.errors import UserError
from sartor.recipes.checkpoint import load_checkpoint, load_weights, save_checkpoint


def test_round_trip_in_any_memory_layout(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c.safetensors", {"a": tensor, "alias": tensor}, {"step": 3})
    tensors, state = load_checkpoint(tmp_path / "c.safetensors")
    assert torch.equal(tensors["a"], tensor) and torch.equal(tensors["alias"], tensor) and state["step"] == 3
    assert json.loads((tmp_path / "c.json").read_text())["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.safetensors"]  # no temporary file stays


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_model_never_replaces_a_good_one(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {"step": 1})
    with pytest.raises(UserError, match="NaN or infinity"):
        save_checkpoint(path, {"a": torch.tensor([1.0, bad])}, {"step": 2})
    tensors, state = load_checkpoint(path)
    assert state["step"] == 1 and torch.equal(tensors["a"], torch.ones(2))


def test_damage_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(path)
    save_checkpoint(path, {"a": torch.ones(200)}, {})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(UserError, match="schema None"):
        load_checkpoint(path)


def test_partial_weights_are_the_leading_channels_and_the_centre_of_kernels() -> None:
    small, large = nn.Conv2d(2, 3, 3), nn.Conv2d(4, 6, 5)
    before = large.weight.detach().clone()
    report = load_weights(large, small.state_dict())
    assert set(report.partial) == {"weight", "bias"} and "(3, 2, 3, 3)" in report.partial["weight"] and report.loaded == ()
    assert torch.equal(large.weight[:3, :2, 1:4, 1:4], small.weight) and torch.equal(large.bias[:3], small.bias)
    untouched = torch.ones_like(before, dtype=torch.bool)
    untouched[:3, :2, 1:4, 1:4] = False
    assert torch.equal(large.weight[untouched], before[untouched])
    shrunk = nn.Conv2d(2, 3, 3)
    load_weights(shrunk, large.state_dict())
    assert torch.equal(shrunk.weight, small.weight)


def test_the_report_names_missing_and_unused_and_nothing_fitting_is_an_error(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    report = load_weights(net, {"0.weight": torch.ones(2, 2), "other": torch.ones(1)})
    assert report.loaded == ("0.weight",) and set(report.missing) == {"0.bias", "1.weight", "1.bias"} and report.unused == ("other",)
    with pytest.raises(UserError, match="none of the 1 given weights fits"):
        load_weights(net, {"other": torch.ones(1)})


def test_weights_of_a_diverged_model_are_refused(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    before = net.weight.item()
    save_file({"weight": torch.full((1, 1), float("nan")), "bias": torch.zeros(1)}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"nan.safetensors: 'weight' holds NaN"):
        load_weights(net, tmp_path / "nan.safetensors")
    assert net.weight.item() == before


def test_averaged_weights_of_a_checkpoint_are_preferred_and_plain_files_are_read(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    model = {"model.weight": torch.full((1, 1), 1.0), "model.bias": torch.full((1,), 2.0), "ema.weight": torch.full((1, 1), 3.0)}
    save_checkpoint(tmp_path / "c.safetensors", model, {})
    load_weights(net, tmp_path / "c.safetensors")
    assert net.weight.item() == 3.0 and net.bias.item() == 2.0
    save_file({"weight": torch.full((1, 1), 5.0)}, tmp_path / "plain.safetensors")
    assert load_weights(net, tmp_path / "plain.safetensors").loaded == ("weight",) and net.weight.item() == 5.0
