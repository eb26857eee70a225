"""A small version of ``benchmarks/latency_targets.py table``: on NAS-Bench-201 a target given to a gradient method is kept and used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "latency_targets.py"


def benchmark() -> Any:
    if not PATH.is_file():
        pytest.skip("the benchmarks are not part of this distribution")
    spec = importlib.util.spec_from_file_location("latency_targets", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["darts", "gdas", "drnas", "proxylessnas"])
def test_every_target_is_kept_used_and_better_than_chance(method: str) -> None:
    from sartor.benchmarks.nasbench201 import CHOICES

    module = benchmark()
    known = module.tables("raspi4")
    connected = known["connected"] > 0
    latencies = known["latency_ms"][connected]
    for target in np.geomspace(1.3 * latencies.min(), 0.7 * latencies.max(), 2):
        arch = module.on_table(method, known, float(target), steps=150, seed=0)["arch"]
        at = tuple(arch[c] for c in CHOICES)
        assert connected[at] and 0.85 * target <= known["latency_ms"][at] <= target
        rivals = known["test_error"][connected & (known["latency_ms"] <= target)]
        assert known["test_error"][at] < rivals.mean()
