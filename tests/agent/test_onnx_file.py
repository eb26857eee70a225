from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.agent.onnx_file import MAX_DEPTH, check
from sartor.errors import UserError

from .running import endless, hungry, model, outside


@cache
def whole() -> bytes:
    return endless()  # has a subgraph


@pytest.mark.parametrize("make", [model, endless, hungry])
def test_models_that_hold_everything_pass(make: object) -> None:
    check(make())  # type: ignore[operator]  # one of the functions above


def test_a_network_with_its_weights_passes(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from sartor.export.onnx import to_onnx

    torch.manual_seed(0)
    check(to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (3, 8, 8), tmp_path / "net.onnx").read_bytes())


def test_weights_in_other_files_are_refused() -> None:
    with pytest.raises(UserError, match="external data"):
        check(outside())


def test_weights_in_other_files_are_found_in_subgraphs_and_attributes() -> None:
    import onnx
    from onnx import TensorProto, helper

    hidden = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4], data_location=TensorProto.EXTERNAL)
    loop = onnx.load_from_string(endless())
    loop.graph.node[0].attribute[0].g.initializer.append(hidden)
    constant = model(4, [helper.make_node("Constant", [], ["y"], value=hidden)])
    sparse = onnx.load_from_string(model())
    sparse.graph.sparse_initializer.add().values.CopyFrom(hidden)
    function = onnx.load_from_string(model())
    function.functions.add(name="f").node.append(helper.make_node("Constant", [], ["y"], value=hidden))
    for data in (loop.SerializeToString(), constant, sparse.SerializeToString(), function.SerializeToString()):
        with pytest.raises(UserError, match="external data"):
            check(data)


def test_a_second_graph_appended_is_read_too() -> None:
    """Protobuf merges a repeated field into the first, so a tail can add tensors to a harmless model."""
    with pytest.raises(UserError, match="external data"):
        check(model() + outside())


def test_deep_nesting_is_refused() -> None:
    def field(number: int, data: bytes) -> bytes:
        size, out = len(data), bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([*out, size]) + data

    inner = b""
    for _ in range(MAX_DEPTH):
        inner = field(1, field(5, field(6, inner)))  # node: attribute: graph
    with pytest.raises(UserError, match="nested"):
        check(field(7, inner))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(100), b"ORTM" * 30, b"\x08\x08", b"\x80cposix\nsystem\n"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="ONNX"):
        check(data)


@given(st.binary(max_size=400))
def test_junk_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(UserError, match="expected an ONNX model"):
        check(data)


@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever byte is changed, the walk ends with the sentence or without, never with another exception."""
    damaged = bytearray(whole())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        check(cut)
    except UserError as error:
        assert "ONNX" in str(error)


def test_the_arrays_of_inputs_survive_and_nothing_is_unpickled() -> None:
    from sartor.hardware.arrays import pack_arrays, unpack_arrays

    arrays = {"a/b:0": np.arange(6, dtype=np.uint8).reshape(2, 3), "file": np.zeros((), np.float32), "names": np.ones((1, 0))}
    back = unpack_arrays(pack_arrays(arrays))
    assert list(back) == list(arrays)
    assert all(back[name].dtype == arrays[name].dtype and np.array_equal(back[name], arrays[name]) for name in arrays)
    import io

    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(["a"]), a0=np.array([{"an": "object"}], dtype=object))
    for bad in (buffer.getvalue(), b"PK\x03\x04" + bytes(50), b"", pack_arrays(arrays)[:-40]):
        with pytest.raises(UserError, match="npz"):
            unpack_arrays(bad)
