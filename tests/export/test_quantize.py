"""The int8 file runs on integers, is close to fp32 on every processor, and says what was chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from sartor.errors import UserError
from sartor.export.calibrate import METHODS, Observed
from sartor.export.legalise import legalise, session
from sartor.export.onnx import to_onnx
from sartor.export.quantize import int8_report, quantisation, quantize, saturates, weight_error

SHAPE = (3, 16, 16)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer if i.name.endswith("weight/q")}


def test_every_operator_runs_on_integers(net: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    report = int8_report(quantize(to_onnx(net, SHAPE, tmp_path / "f.onnx"), images, tmp_path / "q.onnx"))
    # The resize of the input is the only float operator in any of the nets.
    assert report["float_ops"] == (["Resize"] if "Resize" in report["ops"] else [])
    assert report["conversions"] == 1  # the input; logits leave the last layer as float
    assert report["int8_ops"] == sum(
        number for kind, number in report["ops"].items() if kind.startswith(("QLinear", "QGemm", "NhwcMaxPool"))
    )
    assert int8_report(tmp_path / "f.onnx")["int8_ops"] == 0
    assert report["ops"]["QLinearConv"] >= 3


def test_stays_close_to_fp32(net: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    fp32 = to_onnx(net, SHAPE, tmp_path / "f.onnx")
    expected = run(fp32, images)
    got = run(quantize(fp32, images, tmp_path / "q.onnx"), images)
    assert np.linalg.norm(got - expected) < 0.06 * np.linalg.norm(expected)
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.998


def test_is_deterministic_and_atomic(nets: dict[str, nn.Module], images: np.ndarray, tmp_path: Path) -> None:
    fp32 = to_onnx(nets["mobile_v3"], SHAPE, tmp_path / "f.onnx")
    first, second = (quantize(fp32, images, tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "f.onnx"]


def test_legal_graph_computes_the_same_in_float(net: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    fp32 = to_onnx(net, SHAPE, tmp_path / "f.onnx")
    legal = session(legalise(onnx.load(str(fp32)))).run(None, {"input": images})[0]
    np.testing.assert_allclose(legal, run(fp32, images), atol=3e-5)


def test_gates_of_squeeze_excite_cost_nothing(nets: dict[str, nn.Module], images: np.ndarray, tmp_path: Path) -> None:
    """Five h-swish are an addition and a product each; the two SE gates vanish into their convolution and leave the product."""
    ops = int8_report(quantize(to_onnx(nets["mobile_v3"], SHAPE, tmp_path / "f.onnx"), images, tmp_path / "q.onnx"))["ops"]
    assert ops["QLinearMul"] == 5 + 2
    assert ops["QLinearAdd"] == 5 + 1  # and the residual
    assert "HardSigmoid" not in ops


class Saturating(nn.Module):
    """Sums of 64 large products of equal sign: exact in 32 bits, about half of it in saturating 16 bits."""

    def __init__(self, depthwise: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3 if depthwise else 1, padding=1 if depthwise else 0, groups=64 if depthwise else 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        nn.init.constant_(self.conv.weight, 1 / (9 if depthwise else 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.pool(self.conv(x)), 1)


def saturating_error(tmp_path: Path, *, depthwise: bool = False, reduce_range: bool | None) -> tuple[float, Path]:
    images = np.random.default_rng(0).uniform(0.9, 1.0, (32, 64, 8, 8)).astype(np.float32)
    fp32 = to_onnx(Saturating(depthwise), (64, 8, 8), tmp_path / "f.onnx")
    path = quantize(fp32, images, tmp_path / "q.onnx", method="minmax", reduce_range=reduce_range)
    return float(np.abs(run(path, images) / run(fp32, images) - 1).max()), path


def test_the_automatic_range_never_saturates(tmp_path: Path) -> None:
    error, path = saturating_error(tmp_path, reduce_range=None)
    assert error < 0.02
    assert quantisation(path)["reduce_range"] == saturates()


def test_full_range_is_wrong_exactly_where_the_probe_says_so(tmp_path: Path) -> None:
    error, path = saturating_error(tmp_path, reduce_range=False)
    assert (error > 0.2) == saturates()
    assert max(np.abs(w).max() for w in weights_of(path).values()) == 127


def test_reduced_range_is_right_everywhere(tmp_path: Path) -> None:
    error, path = saturating_error(tmp_path, reduce_range=True)
    assert error < 0.02
    assert max(np.abs(w).max() for w in weights_of(path).values()) == 64


def test_depthwise_keeps_eight_bits_and_does_not_saturate(tmp_path: Path) -> None:
    error, path = saturating_error(tmp_path, depthwise=True, reduce_range=True)
    assert error < 0.02
    assert max(np.abs(w).max() for w in weights_of(path).values()) == 127


def test_choice_of_the_method_is_the_one_that_agrees_best(nets: dict[str, nn.Module], images: np.ndarray, tmp_path: Path) -> None:
    fp32 = to_onnx(nets["mobile_v3"], SHAPE, tmp_path / "f.onnx")
    noted = quantisation(quantize(fp32, images, tmp_path / "q.onnx"))
    scores = noted["scores"]
    assert set(scores) == set(METHODS)
    assert noted["images"] == len(images)
    best = max(s["agreement"] for s in scores.values())
    assert scores[noted["method"]] == min((s for s in scores.values() if s["agreement"] == best), key=lambda s: s["error"])
    # The score is what the written file does.
    agreement = float((run(tmp_path / "q.onnx", images).argmax(1) == run(fp32, images).argmax(1)).mean())
    assert agreement == scores[noted["method"]]["agreement"]
    forced = quantisation(quantize(fp32, images, tmp_path / "p.onnx", method="percentile"))
    assert forced["method"] == "percentile"
    assert list(forced["scores"]) == ["percentile"]


def test_ranges_of_the_methods() -> None:
    sample = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    sample[0] = 1000
    observed = Observed(float(sample.min()), 1000.0, sample, np.zeros(1))
    assert observed.range("minmax") == (float(sample.min()), 1000.0)
    low, high = observed.range("percentile")
    assert -4.2 < low < -3 < 3 < high < 4.2
    assert observed.range("mse")[1] < 1000
    # Zero is always representable, whatever the values.
    for sign in (1, -1):
        shifted = np.sort(sign * (5 + np.abs(sample)))
        low, high = Observed(float(shifted[0]), float(shifted[-1]), shifted, np.zeros(1)).range("percentile")
        assert (low == 0 < high) if sign > 0 else (low < 0 == high)


@given(st.integers(0, 10_000), st.floats(0.1, 3))
def test_least_squares_range_is_no_worse_than_the_extremes(seed: int, power: float) -> None:
    values = np.random.default_rng(seed).normal(size=2000)
    sample = (np.sign(values) * np.abs(values) ** power).astype(np.float32)
    observed = Observed(float(sample.min()), float(sample.max()), sample, np.zeros(1))

    def error(span: tuple[float, float]) -> float:
        scale = (span[1] - span[0]) / 255
        zero = np.round(-span[0] / scale)
        return float(((scale * (np.clip(np.round(sample / scale) + zero, 0, 255) - zero) - sample) ** 2).mean())

    assert error(observed.range("mse")) <= 1.15 * error(observed.range("minmax"))


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 30))
def test_weight_error_is_the_norm_of_the_rounding(seed: int, channels: int, size: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(channels, size)).astype(np.float32)
    errors = [weight_error(weight, bits=bits) for bits in (8, 7, 5, 3)]
    assert 0 <= errors[0] <= 0.5 / 127 * np.sqrt(size) * 1.001
    assert errors[0] <= errors[3]
    scale = np.abs(weight).max(1, keepdims=True) / 3
    expected = np.linalg.norm(np.round(weight / scale) * scale - weight) / np.linalg.norm(weight)
    assert errors[3] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_weight_error_of_representable_weights_is_zero() -> None:
    assert weight_error(np.array([[127, -3, 0], [0, 0, 0]], np.float32)) == 0
    with pytest.raises(UserError, match="bits"):
        weight_error(np.ones((2, 2), np.float32), bits=9)


def test_the_file_names_the_weight_error_of_every_layer(nets: dict[str, nn.Module], images: np.ndarray, tmp_path: Path) -> None:
    net = nets["relu6"]
    fp32 = to_onnx(net, SHAPE, tmp_path / "f.onnx")
    errors = quantisation(quantize(fp32, images, tmp_path / "q.onnx", method="minmax", reduce_range=False))["weight_error"]
    layers = {n.name: n for n in onnx.load(str(fp32)).graph.node if n.op_type in ("Conv", "Gemm")}
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(fp32)).graph.initializer}
    assert errors.keys() == layers.keys()
    for name, error in errors.items():
        assert error == pytest.approx(weight_error(stored[layers[name].input[1]]), rel=1e-4)


def test_bias_of_a_dead_channel_survives(tmp_path: Path) -> None:
    """A channel of weights near 0 has a tiny scale, and its int32 bias would overflow."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 4))
    with torch.no_grad():
        net[0].weight[1] = 1e-12
        net[0].bias.copy_(torch.tensor([0.1, 2.0, -0.3, 0.2]))
    images = np.random.default_rng(0).normal(size=(32, *SHAPE)).astype(np.float32)
    fp32 = to_onnx(net, SHAPE, tmp_path / "f.onnx")
    expected = run(fp32, images)
    assert (
        np.abs(run(quantize(fp32, images, tmp_path / "q.onnx", method="minmax"), images) - expected).max() < 0.05 * np.abs(expected).max()
    )


