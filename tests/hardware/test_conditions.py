from __future__ import annotations

from pathlib import Path

from sartor.hardware.conditions import Moment, between, read


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_what_the_system_tells_is_read(tmp_path: Path) -> None:
    write(tmp_path, {
        "sys/class/thermal/thermal_zone0/temp": "45500\n", "sys/class/thermal/thermal_zone1/temp": "61000\n",
        "sys/class/thermal/thermal_zone2/temp": "-274000\n",  # a sensor that is not there
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1300000\n",
        "sys/class/powercap/intel-rapl:0/energy_uj": "2500000\n", "sys/class/powercap/intel-rapl:0:0/energy_uj": "9000000\n",
        "sys/class/hwmon/hwmon0/power1_input": "not a number\n",
    })  # fmt: skip
    found = read(tmp_path / "sys", tmp_path / "proc")
    assert (found.temperature_c, found.frequency_mhz, found.energy_j, found.power_w) == (61.0, 1400.0, 2.5, None)


def test_a_machine_that_tells_nothing_gives_nothing(tmp_path: Path) -> None:
    found = read(tmp_path / "sys", tmp_path / "proc")
    assert (found.temperature_c, found.frequency_mhz, found.energy_j, found.power_w) == (None, None, None, None)
    assert between([found, found]) is None


def test_the_clock_of_cpuinfo_is_the_last_resort(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2000.0\nprocessor : 1\ncpu MHz\t\t: 3000.0\n"})
    assert read(tmp_path / "sys", tmp_path / "proc").frequency_mhz == 2500.0


def test_power_comes_from_the_counter_and_not_from_one_that_wrapped() -> None:
    found = between([Moment(0.0, 50.0, 2000.0, 100.0), Moment(4.0, 55.0, 1990.0, 112.0)])
    assert found is not None and (found.power_w, found.temperature_c, found.frequency_mhz, found.warnings) == (3.0, 55.0, 1990.0, ())
    wrapped = between([Moment(0.0, energy_j=100.0, power_w=5.0), Moment(4.0, energy_j=1.0, power_w=7.0)])
    assert wrapped is not None and wrapped.power_w == 6.0  # the sensor's average instead


def test_heat_and_a_falling_clock_are_said() -> None:
    found = between([Moment(0.0, 70.0, 2000.0), Moment(1.0, 91.0, 1200.0), Moment(2.0, 80.0, 2000.0)])
    assert found is not None and len(found.warnings) == 2
    assert "91 °C" in found.warnings[0] and "from 2000 to 1200 MHz" in found.warnings[1]
