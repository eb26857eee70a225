from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware.devices import find, names
from sartor.hardware.devices.text import to_toml, write
from sartor.hardware.graph import ACTS, Op
from sartor.hardware.spec import PRECISIONS, AgentAddress, DeviceSpec, Frequency, matches, parse

MINIMAL = """
name = "board"
title = "A board"
kind = "cpu"
runtime = "onnxruntime"
precisions = ["int8"]
cores = 2
[sources]
cores = "estimate: a test"
"""
SHIPPED = [name for name in names() if name != "host"]
ASKED_FOR = {
    "raspberry-pi-4", "raspberry-pi-5", "pixel-3", "mali-g76", "hexagon-685", "jetson-nano", "stm32f746", "stm32h743", "esp32-s3",
    "edge-tpu", "eyeriss",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SARTOR_DEVICES", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_minimum_leaves_the_rest_unknown() -> None:
    spec = parse(MINIMAL)
    assert spec.peak_ops_per_s == {} and spec.bandwidth_bytes_per_s is None and spec.frequency_hz is None and not spec.measured
    assert spec.estimated("cores") and spec.source("lanes.int8") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("", None),
        ("flash = 1", ["flash", "extra"]),
        ("ram_bytes = 1", ["sources", "ram_bytes"]),
        ("measured = true", ["measured", "agent"]),
        ("ram_bytes = -1", ["ram_bytes"]),
        ("cores = 3", ["TOML"]),
        ("[lanes]\nint8 = 16", ["lanes.int8"]),
        ("[lanes]\nint4 = 16\n[sources]\nlanes = 'x'", ["TOML"]),
        ("[unsupported]\n'act:gelu' = 'x'", ["act:NAME", "'act:gelu'"]),
        ("[unsupported]\n'conv:kernel>x' = 'x'", ["conv:kernel>N"]),
        ("[agent]\nurl = 'pi.local'", ["agent.url"]),
        ("[agent]\nurl = 'http://pi/../x'", ["agent.url"]),
        ("[agent]\nurl = 'http://pi:99999'", ["agent.url"]),
        ("[agent]\nurl = 'http://pi:port'", ["agent.url"]),
        ("[agent]\nurl = 'http://[::1'", ["agent.url"]),
        ("[agent]\nurl = 'http://:8421'", ["agent.url"]),
        ("[agent]\nurl = 'http://pi?to=x'", ["agent.url"]),
        (f"[agent]\nurl = 'http://{'a' * 70}.local'", ["agent.url"]),
        ("bandwidth_bytes_per_s = inf", ["bandwidth_bytes_per_s"]),
        ("bandwidth_bytes_per_s = nan", ["bandwidth_bytes_per_s"]),
        ("[peak_ops_per_s]\nint8 = inf", ["peak_ops_per_s"]),
        ("[energy]\npj_per_op = { int8 = -1.0 }", ["pj_per_op", "int8 = -1"]),
        ("[energy]\npj_per_op = { int4 = 1.0 }", ["pj_per_op", "int4"]),
        ("[energy]\npj_per_byte = { disk = 1.0 }", ["pj_per_byte", "disk"]),
        ("[energy]\nswitched_nf = 1.0\npj_per_byte = { sram = 1.0 }", ["pj_per_byte", "sram", "switched_nf"]),
    ],
)
def test_files_are_read_strictly(change: str, words: list[str] | None) -> None:
    head, sources = MINIMAL.split("[sources]")
    text = f"{head}\n{change}\n[sources]{sources}"
    if words is None:
        assert parse(text).name == "board"
        return
    with pytest.raises(UserError) as caught:
        parse(text, "board.toml")
    assert str(caught.value).startswith("board.toml: ") and all(word in str(caught.value) for word in words), caught.value


def test_a_blank_source_is_none() -> None:
    for blank in ("", " "):
        with pytest.raises(UserError, match="got none for cores"):
            parse(MINIMAL.replace("estimate: a test", blank))


@pytest.mark.parametrize("url", ["http://pi", "https://pi.local:8421/", "http://[::1]:8421", "http://10.0.0.2:1"])
def test_addresses_that_can_be_reached_are_taken(url: str) -> None:
    assert AgentAddress(url=url).url == url


def test_frequencies_rise() -> None:
    text = MINIMAL.replace("[sources]", "[[frequencies]]\nmhz = 2\n[[frequencies]]\nmhz = 1\n[sources]\nfrequencies = 'x'")
    with pytest.raises(UserError, match="rising order"):
        parse(text)


def test_what_was_asked_for_is_shipped() -> None:
    assert names()[0] == "host" and set(SHIPPED) == ASKED_FOR


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_devices_are_whole_and_honest(name: str) -> None:
    spec = find(name)
    assert spec.name == name and not spec.measured and spec.agent is None
    assert spec.bandwidth_bytes_per_s and spec.frequency_hz and spec.overhead_us is not None
    assert all(precision in spec.peak_ops_per_s and precision in spec.lanes for precision in spec.precisions)
    for precision, peak in spec.peak_ops_per_s.items():
        per_cycle = peak / spec.frequency_hz / spec.cores
        assert 1 <= per_cycle <= 2 * 64 * 64, (precision, per_cycle)  # from a scalar unit to the largest systolic array here
    assert spec.kind != "mcu" or (spec.sram_bytes and spec.flash_bytes and spec.sram_bytes < spec.flash_bytes)
    assert all(len(text) > 20 or text.startswith("http") for text in spec.sources.values()), "a source says where, or why"
    assert all(reason for reason in (*spec.unsupported.values(), *spec.unfriendly.values()))


