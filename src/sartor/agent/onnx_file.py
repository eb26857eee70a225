"""Is it an ONNX model that needs nothing but itself? Answered by walking the protobuf, with the standard library alone.

ONNX Runtime would read other files that a model names (external tensor data), and it takes a second file format of its own; neither is
let through to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sartor.errors import UserError

MAX_DEPTH = 40  # subgraphs in subgraphs
_NODE_LIMIT = 200_000

# field number -> message type, for the fields that can lead to a tensor (onnx.proto3)
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check(data: bytes) -> None:
    """Raises UserError for bytes that are no ONNX model, and for a model whose weights lie in other files."""
    seen: dict[str, int] = {}
    _walk(memoryview(data), "Model", 0, seen)
    if not seen.get("Graph") or not seen.get("Node"):
        raise UserError("expected an ONNX model with a graph, got a file without one")


def _walk(data: memoryview, kind: str, depth: int, seen: dict[str, int]) -> None:
    if depth > MAX_DEPTH:
        raise UserError(f"expected an ONNX model with graphs nested at most {MAX_DEPTH} deep, got a deeper one")
    seen[kind] = seen.get(kind, 0) + 1
    if seen.get("Node", 0) > _NODE_LIMIT:
        raise UserError(f"expected an ONNX model of at most {_NODE_LIMIT} nodes, got more")
    for field, value in _fields(data):
        if kind == "Tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value == 1)):
            raise UserError("expected an ONNX model that holds its weights itself, got one that names another file (external data)")
        inner = _FIELDS[kind].get(field)
        if inner is not None:
            if not isinstance(value, memoryview):
                raise UserError("expected an ONNX model, got a file whose fields are of other types")
            _walk(value, inner, depth + 1, seen)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of each field of a protobuf message: views for length-delimited fields, ints for varints, 0 for fixed ones."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise _broken()
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
        elif wire == 2:
            size, at = _varint(data, at)
            if size > end - at:
                raise _broken()
            yield field, data[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise _broken()
            yield field, 0
        else:
            raise _broken()


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _broken()
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _broken()


def _broken() -> UserError:
    return UserError("expected an ONNX model, got a file that is no protobuf message of that kind, or that is cut off")
