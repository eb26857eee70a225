from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sartor.errors import UserError
from sartor.hardware import facts as machine
from sartor.hardware.devices import find
from sartor.hardware.energy import has_energy
from sartor.hardware.facts import SOURCES, system_facts
from sartor.hardware.local import LocalDevice
from sartor.hardware.measure import Measurement
from sartor.hardware.probing import Effort, probe_agent, probe_by_measuring
from sartor.hardware.remote import AgentClient
from sartor.hardware.spec import AgentAddress

SMALL = Effort(channels=32, size=14, stream_mb=1.0, nodes=32, seconds=0.05)


def test_facts_have_sources_and_make_a_spec() -> None:
    facts = system_facts()
    assert facts["cores"] >= 1 and set(facts) <= set(SOURCES)
    assert all(cache["bytes"] % 1024 == 0 for cache in facts.get("caches", []))


def test_probing_measures_what_is_plausible() -> None:
    """Bounds that hold on any machine: between a thousandth and a thousand times a gigaflop and a gigabyte a second."""
    spec = probe_by_measuring(LocalDevice(), find("host"), SMALL)
    assert 1e6 < spec.peak_ops_per_s["fp32"] < 1e13 and 1e6 < spec.peak_ops_per_s["int8"] < 1e13
    assert 1e6 < (spec.bandwidth_bytes_per_s or 0) < 1e12 and 0 <= (spec.overhead_us or 0) < 1e3
    assert spec.measured and "measured by" in (spec.source("peak_ops_per_s.int8") or "") and spec.cores == find("host").cores


class Fixed(LocalDevice):
    """A device whose latencies in ms are known by the name of the file."""

    times: dict[str, float] = {
        "conv2": 3.0, "conv6": 7.0, "copy2": 5.0, "copy4": 7.0, "node2": 0.1, "nodes": 0.42, "int8_2": 2.0, "int8_6": 4.0,
    }  # fmt: skip

    def measure_many(self, files: Sequence[Path | str], **settings: Any) -> list[Measurement]:
        found = [self.times[Path(file).stem] for file in files]
        return [Measurement(ms, ms, ms, ms, ms, 100, ms, 0.0, False) for ms in found]


def test_rates_are_the_work_between_two_files_over_the_time_between_them() -> None:
    spec = probe_by_measuring(Fixed(), find("host"), SMALL)
    work = 2 * 4 * 9 * 32 * 32 * 14 * 14  # four convolutions, two operations a multiplication
    assert spec.peak_ops_per_s["fp32"] == pytest.approx(work / 4e-3, rel=1e-3)
    assert spec.peak_ops_per_s["int8"] == pytest.approx(work / 2e-3, rel=1e-3)
    assert spec.bandwidth_bytes_per_s == pytest.approx(4 * 2**20 / 2e-3, rel=1e-3)  # two copies of 1 MB, read and written
    assert spec.overhead_us == pytest.approx(320 / 32)


def test_a_device_that_gives_no_difference_is_refused() -> None:
    device = Fixed()
    device.times = dict.fromkeys(Fixed.times, 1.0)
    with pytest.raises(UserError, match="no difference"):
        probe_by_measuring(device, find("host"), SMALL)


def test_a_boards_voltages_are_those_of_the_board_it_is_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its system tells the states of its clock, but not their voltages, which its energy follows from."""
    facts = {"cores": 4, "frequencies": [{"mhz": 600.0}, {"mhz": 1800.0}]}
    told = {"identity": {"cpu": "Cortex-A72", "runtime": "onnxruntime"}, "describe": {"system": "Linux"}, "facts": facts}
    monkeypatch.setattr(AgentClient, "identity", lambda *arguments: told)
    like = find("raspberry-pi-4")
    spec = probe_agent("pi", AgentAddress(url="http://127.0.0.1:1"), like)
    assert has_energy(like, "int8") and has_energy(spec, "int8") and spec.frequencies == like.frequencies
    assert spec.peak_ops_per_s == like.peak_ops_per_s and spec.energy == like.energy  # as many cores
    alone = probe_agent("pi", AgentAddress(url="http://127.0.0.1:1"))
    assert [one.mhz for one in alone.frequencies] == [600.0, 1800.0]


def test_peaks_and_switching_are_those_of_the_cores_and_lanes_that_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"cores": 2, "lanes": {"fp32": 8, "int8": 32}}
    told = {"identity": {"cpu": "Another", "runtime": "onnxruntime"}, "describe": {"system": "Linux"}, "facts": facts}
    monkeypatch.setattr(AgentClient, "identity", lambda *arguments: told)
    like = find("pixel-3")  # four cores of 128 bits
    spec = probe_agent("mine", AgentAddress(url="http://127.0.0.1:1"), like)
    peaks = like.peak_ops_per_s
    assert spec.peak_ops_per_s == {"fp32": peaks["fp32"], "int8": peaks["int8"], "fp16": peaks["fp16"] / 2}  # of fp16 no lanes were told
    assert (spec.cores, spec.lanes, spec.energy.switched_nf) == (2, {"fp32": 8, "int8": 32}, 0.8)
    assert spec.energy.static_w == like.energy.static_w
    assert all("times 0.5" in (spec.source(path) or "") for path in ("energy.switched_nf", "peak_ops_per_s.fp16"))
    assert "times" not in (spec.source("peak_ops_per_s.int8") or "") and "as pixel-3" in (spec.source("energy.static_w") or "")
    gpu = find("jetson-nano")  # its cores are not those that the agent tells of
    assert probe_agent("mine", AgentAddress(url="http://127.0.0.1:1"), gpu).peak_ops_per_s == gpu.peak_ops_per_s


@pytest.mark.parametrize(
    ("mine", "shared"), [({0, 1, 2, 3}, [False, False, True]), ({0, 2}, [True, True, True]), ({0}, [False, False, False])]
)
def test_a_cache_of_two_threads_of_one_core_is_not_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: set[int], shared: list[bool]
) -> None:
    """Four processors: 0 and 2 are threads of one core, 1 and 3 of the other."""
    for level, (size, of) in enumerate({"32K": "0,2", "512K": "0,2", "4096K": "0-3"}.items()):
        folder = tmp_path / f"cpu0/cache/index{level}"
        folder.mkdir(parents=True)
        for name, text in {"level": str(level + 1), "type": "Unified", "size": size, "shared_cpu_list": of}.items():
            (folder / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_SYSFS", tmp_path)
    monkeypatch.setattr(machine, "_usable", lambda: mine)
    assert [cache["shared"] for cache in system_facts()["caches"]] == shared
