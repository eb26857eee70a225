from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from sartor.errors import UserError
from sartor.hardware import profile
from sartor.hardware.measure import Setup, measure, measure_many, median_interval, open_session, sweep_threads, synthetic_input
from sartor.hardware.pace import Pacer
from sartor.hardware.profile import layer_latencies

from .nets import export, random_net


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small network, and one that does it four times over."""
    from torch import nn

    folder = tmp_path_factory.mktemp("nets")
    block = nn.Conv2d(16, 16, 3, padding=1)
    paths = []
    for name, count in (("one", 4), ("four", 16)):
        export(nn.Sequential(*[block for _ in range(count)]), (16, 24, 24), str(folder / f"{name}.onnx"))
        onnx.checker.check_model(str(folder / f"{name}.onnx"))
        paths.append(folder / f"{name}.onnx")
    return paths


def test_measurement_is_consistent(files: list[Path]) -> None:
    found = measure(files[0], seconds=0.2)
    assert 0 < found.p10 <= found.p50 <= found.p90 and found.low <= found.p50 <= found.high
    assert found.runs >= 100 and found.cpu_ms > 0
    assert found.to_json().keys() >= {"p10", "p50", "p90", "low", "high", "runs", "cpu_ms", "drift", "noisy", "quiet"}


def test_hundred_runs_even_without_time(files: list[Path]) -> None:
    assert all(one.runs >= 100 for one in measure_many(files, seconds=0.001))


def test_larger_network_is_slower_in_one_comparison(files: list[Path]) -> None:
    small, large = measure_many(files, seconds=0.3)
    assert large.p10 > 2 * small.p10  # four times the work; half of it is a margin no load of the machine has eaten


def test_batch_reaches_the_network(files: list[Path]) -> None:
    session = open_session(files[0])
    assert synthetic_input(session, batch=3)["input"].shape == (3, 16, 24, 24)
    assert measure(files[0], batch=4, seconds=0.1).p10 > 1.5 * measure(files[0], seconds=0.1).p10


def test_sweep_has_one_measurement_a_count(files: list[Path]) -> None:
    assert set(sweep_threads(files[0], [1, 2], seconds=0.05)) == {1, 2}


def test_layers_sum_to_the_latency_of_the_file(files: list[Path]) -> None:
    layers = layer_latencies(files[1], runs=20)
    convolutions = [us for name, us in layers if "Conv" in name or "nchwc" in name.lower()]
    assert len(convolutions) == 16 and all(us > 0 for _, us in layers)


def test_a_network_of_many_nodes_is_profiled_in_fewer_runs(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    nodes = len(onnx.load(str(files[1])).graph.node)
    monkeypatch.setattr(profile, "EVENTS", 30 * nodes)
    ran: list[None] = []
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda self, *given: (ran.append(None), run(self, *given))[1])
    for runs, made in ((200, 30), (25, 25)):
        ran.clear()
        assert len(profile.layers(files[1], Setup(), runs=runs, total_ms=1.0)) >= 16
        assert len(ran) == made
    monkeypatch.setattr(profile, "EVENTS", 1)
    ran.clear()
    profile.layers(files[1], Setup(), total_ms=1.0)
    assert len(ran) == profile.FEWEST_RUNS


def test_bad_files_and_settings_are_refused(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for bad in (tmp_path / "missing.onnx", tmp_path / "text.onnx", tmp_path):
        with pytest.raises(UserError, match="expected an ONNX"):
            measure(bad)
    with pytest.raises(UserError, match="batch 0"):
        measure(files[0], batch=0)
    with pytest.raises(UserError, match="positive time"):
        measure(files[0], seconds=0)


def _model(path: Path, nodes: list[object], shape: list[int] | None, weights: dict[str, np.ndarray], kind: str = "FLOAT") -> Path:
    """An ONNX file with input x (none without a shape) and output y."""
    from onnx import TensorProto, helper, numpy_helper

    entries = [] if shape is None else [helper.make_tensor_value_info("x", getattr(TensorProto, kind), shape)]
    arrays = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "odd", entries, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], arrays)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def test_what_loads_but_does_not_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node
    counted = [node("NonZero", ["x"], ["n"]), node("Reshape", ["n", "s"], ["r"]), node("Cast", ["r"], ["y"], to=TensorProto.FLOAT)]
    failing = _model(tmp_path / "failing.onnx", counted, [1, 3, 8, 8], {"s": np.array([7, 11])})
    with pytest.raises(UserError, match=r"can run on a random input, got .*failing\.onnx"):
        measure(failing, seconds=0.01)
    alone = _model(tmp_path / "alone.onnx", [node("Relu", ["w"], ["y"])], None, {"w": np.ones((1, 3), np.float32)})
    with pytest.raises(UserError, match="from constants alone"):
        measure(alone, seconds=0.01)
    for size in (10**6, 2**40):
        vast = _model(tmp_path / "vast.onnx", [node("Relu", ["x"], ["y"])], [1, 3, size, size], {})
        with pytest.raises(UserError, match="out of memory"):
            measure(vast, seconds=0.01)


@pytest.mark.parametrize("kind", ["FLOAT16", "INT64", "INT32", "BOOL", "UINT8"])
def test_inputs_of_other_types_are_made(kind: str, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    file = _model(tmp_path / "cast.onnx", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], [1, 4], {}, kind)
    assert measure(file, seconds=0.01).runs >= 100


def test_a_file_in_the_runtimes_own_format_is_no_onnx_file(files: list[Path], tmp_path: Path) -> None:
    """An agent lets ONNX files through only, and a file may be made to pass for both."""
    import onnxruntime as ort

    from sartor.hardware.local import LocalDevice

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "net.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "net.ort").read_bytes()
    assert data[4:8] == b"ORTM" and ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    with pytest.raises(UserError, match="expected an ONNX model"):
        open_session(data)
    with pytest.raises(Exception, match=r"protobuf|Protobuf|parse"):
        LocalDevice().optimise(data)


@pytest.mark.parametrize("seed", range(5))
def test_interval_covers_and_narrows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    short, long = rng.normal(10, 1, 200), rng.normal(10, 1, 20_000)
    low, high = median_interval(long)
    assert low <= np.median(long) <= high
    assert high - low < np.subtract(*median_interval(short)[::-1])


def test_interval_of_a_correlated_series_is_wider() -> None:
    rng = np.random.default_rng(0)
    independent = rng.normal(0, 1, 2000)
    slow = np.repeat(rng.normal(0, 1, 40), 50)  # the machine changes its speed every 50 samples
    width = [np.subtract(*median_interval(series + 10)[::-1]) for series in (independent, slow)]
    assert width[1] > 3 * width[0]


def test_only_samples_between_fast_references_are_quiet() -> None:
    pacer = Pacer()
    fast = pacer.fastest_us
    pairs = np.array([[5.0, fast], [50.0, 2 * fast], [5.1, 1.05 * fast], [9.0, 1.3 * fast]])
    assert pacer.quiet(pairs).tolist() == [True, False, True, False]


def test_slow_calls_are_not_repeated_for_the_sake_of_a_count() -> None:
    """A series takes such samples forty times: eight of each would run a network of a second for six minutes more."""
    assert len(Pacer().samples(lambda: time.sleep(0.03), 0.001)) == 2
    assert len(Pacer().samples(lambda: None, 1e-6)) == 8


def test_quiet_time_ignores_disturbed_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A series in which four of five samples are disturbed, as recorded on a shared machine."""
    pacer = Pacer()
    rng = np.random.default_rng(0)
    slow = rng.random(400) < 0.8
    pairs = np.stack([np.where(slow, 17.0, 10.0) * rng.normal(1, 0.01, 400), np.where(slow, 1.7, 1.0) * pacer.fastest_us], 1)
    monkeypatch.setattr(pacer, "samples", lambda call, seconds: pairs)
    found = pacer.quiet_time(lambda: None, 0.01, 24, 3)
    assert found.quiet and found.us == pytest.approx(10, rel=0.01) and found.runs == 400
    scaled = pacer.quiet_time(lambda: None, 0.01, 10**6, 1)  # never enough: all samples, scaled by the pace, and said
    assert not scaled.quiet and scaled.us == pytest.approx(10, rel=0.02)


def test_random_net_runs(tmp_path: Path) -> None:
    module, shape = random_net(0)
    export(module, shape, str(tmp_path / "net.onnx"))
    assert measure(tmp_path / "net.onnx", seconds=0.05).p50 > 0
