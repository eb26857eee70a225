"""Energy and clock scaling, against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware import Op, OpGraph
from sartor.hardware.devices import find
from sartor.hardware.dvfs import OperatingPoint, Work, best_point, scale, sweep, works
from sartor.hardware.energy import Energy, EnergyModel, energy_model, has_energy, merit
from sartor.hardware.roofline import Roofline
from sartor.report.profile_energy import energy_record

CONV = Op("conv", (8, 10, 10), (16, 10, 10), kernel=3)

positive = st.floats(0.1, 10.0)


@given(st.lists(st.floats(1e3, 1e9), min_size=1, max_size=5), positive, positive, st.floats(1e8, 3e9), st.floats(1.1, 5.0))
def test_at_fixed_voltage_compute_bound_dynamic_energy_does_not_depend_on_frequency(
    cycles: list[float], switched_nf: float, volts: float, hz: float, factor: float
) -> None:
    slow, fast = sweep([Work(c) for c in cycles], [(hz, volts), (hz * factor, volts)], switched_nf=switched_nf, static_w=0.7)
    assert fast.energy.dynamic_mj == pytest.approx(slow.energy.dynamic_mj, rel=1e-12)
    assert fast.energy.dynamic_mj == pytest.approx(switched_nf * 1e-9 * volts**2 * sum(cycles) * 1e3, rel=1e-12)
    assert fast.energy.static_mj == pytest.approx(slow.energy.static_mj / factor, rel=1e-12)


def test_memory_bound_energy_rises_with_frequency_unless_waiting_cores_stop_switching() -> None:
    work = [Work(cycles=1e6, memory_s=10e-3)]  # 1 ms of arithmetic at 1 GHz, 10 ms of traffic
    states = [(1e9, 1.0), (2e9, 1.0)]
    slow, fast = sweep(work, states, switched_nf=1.0, static_w=0.0)
    assert slow.latency_ms == fast.latency_ms == 10.0
    assert fast.energy.dynamic_mj == pytest.approx(2 * slow.energy.dynamic_mj)
    gated = sweep(work, states, switched_nf=1.0, static_w=0.0, stalled=0.0)
    assert [p.energy.dynamic_mj for p in gated] == pytest.approx([1.0, 1.0])  # 1e6 cycles of 1 nJ


def test_clock_scaling_agrees_with_a_case_solved_by_hand() -> None:
    """1e9 cycles, C = 1 nF, 0.5 W static: E = V² J + 0.5 W · 1e9/f.

    0.5 GHz, 0.8 V: E = 0.64 + 1.00 = 1.64 J, T = 2 s,   E·T = 3.28
    1.0 GHz, 1.0 V: E = 1.00 + 0.50 = 1.50 J, T = 1 s,   E·T = 1.50
    2.0 GHz, 2.0 V: E = 4.00 + 0.25 = 4.25 J, T = 0.5 s, E·T = 2.125
    """
    points = sweep([Work(4e8), Work(6e8)], [(0.5e9, 0.8), (1e9, 1.0), (2e9, 2.0)], switched_nf=1.0, static_w=0.5)
    assert [p.energy.total_mj for p in points] == pytest.approx([1640, 1500, 4250])
    assert [p.energy.edp_mj_ms for p in points] == pytest.approx([3.28e6, 1.5e6, 2.125e6])
    assert best_point(points).hz == 1e9
    assert best_point(points, deadline_ms=1000).hz == 1e9  # exactly kept
    assert best_point(points, deadline_ms=700).hz == 2e9  # worse E·T, but the only one in time
    assert best_point(points, deadline_ms=5000).hz == 1e9
    with pytest.raises(UserError, match="fastest, 2000 MHz, takes 500 ms"):
        best_point(points, deadline_ms=400)
    with pytest.raises(UserError, match="at least one"):
        best_point([])


def test_the_work_of_an_op_is_its_cycles_at_the_top_clock_beside_its_traffic() -> None:
    """At half the clock the call, the runtime's part and the arithmetic take twice as long, the traffic as long as before."""
    board = find("raspberry-pi-4")
    model = Roofline.of(board, "fp32")
    one = model.time(CONV)
    call, own, op = works([one], model, board)
    top = board.frequency_hz
    assert call.seconds(top / 2) == pytest.approx(2e-6 * model.parameters.call_us) and call.memory_s == own.memory_s == 0
    assert own.seconds(top / 2) == pytest.approx(2e-6 * model.parameters.op_us)
    assert op.cycles / top == pytest.approx(1e-6 * one.compute_us) and op.memory_s == pytest.approx(1e-6 * one.memory_us)
    with pytest.raises(UserError, match="needs frequencies"):
        works([one], model, board.model_copy(update={"frequencies": ()}))


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=6), st.floats(0.1, 12.0))
def test_best_point_is_the_minimum_over_all(pairs: list[tuple[float, float]], deadline: float) -> None:
    points = [OperatingPoint(1e9, 1.0, Energy(e, 0.0, t)) for e, t in pairs]
    kept = [p for p in points if p.latency_ms <= deadline]
    if kept:
        assert best_point(points, deadline).energy.edp_mj_ms == min(e * t for e, t in pairs if t <= deadline)


