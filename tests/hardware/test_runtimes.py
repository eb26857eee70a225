from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware.measure import measure, measure_setups, sweep
from sartor.hardware.profile import layers, match
from sartor.hardware.runtimes import RUNTIMES, Setup, installed, load
from sartor.hardware.runtimes.eager import from_module
from sartor.hardware.runtimes.setup import draw, image
from sartor.hardware.runtimes.tflite import from_tensor, to_tensor

from .nets import export, random_net

SHAPE_SEED = 1
ONNX = [name for name, runtime in RUNTIMES.items() if runtime.suffix == ".onnx"]


def present(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.skipif(installed(name) is None, reason=f"{name} is not installed"))


@pytest.fixture(scope="module")
def net() -> tuple[torch.nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    return random_net(SHAPE_SEED)


@pytest.fixture(scope="module")
def file(net: tuple[torch.nn.Module, tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtimes") / "net.onnx"
    export(*net, str(path))
    return path


@pytest.mark.parametrize("name", [present(name) for name in ONNX])
def test_runtimes_compute_the_same_numbers(name: str, net: tuple[torch.nn.Module, tuple[int, int, int]], file: Path) -> None:
    module, shape = net
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    found = load(file, Setup(name, "fp32")).infer(x)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_eager_torch_folds_batch_norms_and_changes_nothing(net: tuple[torch.nn.Module, tuple[int, int, int]]) -> None:
    module, shape = net
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    found = from_module(module, Setup("torch", batch=2, input_shape=shape)).infer(x)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_python_file_is_measured(net: tuple[torch.nn.Module, tuple[int, int, int]], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import torch\n\ndef load():\n    return torch.nn.Conv2d(3, 4, 3).eval()\n")
    found = measure(tmp_path / "model.py", setup=Setup("torch", input_shape=(3, 8, 8)), seconds=0.05)
    assert found.runs >= 100 and found.p50 > 0
    with pytest.raises(UserError, match="input_shape"):
        measure(tmp_path / "model.py", setup=Setup("torch"))
    (tmp_path / "broken.py").write_text("raise RuntimeError('no net here')\n")
    with pytest.raises(UserError, match="no net here"):
        load(tmp_path / "broken.py", Setup("torch", input_shape=(3, 8, 8)))


@pytest.mark.parametrize("name", [present(name) for name in ONNX])
def test_batches_reach_the_runtime(name: str, file: Path) -> None:
    many, one = measure_setups([(file, Setup(name, batch=8)), (file, Setup(name))], seconds=0.1)
    assert many.p10 > 1.5 * one.p10


@pytest.mark.parametrize("name", [present(name) for name in ONNX])
def test_layers_sum_to_the_latency_and_match_the_ops(name: str, net: tuple[torch.nn.Module, tuple[int, int, int]], file: Path) -> None:
    from sartor.hardware.fusion import executed
    from sartor.hardware.onnx_graph import onnx_graph

    found = layers(file, Setup(name), runs=20, total_ms=2.0)
    assert sum(layer.us for layer in found) == pytest.approx(2000)
    ops = executed(onnx_graph(file), name, "fp32").ops
    matched = match(ops, found, name)
    # Every convolution is found, and none of them twice.
    times = [us for op, us in zip(ops, matched, strict=True) if op.kind == "conv"]
    assert None not in times and sum(us for us in matched if us is not None) <= 2000 + 1e-6


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_pinning_holds_while_measuring_and_is_undone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = frozenset(os.sched_getaffinity(0))
    core = max(mine)
    seen: set[frozenset[int]] = set()
    from sartor.hardware import measure as module
    from sartor.hardware.runtimes.setup import Loaded

    def watched(path: Path, setup: Setup, seed: int) -> Loaded:
        return Loaded(lambda: seen.add(frozenset(os.sched_getaffinity(0))), lambda x: x, "1")

    monkeypatch.setattr(module, "load", watched)
    measure_setups([(file, Setup(cores=(core,)))], seconds=0.02)
    assert seen == {frozenset({core})} and frozenset(os.sched_getaffinity(0)) == mine
    with pytest.raises(UserError, match="expected cores"):
        Setup(cores=(10_000,))


def test_a_sweep_is_sorted_and_leaves_out_what_has_no_room(file: Path) -> None:
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    found = sweep(file, threads=[1, 2], cores=[(), (core,)], seconds=0.03)
    assert {(setup.threads, setup.cores) for setup, _ in found} == {(1, ()), (2, ()), (1, (core,))}
    assert [one.p50 for _, one in found] == sorted(one.p50 for _, one in found)
    with pytest.raises(UserError, match="room for the threads"):
        sweep(file, threads=[2], cores=[(core,)])


@pytest.mark.parametrize(
    ("setup", "name", "words"),
    [
        (Setup("nonsense"), "net.onnx", "expected a runtime"),
        (Setup("onnxruntime", "bf16"), "net.onnx", "precision that onnxruntime has"),
        (Setup("litert"), "net.tflite", "expected a .tflite file"),
        (Setup("openvino"), "net.txt", "does not exist"),
    ],
)
def test_wrong_setups_are_refused(setup: Setup, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path / name, setup)


def test_a_missing_runtime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sartor.hardware import runtimes

    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    (tmp_path / "net.tflite").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'sartor\[litert\]'"):
        load(tmp_path / "net.tflite", Setup("litert"))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="precision"):
        Setup(precision="fp8")
    with pytest.raises(UserError, match="threads 0"):
        Setup(threads=0)
    assert str(Setup("openvino", "bf16", 2, 4)) == "openvino, bf16, 2 threads, batch 4"


@pytest.mark.parametrize(("dtype", "ends"), [(np.uint8, (0, 255)), (np.int8, (-128, 127)), (np.int64, (0, 126)), (np.bool_, (0, 1))])
def test_bytes_are_drawn_over_all_that_they_hold_and_what_may_be_an_index_is_small(dtype: type, ends: tuple[int, int]) -> None:
    values = draw(np.random.default_rng(0), (1, 100, 100), dtype)
    assert values.dtype == dtype and (int(values.min()), int(values.max())) == ends
    assert np.array_equal(values, image((1, 100, 100), 0, dtype))


@given(
    st.sampled_from([np.uint8, np.int8, np.int16]), st.floats(1e-3, 1.0), st.floats(0.0, 1.0), st.lists(st.floats(-1e6, 1e6), min_size=1)
)
def test_litert_integers_use_the_whole_range_of_their_own_type(dtype: type, scale: float, place: float, values: list[float]) -> None:
    """What the type can hold comes back to half a step; what it cannot saturates at its own ends, and never wraps round."""
    ends = np.iinfo(dtype)
    zero = round(ends.min + place * (ends.max - ends.min))
    about = {"dtype": dtype, "quantization": (scale, zero)}
    low, high = (ends.min - zero) * scale, (ends.max - zero) * scale
    back = from_tensor(to_tensor(np.array([*values, low, high]), about), about)
    expected = np.clip([*values, low, high], low, high)
    np.testing.assert_allclose(back, expected, atol=scale * 0.51, rtol=1e-5)


def test_litert_tensors_that_are_not_quantised_keep_their_values() -> None:
    whole = {"dtype": np.int32, "quantization": (0.0, 0)}
    assert to_tensor(np.array([3.2, -7.0]), whole).tolist() == [3, -7] and from_tensor(np.array([3, -7], np.int32), whole).tolist() == [
        3,
        -7,
    ]
    real = {"dtype": np.float32, "quantization": (0.0, 0)}
    assert to_tensor(np.array([0.25]), real).dtype == np.float32 and from_tensor(np.array([0.25], np.float32), real).tolist() == [0.25]
