from __future__ import annotations

from importlib.util import find_spec

import pytest

from sartor.errors import UserError
from sartor.hardware import Factor, Op
from sartor.hardware.compatibility import Answers, ask_runtime, check, check_space
from sartor.hardware.devices import find
from sartor.hardware.spec import DeviceSpec

PLAIN = Op("conv", (8, 8, 8), (8, 8, 8), kernel=3, act="relu", name="plain")
GATED = Op("conv", (8, 8, 8), (8, 8, 8), kernel=3, act="hardswish", name="gated")
BRANCH = Op("se", (8, 8, 8), (8, 8, 8), hidden=4, name="branch")


@pytest.fixture
def device() -> DeviceSpec:
    told = find("stm32f746").model_dump(exclude_unset=True)
    return DeviceSpec.model_validate({**told, "unsupported": {"se": "no such kernel"}, "unfriendly": {"act:hardswish": "runs in float"}})


def test_what_a_device_file_says_is_found_once_a_signature(device: DeviceSpec) -> None:
    found = check([PLAIN, GATED, GATED, BRANCH], device)
    assert [(one.op.name, one.level) for one in found] == [("branch", "unsupported"), ("gated", "unfriendly")]
    assert "no such kernel" in str(found[0])
    assert check([PLAIN], device) == []


def test_the_choice_to_blame_is_named_alone(device: DeviceSpec) -> None:
    """Width and kernel come with the activation, but the activation alone decides."""
    acts, widths = ("relu", "hardswish"), (8, 16, 24)

    def ops(indices: tuple[int, ...]) -> tuple[Op, ...]:
        width, act, gate = indices
        shape = (widths[width], 8, 8)
        conv = Op("conv", shape, shape, kernel=3, act=acts[act])
        return (conv, Op("se", shape, shape, hidden=4)) if gate and widths[width] > 8 else (conv,)

    space = {"width": widths, "act": acts, "se": (False, True)}
    found = check_space([Factor(("width", "act", "se"), ops)], space, device)
    assert [(dict(one.choices), one.finding.level) for one in found] == [
        ({"width": 16, "se": True}, "unsupported"),
        ({"width": 24, "se": True}, "unsupported"),
        ({"act": "hardswish"}, "unfriendly"),
    ]
    assert "act = hardswish" in str(found[2])


def test_an_op_in_every_network_blames_no_choice(device: DeviceSpec) -> None:
    (found,) = check_space([Factor(("width",), lambda indices: (BRANCH,))], {"width": (8, 16)}, device)
    assert dict(found.choices) == {} and str(found).startswith("every network")


def test_a_runtime_is_asked_itself() -> None:
    impossible = Op("conv", (8, 8, 8), (8, 8, 8), kernel=3, groups=3, name="impossible")  # 8 channels in 3 groups
    foreign = Op("other", (8, 8, 8), (8, 8, 8), label="Softmax", name="foreign")
    found = ask_runtime([PLAIN, GATED, BRANCH, impossible, foreign])
    assert {one.op.name for one in found} == {"impossible", "foreign"} and {one.level for one in found} == {"unsupported"}
    assert ask_runtime([PLAIN, GATED, BRANCH]) == []


def test_floats_in_an_int8_file_are_told() -> None:
    """The default quantiser leaves hardswish in floats; sartor's own does not."""
    found = {one.op.name: one for one in ask_runtime([PLAIN, GATED], precision="int8")}
    assert "plain" not in found and found["gated"].level == "unfriendly" and "floats" in found["gated"].reason


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
def test_openvino_runs_every_kind() -> None:
    assert ask_runtime([PLAIN, GATED, BRANCH], "openvino") == []


def test_runtimes_without_onnx_are_refused() -> None:
    with pytest.raises(UserError, match="reads ONNX files"):
        ask_runtime([PLAIN], "litert")


def test_a_runtime_answers_for_all_sizes_of_a_kind_of_op_and_options_are_blamed_by_it() -> None:
    widths, groups = (8, 16), (1, 3)

    def ops(indices: tuple[int, ...]) -> tuple[Op, ...]:
        shape = (widths[indices[0]], 8, 8)
        return (Op("conv", shape, shape, kernel=3, groups=groups[indices[1]]),)  # neither 8 nor 16 channels make 3 groups

    factor, space = Factor(("width", "groups"), ops), {"width": widths, "groups": groups}
    answers = Answers([op for width in (0, 1) for group in (0, 1) for op in ops((width, group))])
    assert answers.asked == 2
    assert answers.objection(PLAIN) is None  # of a kind that was not asked about
    (found,) = check_space([factor], space, answers)
    assert dict(found.choices) == {"groups": 3} and found.finding.level == "unsupported"
