"""The memory plans of one network side by side."""

from __future__ import annotations

import json

from sartor.hardware import peak_bytes, trace
from sartor.hardware.schedule import memory_plan

from .nets import random_net


def test_plans_of_a_network_are_ordered_as_they_must_be() -> None:
    saved = 0
    for seed in range(4):
        graph = trace(*random_net(seed))
        found = memory_plan(graph)
        assert json.loads(json.dumps(found)) == found
        assert found["in_place_bytes"] <= found["best_order_bytes"] <= found["peak_bytes"] == peak_bytes(graph) <= found["arena_bytes"]
        assert found["exact"]
        patched = found["patched"]
        assert patched is None or (patched["peak_bytes"] < found["peak_bytes"] and patched["recomputed_macs"] >= 0)
        assert memory_plan(graph, 4)["best_order_bytes"] == 4 * found["best_order_bytes"]
        saved += patched is not None
    assert saved
