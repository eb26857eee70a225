"""Op graphs, costs, memory, measurement and the latency table. Knows op graphs and files; knows no search space."""

from __future__ import annotations

from sartor.hardware.cost import CostModel, Factor, all_ops, cost
from sartor.hardware.graph import Op, OpGraph, trace
from sartor.hardware.memory import best_order, peak_bytes, weight_bytes

__all__ = ["CostModel", "Factor", "Op", "OpGraph", "all_ops", "best_order", "cost", "peak_bytes", "trace", "weight_bytes"]