def test_the_host_is_probed_not_made_up() -> None:
    spec = find("host")
    assert spec.measured and spec.cores >= 1 and spec.peak_ops_per_s == {} and not spec.estimated("cores")


def test_a_host_probed_elsewhere_is_not_this_one(own_folder: Path) -> None:
    here = find("host")
    write(here.model_copy(update={"title": "probed"}), own_folder)
    assert find("host").title == "probed"
    write(here.model_copy(update={"title": "probed", "processor": "Another CPU"}), own_folder, replace=True)
    assert find("host").title != "probed"


def test_a_file_of_ones_own_comes_first(own_folder: Path) -> None:
    write(find("edge-tpu").model_copy(update={"title": "mine"}), own_folder)
    assert find("edge-tpu").title == "mine"
    with pytest.raises(UserError, match="there already"):
        write(find("edge-tpu"), own_folder)
    (own_folder / "edge-tpu.toml").rename(own_folder / "other.toml")
    with pytest.raises(UserError, match="as the file is called"):
        find("other")
    assert "other" in names() and find("edge-tpu").title != "mine"


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'stm32f746'"):
        find("stm32f74")
    with pytest.raises(UserError, match="none called"):
        find("../../etc/passwd")


CONV = Op("conv", (16, 8, 8), (32, 8, 8))
DEPTHWISE = Op("conv", (16, 8, 8), (16, 8, 8), kernel=5, groups=16, act="hardswish")
GROUPED = Op("conv", (16, 8, 8), (32, 8, 8), groups=4, dilation=1)
SE = Op("se", (16, 8, 8), (16, 8, 8), hidden=4)


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("conv", {CONV, DEPTHWISE, GROUPED}),
        ("conv:depthwise", {DEPTHWISE}),
        ("conv:grouped", {GROUPED}),
        ("conv:kernel>3", {DEPTHWISE}),
        ("conv:kernel>5", set()),
        ("conv:dilated", set()),
        ("act:hardswish", {DEPTHWISE}),
        ("act:hardsigmoid", {SE}),
        ("se", {SE}),
        ("act", set()),
    ],
)
def test_patterns_name_ops(pattern: str, hits: set[Op]) -> None:
    assert {op for op in (CONV, DEPTHWISE, GROUPED, SE) if matches(pattern, op)} == hits


def test_unsupported_comes_before_unfriendly() -> None:
    tpu = find("edge-tpu")
    assert tpu.objection(CONV) is None
    kind, reason = tpu.objection(DEPTHWISE) or ("", "")
    assert kind == "unsupported" and "compiler" in reason
    plain = Op("conv", (16, 8, 8), (16, 8, 8), kernel=3, groups=16, act="relu6")
    assert (tpu.objection(plain) or ("",))[0] == "unfriendly"
    assert [pattern for _, pattern, _ in tpu.objections(DEPTHWISE)] == ["act:hardswish", "conv:depthwise"]


@pytest.mark.parametrize("name", [name for name in SHIPPED if find(name).kind == "mcu"])
@pytest.mark.parametrize("act", ["hardswish", "hardsigmoid", "swish", "sigmoid"])
def test_microcontrollers_have_no_kernel_of_their_own_for_curved_activations(name: str, act: str) -> None:
    level, reason = find(name).objection(Op("conv", (8, 8, 8), (8, 8, 8), act=act)) or ("", "")
    assert level == "unfriendly" and "kernel" in reason


texts = st.text(max_size=20)
numbers = st.floats(1e-3, 1e15) | st.integers(1, 2**40).map(float)


@st.composite
def specs(draw: st.DrawFn) -> DeviceSpec:
    by_precision: Any = st.dictionaries(st.sampled_from(PRECISIONS), numbers, max_size=3)
    patterns: Any = st.dictionaries(st.sampled_from(["se", "conv:grouped", *(f"act:{act}" for act in ACTS if act)]), texts, max_size=3)
    mhz = sorted(draw(st.sets(st.integers(1, 5000), max_size=3)))
    agent = draw(st.none() | st.just(AgentAddress(url="https://pi:1", token_file="/a b")))
    everything = ("cores", "bandwidth_bytes_per_s", "overhead_us", "sram_bytes", "lanes", "peak_ops_per_s", "frequencies", "energy")
    return DeviceSpec(
        name="x1", title=draw(st.text(min_size=1, max_size=20)), kind="mcu", processor=draw(texts),
        measured=agent is not None and draw(st.booleans()), runtime="r", precisions=("int8",), cores=draw(st.integers(1, 99)),
        bandwidth_bytes_per_s=draw(st.none() | numbers), overhead_us=draw(st.none() | st.floats(0, 1e6)),
        sram_bytes=draw(st.none() | st.integers(1, 2**50)), notes=tuple(draw(st.lists(texts, max_size=3))),
        lanes={"int8": draw(st.integers(1, 128))},
        peak_ops_per_s=draw(by_precision),
        frequencies=tuple(Frequency(mhz=value, volts=draw(st.none() | st.floats(0.1, 5))) for value in mhz),
        unsupported=draw(patterns), unfriendly=draw(patterns), agent=agent,
        energy={"pj_per_op": draw(by_precision), "static_w": draw(st.none() | st.floats(0, 10))},
        sources={name: draw(texts.filter(str.strip)) for name in everything},
    )  # fmt: skip


@given(specs())
def test_written_and_read_it_is_the_same(spec: DeviceSpec) -> None:
    assert parse(to_toml(spec)) == spec


@pytest.mark.parametrize("name", [*SHIPPED, "host"])
def test_shipped_devices_written_and_read_are_the_same(name: str) -> None:
    assert parse(to_toml(find(name))) == find(name)