def test_bias_correction_removes_the_mean_error_of_rounded_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = np.random.default_rng(0).uniform(3, 4, (64, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        # One large weight in every filter makes the steps coarse for the others.
        net[0].weight[:, 0] *= 20
    fp32 = to_onnx(net, SHAPE, tmp_path / "f.onnx")
    path = quantize(fp32, images, tmp_path / "q.onnx", method="minmax", reduce_range=True)
    step = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer}["/0/Conv_output_0/scale"]
    error = (run(path, images) - run(fp32, images)).mean(0)
    assert np.abs(error).max() < 0.6 * step


@pytest.mark.parametrize(
    ("calibration", "arguments", "message"),
    [
        (np.zeros((4, 3, 16), np.float32), {}, r"shape \(n, 3, 16, 16\)"),
        (np.zeros((0, 3, 16, 16), np.float32), {}, "n >= 1"),
        (np.zeros((4, 1, 16, 16), np.float32), {}, r"got \(4, 1, 16, 16\)"),
        (np.full((4, 3, 16, 16), np.nan, np.float32), {}, "finite"),
        (np.zeros((4, 3, 16, 16), np.float32), {"method": "entropy"}, "method must be auto"),
    ],
)
def test_bad_calibration_is_refused(
    nets: dict[str, nn.Module], tmp_path: Path, calibration: np.ndarray, arguments: dict[str, str], message: str
) -> None:
    fp32 = to_onnx(nets["relu6"], SHAPE, tmp_path / "f.onnx")
    with pytest.raises(UserError, match=message):
        quantize(fp32, calibration, tmp_path / "q.onnx", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "q.onnx").exists()


def test_bad_files_are_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        quantize(tmp_path / "none.onnx", images, tmp_path / "q.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="no ONNX file"):
        quantize(tmp_path / "text.onnx", images, tmp_path / "q.onnx")
    fp32 = to_onnx(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), SHAPE, tmp_path / "f.onnx")
    with pytest.raises(UserError, match="nothing to quantise"):
        quantize(fp32, images, tmp_path / "q.onnx")
    with pytest.raises(UserError, match="not quantised by sartor"):
        quantisation(fp32)