def test_energy_adds_joules_to_joules() -> None:
    model = EnergyModel(static_w=0.5, switched_nf=2.0, volts=1.5, hz=1e9)
    assert model.power_w == pytest.approx(4.5)
    found = model.energy([(CONV, 2.0), (CONV, 1.0)], latency_ms=4.0, activity=0.5)
    assert found.dynamic_mj == pytest.approx(4.5 * 0.5 * 3.0) and found.static_mj == pytest.approx(2.0)
    assert found.edp_mj_ms == pytest.approx(found.total_mj * 4.0) and not found.validated
    per_op = EnergyModel(static_w=0.0, pj_per_op=100.0, pj_per_byte=10.0)
    assert CONV.macs == 8 * 9 * 16 * 100
    traffic = 8 * 100 + 16 * 100 + 8 * 9 * 16 + 16 * 4
    assert per_op.op_mj(CONV, latency_ms=123.0) == pytest.approx(1e-9 * (2 * CONV.macs * 100 + traffic * 10))
    with pytest.raises(UserError, match="switched_nf with volts and hz, or pj_per_op"):
        EnergyModel(static_w=1.0, switched_nf=2.0, volts=1.0)


def test_shipped_devices_have_models_where_their_files_say_enough() -> None:
    board = find("raspberry-pi-4")
    assert energy_model(board).power_w == pytest.approx(
        board.energy.switched_nf * board.frequencies[-1].volts ** 2 * board.frequencies[-1].mhz / 1e3
    )
    assert energy_model(board, state=0).power_w < energy_model(board).power_w
    points = scale([CONV] * 3, board)
    assert [p.hz for p in points] == [s.mhz * 1e6 for s in board.frequencies] and points[0].latency_ms > points[-1].latency_ms
    model = Roofline.of(board)
    total = sum(w.seconds(board.frequency_hz) for w in works([model.time(CONV)] * 3, model, board))
    assert points[-1].latency_ms == pytest.approx(1e3 * total) == pytest.approx(model.predict([CONV] * 3))
    (four,) = scale([CONV] * 3, board, threads=4)[-1:]
    power_w = [p.energy.dynamic_mj / p.latency_ms for p in (points[-1], four)]
    assert power_w[1] == pytest.approx(4 * power_w[0]) and four.latency_ms < points[-1].latency_ms
    chip = find("stm32f746")
    assert has_energy(chip) and energy_model(chip).pj_per_op == chip.energy.pj_per_op["int8"]
    assert not has_energy(chip, "fp32")
    with pytest.raises(UserError, match="energy is not known"):
        energy_model(chip, "fp32")
    with pytest.raises(UserError, match="frequencies with volts"):
        scale([CONV], chip)


def test_values_of_sixteen_bits_take_two_bytes() -> None:
    chip = find("eyeriss")
    assert Roofline.of(chip, "int16").time(CONV).bytes == CONV.traffic(2, 2)
    assert energy_model(chip, "int16").bytes_per_value == 2


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_phones_gpu_draws_what_its_source_says(precision: str) -> None:
    """3.5 W at a third of the peak, of which static_w is drawn anyway."""
    spec = find("mali-g76")
    joules_per_op = 1e-12 * spec.energy.pj_per_op[precision]
    assert joules_per_op * spec.peak_ops_per_s[precision] / 3 + (spec.energy.static_w or 0) == pytest.approx(3.5, rel=0.01)


def test_traffic_to_another_chip_is_paid_beside_the_switching() -> None:
    chip = find("eyeriss")
    model, state = energy_model(chip, "int16"), chip.frequencies[-1]
    traffic = 1e-9 * CONV.traffic(2, 2) * chip.energy.pj_per_byte["dram"]
    switching = chip.energy.switched_nf * state.volts**2 * state.mhz / 1e3 * 2.0
    assert model.op_mj(CONV, latency_ms=2.0) == pytest.approx(switching + traffic) and traffic > 0
    slow, fast = scale([CONV], chip, "int16")[:: len(chip.frequencies) - 1]
    roofline = Roofline.of(chip, "int16")
    for point in (slow, fast):
        cycles = sum(one.seconds(point.hz) for one in works([roofline.time(CONV)], roofline, chip)) * point.hz
        assert point.energy.dynamic_mj == pytest.approx(1e3 * chip.energy.switched_nf * 1e-9 * point.volts**2 * cycles + traffic)


def test_what_a_profile_tells_has_the_traffic_in_every_state_of_the_clock() -> None:
    chip = find("eyeriss")
    bare = chip.model_copy(update={"energy": chip.energy.model_copy(update={"pj_per_byte": {}})})
    times = Roofline.of(chip, "int16").times(OpGraph((replace(CONV, inputs=(-1,)),), CONV.in_shape))
    found, without = (energy_record(Roofline.of(chip, "int16"), times, spec, "int16", 1) for spec in (chip, bare))
    traffic = 1e-9 * CONV.traffic(2, 2) * chip.energy.pj_per_byte["dram"]
    assert found["dynamic_mj"] == pytest.approx(without["dynamic_mj"] + traffic)
    assert [one["total_mj"] for one in found["states"]] == pytest.approx([one["total_mj"] + traffic for one in without["states"]])


def test_merit() -> None:
    assert merit(0.9, 2.0, 4.0) == pytest.approx(0.9 / 8)
    assert merit(0.9, 2.0, 4.0, alpha=2, beta=0.5, gamma=0) == pytest.approx(0.81 / 2**0.5)
    for bad in ((0.9, 0.0, 1.0), (0.9, 1.0, -1.0), (-0.1, 1.0, 1.0)):
        with pytest.raises(UserError, match="merit"):
            merit(*bad)
