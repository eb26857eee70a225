from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sartor.errors import UserError
from sartor.hardware.device import Identity, cores, describe, host

FIXED = Identity("Some CPU (1-2-3)", ("avx2", "fma"), "onnxruntime", "1.20.0", "int8", 1)


def test_fingerprint_is_stable_and_tells_every_field_apart() -> None:
    assert FIXED.fingerprint == "9056b5fdf21b34d8"
    changed = [replace(FIXED, cpu="x"), replace(FIXED, isa=("avx2",)), replace(FIXED, runtime="x"), replace(FIXED, version="1.20.1"),
               replace(FIXED, precision="fp32"), replace(FIXED, threads=2)]  # fmt: skip
    assert len({one.fingerprint for one in [FIXED, *changed]}) == 7


def test_json_round_trip() -> None:
    assert Identity.from_json(json.loads(json.dumps(FIXED.to_json()))) == FIXED
    with pytest.raises(UserError, match="identity"):
        Identity.from_json({"cpu": "x"})


def test_host_is_described() -> None:
    found = describe("fp32")
    assert found["runtime"] == "onnxruntime" and found["precision"] == "fp32" and found["cores"] >= 1 and found["cpu"]
    assert found["fingerprint"] == host("fp32").fingerprint != host("int8").fingerprint


def test_vnni_is_read_off_the_instruction_sets() -> None:
    assert not FIXED.has_vnni and replace(FIXED, isa=("avx512f", "avx512_vnni")).has_vnni


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="precision"):
        host("int4")
    with pytest.raises(UserError, match="threads"):
        host(threads=cores() + 1)
