"""What a node of an ONNX file reads: its inputs, and the values of the graph around it that its subgraphs (If, Loop, Scan) use by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def reads(node: onnx.NodeProto) -> list[str]:
    """Names of the values that a node reads: its inputs, and once each those that its subgraphs take from around it."""
    captured = dict.fromkeys(name for attribute in node.attribute for name in _captured(attribute))
    return [*(name for name in node.input if name), *captured]


def _captured(attribute: onnx.AttributeProto) -> list[str]:
    found: list[str] = []
    for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
        known = {value.name for value in (*graph.input, *graph.initializer)}
        for node in graph.node:
            found += [name for name in reads(node) if name not in known]
            known.update(node.output)
        found += [value.name for value in graph.output if value.name not in known]
    return found
