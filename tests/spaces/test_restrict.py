"""Restriction to a device: what is left conforms, what was removed is named with the reason."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.arch import Space
from sartor.errors import UserError
from sartor.hardware import OpGraph, trace
from sartor.hardware.devices import find, names
from sartor.hardware.spec import DeviceSpec
from sartor.layers.blocks import Hidden
from sartor.spaces import build
from sartor.spaces.mobile import MobileNet, MobileSpec, Stage
from sartor.spaces.restrict import conform, objections, restrict, summary
from sartor.spaces.rules import Removed, Rules

SHAPE = (3, 24, 24)


def device(**fields: Any) -> DeviceSpec:
    """A device made up for a test."""
    sources = dict.fromkeys(("cores", "lanes", "caches", "sram_bytes"), "estimate: made up for a test")
    plain = {"name": "toy", "title": "Toy", "kind": "cpu", "runtime": "onnxruntime", "precisions": ("int8", "fp32"), "cores": 1}
    return DeviceSpec.model_validate({**plain, "sources": sources, **fields})


@lru_cache
def _net(name: str) -> Any:
    torch.manual_seed(0)
    if name != "odd":
        return build(name, SHAPE, 4)
    stages = (
        Stage((8, 12, 16), (1, 2), 1, ("mbconv", "conv"), (3, 5, 7), (1, 2, 3.5, 8), ("relu", "hardswish"), (False, True), tied=False),
        Stage((16, 20, 32), (1, 3), 2, ("mbconv", "ghost", "fused", "dense"), (3, 5), (1, 2, 3), ("relu", "swish"), (False, True)),
        Stage((32,), (2,), 2, ("mbconv",), (3,), (Hidden(40), Hidden(64))),
    )
    return MobileNet(MobileSpec("odd", stages, (8, 16), (1, 2), "relu", (30, 32), resolutions=(16, 24)), SHAPE, 4)


def _violations(graph: OpGraph, spec: DeviceSpec, lanes: int, largest: int | None) -> list[str]:
    """What an extracted network does that it must not, said without the code under test."""
    found = []
    for op in graph:
        if op.kind == "conv" and op.out_shape[0] % lanes:
            found.append(f"{op.name}: {op.out_shape[0]} channels")
        if "act:hardswish" in spec.unsupported and op.act == "hardswish":
            found.append(f"{op.name}: hardswish")
        if "se" in spec.unfriendly and op.kind == "se":
            found.append(f"{op.name}: se")
        if "conv:kernel>5" in spec.unfriendly and op.kernel > 5:
            found.append(f"{op.name}: kernel {op.kernel}")
        if largest is not None and op.kind != "resize" and max(np.prod(op.in_shape), np.prod(op.out_shape)) > largest:
            found.append(f"{op.name}: {op.in_shape} -> {op.out_shape}")
    return found


@given(
    st.sampled_from(["odd", "mobile", "catalogue"]),
    st.sampled_from([1, 4, 8, 16]),
    st.sampled_from([None, 24_000, 10_000]),
    st.sets(st.sampled_from(["act:hardswish", "se", "conv:kernel>5"])),
    st.integers(0, 2**31),
)
@settings(max_examples=10, deadline=None)
def test_the_restricted_space_contains_only_conforming_nets(
    name: str, lanes: int, largest: int | None, patterns: set[str], seed: int
) -> None:
    net = _net(name)
    spec = device(
        lanes={"int8": lanes},
        caches=[{"level": 1, "bytes": largest}] if largest else [],
        unsupported={"act:hardswish": "no kernel"} if "act:hardswish" in patterns else {},
        unfriendly={p: "slow" for p in patterns if p != "act:hardswish"},
    )
    found = restrict(net, spec)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        arch = found.restricted.sample(rng)
        assert arch in net.space
        assert not _violations(trace(net.extract(arch).eval(), SHAPE), spec, lanes, largest)
    for choice, option, reason in found.removed:
        assert option in net.space.choices[choice] and reason
        assert net.space.option(choice, option) not in found.restricted.allowed[choice]
    left = {(c, i) for c, indices in net.space.allowed.items() for i in indices if i not in found.restricted.allowed[c]}
    assert left == {(c, net.space.option(c, o)) for c, o, _ in found.removed}


def test_what_conforms_already_is_left_alone() -> None:
    net = _net("odd")
    found = restrict(net, device(), max_expansion=None)
    assert found.removed == [] and found.restricted.size == net.space.size


def test_reasons_name_the_option_that_is_responsible() -> None:
    net = _net("odd")
    spec = device(lanes={"int8": 16}, unsupported={"se": "the delegate lacks it"}, unfriendly={"conv:kernel>5": "no fast kernel"})
    removed = restrict(net, spec).removed
    said = {(choice, option): reason for choice, option, reason in removed}
    for block in ("s1.b0", "s1.b1"):
        assert "7x7 convolution is unfriendly on toy: no fast kernel" in said[f"{block}.kernel", 7]
        assert "squeeze-excite is unsupported on toy: the delegate lacks it" in said[f"{block}.se", True]
        assert "over 6" in said[f"{block}.expand", 8]
    assert "12 channels are no multiple of the 16 lanes" in said["s1.width", 12]
    assert "40 channels" in said["s3.b0.expand", "40ch"] and "30 channels" in said["head.width", 30]
    assert ("s1.b0.kind", "mbconv") not in said and ("s2.kind", "mbconv") not in said  # squeeze-excite goes, not the block


def test_maps_that_do_not_fit_go_with_the_choice_that_makes_them_large() -> None:
    net = _net("odd")
    found = restrict(net, device(caches=[{"level": 1, "bytes": 4_000}, {"level": 2, "bytes": 20_000, "shared": True}]))
    assert any("20,000 bytes of level 2 cache" in reason for _, _, reason in found.removed)
    tight = restrict(net, device(caches=[{"level": 1, "bytes": 9_000}, {"level": 2, "bytes": 10**9}]), cache_level=1)
    assert tight.restricted.size < found.restricted.size
    with pytest.raises(UserError, match="caches of level 1, got level 3"):
        restrict(net, device(caches=[{"level": 1, "bytes": 9_000}]), cache_level=3)


def test_what_has_no_alternative_is_refused_by_name() -> None:
    net = build("mobilenet-v3-small", SHAPE, 4)
    with pytest.raises(UserError, match=r"cannot be restricted to toy: .*hardswish"):
        restrict(net, device(unsupported={"act:hardswish": "no kernel"}))
    with pytest.raises(UserError, match="feature map"):
        restrict(_net("odd"), device(caches=[{"level": 1, "bytes": 100}]))
    assert (
        restrict(_net("odd"), device(caches=[{"level": 1, "bytes": 100}], lanes={"int8": 64}), waive=("lanes", "maps")).restricted.size > 1
    )
    with pytest.raises(UserError, match="64 lanes"):
        restrict(_net("odd"), device(lanes={"int8": 64}), waive=("maps",))


def test_a_bare_space_is_judged_by_the_names_of_its_options() -> None:
    space = Space({"s1.act": ["relu", "hardswish"], "s1.se": [False, True], "s1.width": [8, 12, 16], "depth": [1, 2], "s1.expand": [3, 9]})
    spec = device(lanes={"int8": 8, "fp32": 4}, unsupported={"act:hardswish": "none", "se": "none"})
    found = restrict(space, spec)
    assert found.restricted.size == 1 * 1 * 2 * 2 * 1
    assert {(r.choice, r.option) for r in found.removed} == {("s1.act", "hardswish"), ("s1.se", True), ("s1.width", 12), ("s1.expand", 9)}
    plain = restrict(space, spec, precision="fp32")
    assert plain.restricted.size == 3 * 2 * 2  # four lanes hold every width, and fp32 has no ranges to spread
    with pytest.raises(UserError, match="precision"):
        restrict(space, spec, precision="int4")


def test_shipped_microcontroller_and_the_summary() -> None:
    net, spec = _net("odd"), find("stm32f746")
    found = restrict(net, spec)
    assert {("s2.act", "swish"), ("resolution", 16)} <= {(r.choice, r.option) for r in found.removed}  # 16 needs a resize
    rules = Rules.of(spec)
    assert rules.memory == "SRAM" and rules.map_bytes == spec.sram_bytes
    arch = found.restricted.sample(np.random.default_rng(0))
    assert not objections(trace(net.extract(arch).eval(), SHAPE), rules)
    large = build("mobile", (3, 320, 320), 4)
    assert any("SRAM" in r for _, r in objections(trace(large.extract(large.largest).eval(), (3, 320, 320)), rules))
    lines = summary([Removed(f"s{i}.se", True, "no kernel") for i in range(6)] + [Removed("stem.width", 12, "lanes")])
    assert lines == [
        "Left out of the space: s0.se, s1.se, s2.se and 3 more = True (no kernel).", "Left out of the space: stem.width = 12 (lanes)."
    ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in names() if name != "host"])
def test_a_shipped_device_takes_its_default_space_or_names_an_op_that_does_not_run_there(name: str) -> None:
    spec = find(name)
    with torch.device("meta"):
        net = build("mcu" if spec.kind == "mcu" else "mobile", (1, 28, 28), 10)
    try:
        (left, _, kept), _ = conform(net, spec, "int8" if "int8" in spec.precisions else spec.precisions[0])
    except UserError as error:
        assert "unsupported" in str(error)
        return
    assert left.size > 1
    with torch.device("meta"):
        graph = trace(net.extract(left.sample(np.random.default_rng(0))).eval(), (1, 28, 28))
    said = {spec.objection(op) for op in graph} - {None}
    assert {level for level, _ in said} <= {"unfriendly"} and len(kept) == len(said)  # what is done badly there was told


def test_what_every_network_has_stays_and_what_has_an_alternative_goes() -> None:
    net = _net("odd")
    spec = device(unfriendly={"linear": "bound by memory", "conv:depthwise": "one channel a filter", "act:hardswish": "slow"})
    found = restrict(net, spec, max_expansion=None)
    assert {sentence.partition(" is ")[0] for sentence in found.kept} == {
        "linear",
        "a depthwise 3x3 convolution with relu",
    }
    gone = {(one.choice, one.option) for one in found.removed}
    assert gone >= {("s1.b0.kind", "mbconv"), ("s1.b1.kind", "mbconv"), ("s2.kind", "mbconv"), ("s1.b0.act", "hardswish")}
    lines = summary(found.removed, (), spec, found.kept)
    assert sum("every network of it has this" in line for line in lines) == 2
    with pytest.raises(UserError, match="depthwise"):
        restrict(net, device(unsupported={"conv:depthwise": "no kernel"}))


def test_what_does_not_run_goes_before_what_runs_badly() -> None:
    """Had the activation gone that is slow, nothing would be left that runs."""
    stages = (Stage((16,), (1,), 1, ("conv",), (3,), (2,), ("relu", "hardswish")),)
    net = MobileNet(MobileSpec("two", stages, (16,), (1,), "relu6"), SHAPE, 4)
    found = restrict(net, device(unsupported={"act:hardswish": "no kernel"}, unfriendly={"act:relu": "slow"}))
    assert [one.option for one in found.removed] == ["hardswish"]
    assert len(found.kept) == 1 and "with relu is unfriendly" in found.kept[0]
