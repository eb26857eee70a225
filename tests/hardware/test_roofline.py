from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware import Op, OpGraph, trace
from sartor.hardware.devices import find
from sartor.hardware.peaks import probe_roofline
from sartor.hardware.probing import PROBED
from sartor.hardware.roofline import REACHED, Parameters, Roofline, Workload

from .nets import random_net

MODEL = Roofline(100e9, 20e9, "fp32", "onnxruntime", lanes=16)


@lru_cache
def graphs() -> tuple[OpGraph, ...]:
    return tuple(trace(*random_net(seed)) for seed in range(24))


def test_an_op_takes_its_longer_side_and_the_overhead() -> None:
    op = Op("conv", (64, 32, 32), (128, 32, 32), kernel=3)
    model = Roofline(100e9, 20e9, parameters=Parameters(dense=0.5, efficiency=0.8, op_us=3))
    found = model.time(op)
    assert found.flops == 2 * 64 * 128 * 9 * 1024
    assert found.compute_us == pytest.approx(found.flops / (100e9 * 0.5) * 1e6)
    assert found.memory_us == pytest.approx(4 * (64 * 1024 + 128 * 1024 + 64 * 128 * 9 + 128) / (20e9 * 0.8) * 1e6)
    assert found.us == pytest.approx(3 + max(found.compute_us, found.memory_us)) and found.bound == "compute"
    slow = replace(model, bandwidth_bytes_per_s=1e8).time(op)
    assert slow.bound == "memory" and slow.us == pytest.approx(3 + slow.memory_us)
    assert replace(model, parameters=Parameters(op_us=1e5)).time(op).bound == "overhead"


def test_what_fits_into_the_last_cache_does_not_wait_for_main_memory() -> None:
    near = replace(MODEL, cache_bytes=400_000, cache_bytes_per_s=80e9)
    small, large = (Op("add", (16, size, size), (16, size, size), inputs=(-1, -1)) for size in (32, 48))
    assert 4 * 3 * 16 * 32**2 <= near.cache_bytes < 4 * 3 * 16 * 48**2
    assert near.time(small).memory_us == pytest.approx(MODEL.time(small).memory_us / 4)
    assert near.time(large) == MODEL.time(large)
    assert Roofline.from_json(near.to_json()) == near


def test_the_last_cache_is_read_off_the_device_file() -> None:
    one, four = (Roofline.of(find("raspberry-pi-4"), "fp32", threads) for threads in (1, 4))
    assert (one.cache_bytes, four.cache_bytes) == (1 << 20, 1 << 20)  # shared
    assert one.cache_bytes_per_s == pytest.approx(16 * 1.5e9) and four.cache_bytes_per_s == pytest.approx(4 * 16 * 1.5e9)
    array = Roofline.of(find("eyeriss"), "int16")
    assert array.cache_bytes == 110_592 and array.cache_bytes_per_s == pytest.approx(14 * 2 * 250e6)
    assert Roofline.of(find("stm32f746"), "int8").cache_bytes == 0  # its main memory is that buffer


@pytest.mark.parametrize("kind", ["maxpool", "avgpool"])
def test_a_pooling_window_costs_what_a_depthwise_one_does(kind: str) -> None:
    pool = Op(kind, (32, 16, 16), (32, 8, 8), kernel=3, stride=2)
    conv = Op("conv", (32, 16, 16), (32, 8, 8), kernel=3, stride=2, groups=32)
    assert MODEL.time(pool).compute_us == pytest.approx(MODEL.time(conv).compute_us) and MODEL.time(pool).flops == 0
    whole = Op("pool", (32, 16, 16), (32, 1, 1))
    assert MODEL.time(whole).compute_us == pytest.approx(MODEL.time(pool).compute_us * 16 * 16 / (8 * 8 * 9))


