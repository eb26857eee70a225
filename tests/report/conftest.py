"""A made-up but plausible run, whole and in pieces, for the report's tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

LAYERS = [
    ("stem", "conv", 1),
    ("expand", "conv", 6),
    ("depthwise", "conv", 9),
    ("project", "conv", 5),
    ("pool", "pool", 1),
    ("head", "linear", 2),
]


def make_model(name: str, origin: str, accuracy: float, latency_ms: float, *, front: bool = False, **metrics: float) -> dict[str, Any]:
    """A model record as docs/architecture.md writes it."""
    params = metrics.get("params", 40_000 * math.sqrt(latency_ms / 0.1))
    layers = []
    total = sum(weight for *_, weight in LAYERS)
    for i, (layer, kind, weight) in enumerate(LAYERS):
        size = 14 if kind == "conv" else 1
        layers.append(
            {
                "name": f"s{i}.{layer}",
                "kind": kind,
                "in": [16, size, size],
                "out": [24, size, size],
                "kernel": 3,
                "stride": 1,
                "groups": 1,
                "act": "relu",
                "macs": 10_000 * weight,
                "params": 500 * weight,
                "latency_us": round(900 * latency_ms * weight / total, 3),
            }
        )
    return {
        "name": name,
        "origin": origin,
        "arch": {"s1.width": 24, "s1.kernel": 3},
        "file": f"models/{name}/model.onnx",
        "metrics": {
            "accuracy": accuracy,
            "top5": min(1.0, accuracy + 0.02),
            "latency_ms": latency_ms,
            "throughput": 1000 / latency_ms,
            "peak_bytes": round(9000 * (1 + latency_ms)),
            "file_bytes": round(params * 1.2),
            "params": round(params),
            "macs": round(8e6 * latency_ms),
        },
        "latency": {
            "p10": latency_ms * 0.96,
            "p50": latency_ms,
            "p90": latency_ms * 1.12,
            "low": latency_ms * 0.985,
            "high": latency_ms * 1.02,
            "runs": 900,
            "cpu_ms": latency_ms,
            "noisy": False,
        },
        "predicted": {"latency_ms": latency_ms * 1.06, "accuracy": accuracy - 0.02},
        "validation": {"accuracy": accuracy + 0.002, "accuracy_fp32": accuracy + 0.004},
        "test": {"accuracy": accuracy, "top5": 1.0, "accuracy_fp32": accuracy + 0.001},
        "difference": {"max_abs_fp32": 2e-6, "agreement_int8": 0.997},
        "training": {"from": "supernet", "epochs": 10, "seconds": 33.0},
        "front": front,
        "layers": layers,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """A complete run: six searched networks on the front, four hand-designed ones, one random control; two limits, both kept."""
    models = [
        make_model(f"s{i:02d}", "search", accuracy, latency, front=True)
        for i, (accuracy, latency) in enumerate(
            [(0.9417, 0.041), (0.9583, 0.048), (0.9722, 0.061), (0.9778, 0.092), (0.9806, 0.15), (0.9833, 0.27)]
        )
    ]
    ladder = [("tiny", 0.93, 0.052), ("small", 0.955, 0.085), ("medium", 0.9694, 0.16), ("large", 0.9778, 0.33)]
    baselines = [make_model(f"ladder-{name}", "baseline", accuracy, latency) for name, accuracy, latency in ladder]
    baselines.append(make_model("random-0", "control", 0.9528, 0.12))
    return {
        "schema": 1,
        "status": "complete",
        "name": "digits-cpu",
        "created": "2026-01-02T03:04:05Z",
        "seconds": 412.5,
        "data": {
            "name": "digits",
            "classes": [str(i) for i in range(10)],
            "input_shape": [1, 8, 8],
            "train": 1257,
            "validation": 180,
            "test": 360,
        },
        "device": {
            "name": "host",
            "cpu": "Example CPU @ 2.0 GHz",
            "runtime": "onnxruntime",
            "version": "1.23.0",
            "precision": "int8",
            "threads": 1,
            "batch": 1,
        },
        "objectives": ["accuracy", "latency_ms"],
        "limits": [
            {"metric": "latency_ms", "bound": 0.31, "statistic": "p90"},
            {"metric": "peak_bytes", "bound": 16384, "statistic": "p50"},
        ],
        "space": {"name": "mobile", "size": "123456789012345678901234567890", "fingerprint": "a1b2c3"},
        "models": models,
        "baselines": baselines,
        "refused": [{"name": "s06", "reason": "int8 agrees with fp32 on 91 % of the images only; 98 % are asked"}],
        "comparison": {
            "reference": {"accuracy": 0.85, "latency_ms": 0.4},
            "hypervolume": {"search": 0.0431, "ladder": 0.0378},
            "ratio": 1.1402,
            "speedup_at_ladder_best": 3.587,
        },
        "phases": [
            {"name": n, "seconds": s}
            for n, s in [("table", 41.0), ("supernet", 205.3), ("search", 38.2), ("export", 61.0), ("measure", 67.0)]
        ],
        "notes": ["The supernet was trained for 30 epochs."],
        "versions": {"sartor": "0.1.0", "torch": "2.13.0"},
    }


@pytest.fixture
def trials() -> list[dict[str, Any]]:
    """A history of 240 trials whose estimates scatter below the front; every fortieth failed."""
    rng = np.random.default_rng(7)
    found: list[dict[str, Any]] = []
    for number in range(240):
        latency = float(np.exp(rng.uniform(np.log(0.04), np.log(0.4))))
        best = 0.985 - 0.03 * math.exp(-(latency - 0.04) / 0.03)
        accuracy = float(best - abs(rng.normal(0, 0.015)) - 0.08 * math.exp(-number / 40))
        failed = number % 40 == 39
        metrics = {} if failed else {"accuracy": accuracy, "latency_ms": latency, "params": 40_000 * math.sqrt(latency / 0.1)}
        found.append({"number": number, "arch": {}, "metrics": metrics, "status": "failed" if failed else "complete", "seconds": 0.1})
    return found
