"""The rules for int8 files, which `sartor.export` makes: the one place where tests of this package look at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sartor.export.quantize import quantize
from sartor.hardware import trace
from sartor.hardware.fusion import executed, kinds, observed
from sartor.hardware.onnx_graph import onnx_graph, precision_of

from .nets import export
from .test_fusion import NETS, needs_openvino, net


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    found = {}
    for name in NETS:
        module, shape = net(name)
        export(module, shape, str(folder / f"{name}.onnx"))
        images = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
        found[name] = quantize(folder / f"{name}.onnx", images, folder / f"{name}_int8.onnx", method="minmax")
    return found


@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_runs_what_the_rules_say(name: str, files: dict[str, Path]) -> None:
    assert kinds(executed(trace(*net(name)), "onnxruntime", "int8")) == observed(files[name], "onnxruntime")


@pytest.mark.parametrize("name", NETS)
def test_the_file_read_back_runs_the_same(name: str, files: dict[str, Path]) -> None:
    """Its graph has the activations in the pieces that the file holds: they must not be taken apart again."""
    graph = onnx_graph(files[name])
    assert kinds(executed(graph, "onnxruntime", precision_of(graph))) == observed(files[name], "onnxruntime")


@needs_openvino
@pytest.mark.parametrize("name", NETS)
def test_openvino_runs_what_the_rules_say(name: str, files: dict[str, Path]) -> None:
    assert kinds(executed(trace(*net(name)), "openvino", "int8")) == observed(files[name], "openvino", "int8")
