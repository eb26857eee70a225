"""What can be done about a network's memory: the plain plan, the best order, in-place execution, patches; side by side."""

from __future__ import annotations

from typing import Any

from sartor.hardware.arena import place
from sartor.hardware.graph import OpGraph
from sartor.hardware.memory import TINYENGINE, best_order, peak_bytes
from sartor.hardware.patch import choose, plans

_STATES = 5_000  # of the search for the best order: a record of many networks is made


def memory_plan(graph: OpGraph, bytes_per_value: int = 1) -> dict[str, Any]:
    """Bytes of activations for one image under each way to execute a network, as plain JSON.

    peak_bytes: as given, nothing in place. arena_bytes: the same with every tensor placed (16-byte alignment). best_order_bytes: in the
    order that needs least (`exact`: proven). in_place_bytes: that order with TinyEngine's in-place rules. patched: the lowest peak with the
    first ops executed patch by patch, its grid, and the multiply-accumulates done twice for it; None where that saves nothing.
    """
    best = best_order(graph, bytes_per_value, _STATES)
    in_place = best_order(graph, bytes_per_value, _STATES, in_place=TINYENGINE)
    found: dict[str, Any] = {
        "peak_bytes": peak_bytes(graph, bytes_per_value),
        "arena_bytes": place(graph, bytes_per_value).bytes,
        "best_order_bytes": best.peak_bytes,
        "exact": best.exact and in_place.exact,
        "in_place_bytes": in_place.peak_bytes,
        "patched": None,
    }
    patched = choose(plans(graph, bytes_per_value, grids=(2, 3, 4)))
    if patched is not None and patched.peak_bytes < found["peak_bytes"]:
        found["patched"] = {
            "peak_bytes": patched.peak_bytes, "grid": list(patched.grid), "last": graph.ops[patched.last].name,
            "recomputed_macs": patched.recomputed_macs,
        }  # fmt: skip
    return found