def test_empty_lanes_cost_as_much_as_full_ones() -> None:
    times = [MODEL.time(Op("conv", (64, 16, 16), (width, 16, 16), kernel=3)).compute_us for width in (17, 24, 32, 33)]
    assert times[0] == pytest.approx(times[1]) == pytest.approx(times[2]) and times[3] == pytest.approx(1.5 * times[2])


def test_pieces_of_a_squeeze_excite_are_priced_apart() -> None:
    """The runtime runs it as four ops: four overheads, not one."""
    op = Op("se", (32, 8, 8), (32, 8, 8), hidden=8)
    parts = MODEL.times(OpGraph((op,), (32, 8, 8)))
    assert [one.op.kind for one in parts] == ["pool", "conv", "conv", "mul"]
    assert MODEL.price(op) == pytest.approx(sum(one.us for one in parts) / 1e3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 23))
def test_prices_add_up_but_for_sums_that_a_convolution_takes_in(number: int) -> None:
    graph = graphs()[number]
    alone = sum(MODEL.price(op) for op in graph) + MODEL.session_ms(graph.input_shape)
    together = MODEL.predict(graph)
    if any(op.kind == "add" for op in graph):
        assert together <= alone + 1e-12
    else:
        assert together == pytest.approx(alone)


def test_a_workload_takes_as_long_as_its_network() -> None:
    for graph in graphs()[:6]:
        assert Workload.of(MODEL, graph).us(MODEL.parameters.vector()) == pytest.approx(1e3 * MODEL.predict(graph))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 23), st.floats(1.1, 4), st.floats(1.1, 4))
def test_a_faster_device_is_never_slower(number: int, peak: float, bandwidth: float) -> None:
    better = replace(MODEL, peak_ops_per_s=MODEL.peak_ops_per_s * peak, bandwidth_bytes_per_s=MODEL.bandwidth_bytes_per_s * bandwidth)
    assert better.predict(graphs()[number]) < MODEL.predict(graphs()[number])


TRUTH = Parameters(dense=0.3, pointwise=0.7, depthwise=0.04, efficiency=1.5, op_us=0.8, call_us=25)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_ten_networks_recover_a_device(noise: float) -> None:
    device, rng = replace(MODEL, parameters=TRUTH), np.random.default_rng(0)
    measured = [(graph, device.predict(graph) * float(np.exp(noise * rng.standard_normal()))) for graph in graphs()]
    fitted = MODEL.calibrate(measured[:10])
    held = np.array([fitted.predict(graph) / device.predict(graph) - 1 for graph, _ in measured[10:]])
    before = np.array([MODEL.predict(graph) / device.predict(graph) - 1 for graph, _ in measured[10:]])
    assert np.abs(held).mean() < 0.02 + noise and np.abs(before).mean() > 0.25
    assert fitted.networks == 10 and fitted.quality is not None and fitted.quality.mape < 0.06 + 2 * noise
    assert MODEL.quality is None and not MODEL.calibrated


def test_leaving_out_is_not_fitting() -> None:
    """Latencies without any order: a model that judged itself on what it was fitted on would call itself good."""
    rng = np.random.default_rng(0)
    fitted = MODEL.calibrate([(graph, float(rng.lognormal(0, 1))) for graph in graphs()[:10]])
    assert fitted.quality is not None and fitted.quality.within < 0.4 and fitted.quality.tau < 0.6


def test_two_networks_stay_near_the_prior() -> None:
    fitted = MODEL.calibrate([(graph, 2 * MODEL.predict(graph)) for graph in graphs()[:2]])
    assert fitted.quality is None  # nothing to judge it by
    assert np.abs(fitted.parameters.vector() - MODEL.parameters.vector()).max() < 2


def test_chosen_networks_tell_more_than_the_first_ones() -> None:
    chosen = MODEL.choose(graphs(), 8)
    assert len(set(chosen)) == 8

    def information(numbers: list[int]) -> float:
        rows = np.array([Workload.of(MODEL, graphs()[n]).gradient(MODEL.parameters.vector()) for n in numbers]) / 0.05
        return float(np.linalg.slogdet(np.eye(6) + rows.T @ rows)[1])

    draws = [information(list(np.random.default_rng(seed).choice(24, 8, replace=False))) for seed in range(20)]
    assert information(chosen) > max(draws)


