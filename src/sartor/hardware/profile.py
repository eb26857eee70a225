"""Where a model's time goes, from the runtime's own per-node profile."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from sartor.hardware.measure import measure, open_session, synthetic_input


def layer_latencies(file: Path | str, *, threads: int = 1, runs: int = 200, batch: int = 1) -> list[tuple[str, float]]:
    """(node name, µs) in execution order, for one inference of an exported file.

    The profiler counts whole microseconds and costs time itself, so only the shares of its averages are used: they are scaled to the
    median latency measured without it, and the list sums to that. Raises UserError for files the runtime cannot load.
    """
    total_us = measure(file, threads=threads, batch=batch, seconds=0.3).p50 * 1e3
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(file, threads, profile=str(Path(folder) / "profile"))
        feeds = synthetic_input(session, batch)
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time")].append(event["dur"] + 0.5)  # truncated to whole µs
    # The median is robust to interruptions but counts whole µs: average what lies in the middle half.
    means = {name: float(np.mean(np.sort(values)[len(values) // 4 : -(-3 * len(values) // 4)])) for name, values in times.items()}
    scale = total_us / sum(means.values()) if means else 0.0
    return [(name, mean * scale) for name, mean in means.items()]
