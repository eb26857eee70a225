"""What a device reaches: peak, bandwidth and fixed costs, measured on four op kernels in a few seconds.

The figures are reachable ones, in the runtime's own kernels: a large convolution gives the peak, a pool over a tensor that fits in no
cache the bandwidth, one over eight small windows the cost of an op, an empty session that of a call. They are where `Roofline` starts
from on a machine whose data sheet nobody has read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sartor.hardware.graph import BYTES, Op
from sartor.hardware.roofline import REACHED, Roofline

if TYPE_CHECKING:
    from sartor.hardware._lower import Quantize
    from sartor.hardware.target import Bench

LARGE = (
    Op("conv", (128, 28, 28), (128, 28, 28), kernel=3),
    Op("conv", (256, 28, 28), (256, 28, 28), kernel=1),
)
# Pools: nothing fuses them into a convolution, and they hardly compute. The large one reads 33 MB and writes 8 in fp32, a quarter in int8.
STREAM = Op("maxpool", (16, 724, 724), (16, 362, 362), kernel=2, stride=2)
TINY = Op("maxpool", (8, 2, 2), (8, 1, 1), kernel=2, stride=2)
_TINY_COPIES = 64  # together they take longer than the session itself, whose time is taken off


def probe_roofline(
    precision: str = "fp32", threads: int = 1, *, bench: Bench | None = None, quantize: Quantize | None = None, lanes: int = 1,
    seconds: float = 0.1,
) -> Roofline:  # fmt: skip
    """The roofline of a device that can be measured, from its own peak, bandwidth and fixed costs; not calibrated on any network.

    `bench` is the device (default: this machine with ONNX Runtime). Utilisations are priors relative to the reachable peak.
    """
    from sartor.hardware._lower import lower
    from sartor.hardware._timing import Stopwatch
    from sartor.hardware.local import LocalDevice

    device: Bench = bench or LocalDevice()
    watch = Stopwatch(device, threads, seconds)
    us = {}
    for op in (*LARGE, STREAM, TINY):
        (kernel,) = lower([op], precision, quantize, bench=device)
        if op is TINY:
            us[op.signature] = max(watch.each(kernel, _TINY_COPIES), 1e-3)
        else:
            (time,) = watch.times([(kernel, op.macs)])
            us[op.signature] = max(time.us, 1e-3)
    peak = max(2e6 * op.macs / us[op.signature] for op in LARGE)
    size = BYTES[precision]
    bandwidth = 1e6 * STREAM.traffic(size, size) / us[STREAM.signature]
    overhead = us[TINY.signature]
    prior = replace(REACHED, op_us=overhead, call_us=max(watch.constant_us, 0.1))
    return replace(Roofline(peak, bandwidth, precision, "onnxruntime", lanes, name="host" if bench is None else ""), parameters=prior)