def test_a_device_file_gives_an_uncalibrated_model() -> None:
    spec = find("raspberry-pi-4")
    one, four = Roofline.of(spec, "int8"), Roofline.of(spec, "int8", threads=4)
    assert four.peak_ops_per_s == 4 * one.peak_ops_per_s == spec.peak_ops_per_s["int8"]
    assert one.parameters.op_us == spec.overhead_us and not one.calibrated
    with pytest.raises(UserError, match=r"peak_ops_per_s\.bf16"):
        Roofline.of(spec, "bf16")
    with pytest.raises(UserError, match="4 cores"):
        Roofline.of(spec, "int8", threads=5)


def test_rates_that_were_probed_are_not_discounted_again() -> None:
    spec = find("raspberry-pi-4")
    where = {key: text for key, text in spec.sources.items() if not key.startswith("peak_ops_per_s")}
    peak = {"peak_ops_per_s": f"{PROBED} with onnxruntime, 4 threads: dense 3x3 convolutions"}
    both = {**peak, "bandwidth_bytes_per_s": f"as other: {PROBED} with onnxruntime"}
    half, full = (Roofline.of(spec.model_copy(update={"sources": {**where, **more}})).parameters for more in (peak, both))
    plain = Roofline.of(spec).parameters
    assert half == replace(plain, dense=REACHED.dense, pointwise=REACHED.pointwise, depthwise=REACHED.depthwise)
    assert full == replace(half, efficiency=1.0) and full.op_us == spec.overhead_us


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_this_machine_probes_itself(precision: str) -> None:
    model = probe_roofline(precision, seconds=0.01)
    # Orders of magnitude that hold for any machine this runs on; a kernel that fused away would give a peak or bandwidth without bounds.
    assert 1e8 < model.peak_ops_per_s < 1e14 and 1e7 < model.bandwidth_bytes_per_s < 1e13
    assert 0.01 < model.parameters.op_us < 1e4 and not model.calibrated
    assert model.predict(graphs()[0]) > 0


def test_record_and_refusals() -> None:
    pairs = [(graph, 1.0) for graph in graphs()[:4]]
    fitted = MODEL.calibrate(pairs)
    again = Roofline.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    assert again == fitted
    assert again.calibrate(pairs) == fitted == fitted.calibrate(pairs)  # from the same priors, not from what was fitted before
    assert Roofline.from_json({key: value for key, value in fitted.to_json().items() if key != "prior"}) == fitted  # as older files are
    with pytest.raises(UserError, match="as to_json writes it"):
        Roofline.from_json({"precision": "fp32"})
    with pytest.raises(UserError, match="positive latencies"):
        MODEL.calibrate([(graphs()[0], 0.0)])
    with pytest.raises(UserError, match="positive peak"):
        Roofline(0, 1)
    with pytest.raises(UserError, match="choose 1 to 24"):
        MODEL.choose(graphs(), 25)


def test_a_thread_takes_a_core_on_a_microcontroller_too() -> None:
    chip = find("esp32-s3")
    one, two = Roofline.of(chip, "int8"), Roofline.of(chip, "int8", threads=2)
    assert two.peak_ops_per_s == 2 * one.peak_ops_per_s == chip.peak_ops_per_s["int8"]
    with pytest.raises(UserError, match="2 cores"):
        Roofline.of(chip, "int8", threads=3)
    for name in ("stm32f746", "mali-g76", "hexagon-685"):  # one core, and kinds that spread every op over all of theirs
        spec = find(name)
        precision = spec.precisions[0]
        assert Roofline.of(spec, precision).peak_ops_per_s == spec.peak_ops_per_s[precision] and spec.share(1) == 1
