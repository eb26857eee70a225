"""The exporters for ExecuTorch and LiteRT, run where their extras are installed, and their refusals where they are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sartor.errors import UserError
from sartor.export.executorch import to_executorch
from sartor.export.litert import to_tflite
from sartor.export.pt2e import ready, require
from sartor.hardware.device import cores
from sartor.hardware.measure import measure, measure_setups
from sartor.hardware.runtimes import Setup, load

SHAPE = (3, 16, 16)
CASES = [
    pytest.param(to_executorch, "executorch", ".pte", marks=pytest.mark.skipif(find_spec("executorch") is None, reason="no executorch")),
    pytest.param(to_tflite, "litert", ".tflite", marks=pytest.mark.skipif(find_spec("litert_torch") is None, reason="no litert")),
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The net's file of a runtime and precision; each is exported once, for that takes seconds."""
    folder, images = tmp_path_factory.mktemp("written"), pictures()

    @cache
    def export(exporter: Callable[..., Path], suffix: str, precision: str) -> Path:
        return exporter(net(), SHAPE, folder / f"{precision}{suffix}", images if precision == "int8" else None)

    return export


def pictures() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, *SHAPE)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "runtime", "suffix"), CASES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_file_computes_what_the_module_computes(
    exporter: Callable[..., Path], runtime: str, suffix: str, precision: str, written: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module, images = net(), pictures()
    path = written(exporter, suffix, precision)
    assert capsys.readouterr().out == "", "standard output is not an exporter's"
    loaded = load(path, Setup(runtime, precision))
    found = np.concatenate([loaded.infer(image[None]) for image in images])
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    if precision == "fp32":
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    else:
        assert 0 < np.abs(found - expected).mean() < 0.1 * np.abs(expected).mean()
    assert measure(path, setup=Setup(runtime, precision), seconds=0.05).p50 > 0


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "runtime", "suffix"), CASES)
def test_thread_counts_take_turns_in_one_process(
    exporter: Callable[..., Path], runtime: str, suffix: str, written: Callable[..., Path]
) -> None:
    """ExecuTorch's programs share a pool, and one that is loaded must not outlive it: this crashed the process once."""
    path, images = written(exporter, suffix, "fp32"), pictures()
    counts = [1, min(2, cores()), 1]
    programs = [load(path, Setup(runtime, threads=count)) for count in counts]
    before = [one.infer(images[:1]) for one in programs]
    found = measure_setups([(path, Setup(runtime, threads=count)) for count in counts], seconds=0.05)
    assert all(one.runs >= 100 for one in found)
    for one, values in zip(programs, before, strict=True):
        assert one.enter is None or one.enter() is None
        one.run()
        np.testing.assert_allclose(one.infer(images[:1]), values, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "runtime", "suffix"), CASES)
def test_damaged_files_are_refused(exporter: object, runtime: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"no model at all" * 100)
    with pytest.raises(UserError, match=r"expected a (program|model) that"):
        load(path, Setup(runtime))


@pytest.mark.parametrize(
    ("exporter", "package", "extra"), [(to_executorch, "executorch", "executorch"), (to_tflite, "litert_torch", "litert")]
)
def test_a_missing_extra_is_named(exporter: type, package: str, extra: str, tmp_path: Path) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"pip install 'sartor\[{extra}\]'"):
        exporter(net(), SHAPE, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_copied_and_the_shape_checked() -> None:
    module = net().train()
    twin, example = ready(module, SHAPE, 2)
    assert example.shape == (2, *SHAPE) and not twin.training and module.training
    with pytest.raises(UserError, match="positive batch"):
        ready(module, (3, 0, 4), 1)
    with pytest.raises(UserError, match="needs nothing"):
        require({"no_such_package": "nothing"}, "x", "it")
    require({"torch": "torch"}, "x", "it")
