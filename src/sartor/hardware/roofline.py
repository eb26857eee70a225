"""The roofline model of latency: what a device's peak and bandwidth allow, corrected by a handful of measured networks.

    T_op = overhead + max(FLOPs / (peak * utilisation), bytes / (bandwidth * efficiency))

after Williams, Waterman, Patterson 2009, "Roofline: an insightful visual performance model for multicore architectures", with
peak = FLOPs per cycle * f * cores of the precision, and a network's latency = call + sum of T_op over the ops that the runtime runs
(`sartor.hardware.fusion`). Utilisation is one figure per family of convolutions, less the SIMD lanes that a width leaves empty. Six
parameters, all physical, so that ten networks are enough to fit them; before that they are priors, and the model says so.

An op whose tensors and weights fit into the last cache (an accelerator's buffer) does not wait for main memory but for that cache, which
gives each core a vector a cycle (the cache-aware roofline of Ilic, Pratas, Sousa 2014). A pooling window costs as a depthwise one of its
size does: as many steps, and no more reuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import ceil, exp, log, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.calibrate import Quality, quality
from sartor.hardware.fusion import as_run
from sartor.hardware.graph import BYTES, Op, OpGraph, Shape

if TYPE_CHECKING:
    from sartor.hardware.spec import DeviceSpec

FAMILIES = ("dense", "pointwise", "depthwise")
MOST_NETWORKS = 10  # what the model is meant to be calibrated on; more are taken, but then a table or a learned model is better
_NOISE = 0.05  # standard deviation of a measured latency, relative
_SPREAD = 1.0  # standard deviation of the logarithm of every prior


@dataclass(frozen=True)
class Parameters:
    """What calibration fits. The defaults are priors: orders of magnitude seen on CPUs, not figures of any device."""

    dense: float = 0.5  # utilisation of convolutions with a window and full channels
    pointwise: float = 0.4  # of 1x1 convolutions and linear layers
    depthwise: float = 0.1  # of depthwise and grouped convolutions
    efficiency: float = 0.5  # share of the bandwidth that is reached; above 1 where activations stay in caches
    op_us: float = 2.0  # fixed cost of one op
    call_us: float = 10.0  # fixed cost of one inference

    def vector(self) -> np.ndarray:
        """Logarithms of the six figures (6,), in the order of the fields."""
        return np.log(list(asdict(self).values()))

    @classmethod
    def of(cls, vector: np.ndarray) -> Parameters:
        return cls(*(exp(float(value)) for value in vector))


# Against a peak and a bandwidth that the runtime itself reached: dense convolutions come near it.
REACHED = Parameters(dense=0.7, pointwise=0.6, depthwise=0.15, efficiency=1.0)


@dataclass(frozen=True)
class OpTime:
    """Modelled time of one executed op. `bound` is what decides it: compute, memory or overhead (more than half of the time)."""

    op: Op
    us: float
    compute_us: float
    memory_us: float
    flops: float
    bytes: float
    bound: str

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Roofline:
    """A device in one precision and thread count.

    `peak_ops_per_s` and `bandwidth_bytes_per_s` are those of the cores in use; `lanes` is the width of a vector in values (1: none).
    `quality` is what leaving one network out of the calibration gave, None before any. It has the reading half of
    `sartor.hardware.table.LatencyTable` (`price`, `session_ms`, `predict`), so that either can stand where a price is needed.
    """

    peak_ops_per_s: float
    bandwidth_bytes_per_s: float
    precision: str = "fp32"
    runtime: str = "onnxruntime"
    lanes: int = 1
    parameters: Parameters = Parameters()
    quality: Quality | None = None
    networks: int = 0  # measured networks in the calibration
    name: str = ""
    cache_bytes: int = 0  # of the last cache, what the cores in use have of it; 0: not known, all goes through main memory
    cache_bytes_per_s: float = 0.0
    _prior: Parameters | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in BYTES:
            raise UserError(f"expected precision to be one of {', '.join(BYTES)}, got {self.precision!r}")
        if not (self.peak_ops_per_s > 0 and self.bandwidth_bytes_per_s > 0 and self.lanes >= 1):
            raise UserError(
                f"expected a positive peak, bandwidth and lanes, got {self.peak_ops_per_s}, {self.bandwidth_bytes_per_s}, {self.lanes}"
            )

    @classmethod
    def of(cls, spec: DeviceSpec, precision: str = "int8", threads: int = 1, runtime: str | None = None) -> Roofline:
        """The uncalibrated model of a device file. Bandwidth is shared: one core is given all of it up to its own peak's share.

        Raises UserError when the file has no peak for the precision or no bandwidth, and for more threads than cores.
        """
        peak, bandwidth = spec.peak_ops_per_s.get(precision), spec.bandwidth_bytes_per_s
        if peak is None or bandwidth is None:
            missing = f"peak_ops_per_s.{precision}" if peak is None else "bandwidth_bytes_per_s"
            raise UserError(f"expected {missing} of the device {spec.name} for its roofline, got none: add it to the device file")
        if not 1 <= threads <= spec.cores and spec.threaded:
            raise UserError(f"expected threads between 1 and the {spec.cores} cores of {spec.name}, got {threads}")
        share = spec.share(threads)
        prior = (
            _shares(spec, precision)
            if spec.overhead_us is None
            else replace(_shares(spec, precision), op_us=max(spec.overhead_us, 0.01), call_us=5 * max(spec.overhead_us, 0.01))
        )
        near, near_per_s = _cache(spec, precision, threads if spec.threaded else spec.cores)
        return cls(
            peak * share, bandwidth, precision, runtime or spec.runtime, spec.lanes.get(precision, 1), prior,
            name=spec.name, cache_bytes=near, cache_bytes_per_s=near_per_s,
        )  # fmt: skip

    @property
    def calibrated(self) -> bool:
        return self.networks > 0

    # ---------------------------------------------------------------------------------------------- one op

    def time(self, op: Op) -> OpTime:
        """Modelled time of one op as it is executed (not fused any further)."""
        flops, effective, family = self._work(op)
        moved = op.traffic(BYTES[self.precision], BYTES[self.precision])
        p = self.parameters
        compute = 1e6 * effective / (self.peak_ops_per_s * getattr(p, family)) if effective else 0.0
        near = moved <= self.cache_bytes
        memory = 1e6 * moved / ((self.cache_bytes_per_s if near else self.bandwidth_bytes_per_s) * p.efficiency)
        total = p.op_us + max(compute, memory)
        bound = "overhead" if p.op_us > total / 2 else "compute" if compute >= memory else "memory"
        return OpTime(op, total, compute, memory, flops, moved, bound)

    def _work(self, op: Op) -> tuple[float, float, str]:
        """FLOPs, FLOPs with the steps of a pool and the lanes that stay empty counted in, and the family of an op."""
        flops = 2.0 * op.macs
        if op.kind in ("pool", "maxpool", "avgpool"):
            steps = prod(op.in_shape) if op.kind == "pool" else prod(op.out_shape) * op.kernel**2
            return 0.0, 2.0 * steps, "depthwise"
        if not flops:
            return 0.0, 0.0, FAMILIES[0]
        width = op.out_shape[0] if op.kind in ("conv", "linear") else self.lanes
        filled = width / (ceil(width / self.lanes) * self.lanes)
        family = "pointwise" if op.kernel == 1 or op.kind != "conv" else "dense"
        return flops, flops / filled, "depthwise" if op.groups > 1 else family

    def lower(self, graph: OpGraph) -> OpGraph:
        """The ops that the device's runtime runs; the graph itself where no rules are known for the runtime."""
        return as_run(graph, self.runtime, self.precision)

    def times(self, graph: OpGraph) -> list[OpTime]:
        """Every executed op of a network with its time."""
        return [self.time(op) for op in self.lower(graph)]

    # ---------------------------------------------------------------------------------------------- as a price

    @cached_property
    def _prices(self) -> dict[str, float]:
        return {}

    def price(self, op: Op) -> float:
        """Modelled latency of one op of a graph in ms, with all it is split into."""
        known = self._prices.get(op.signature)
        if known is None:
            alone = OpGraph((replace(op, inputs=(-1,) * max(1, len(op.inputs))),), op.in_shape)
            known = self._prices[op.signature] = sum(one.us for one in self.times(alone)) / 1e3
        return known

    def session_ms(self, input_shape: Shape) -> float:
        """What an inference costs apart from its ops, in ms."""
        return self.parameters.call_us / 1e3

    def predict(self, graph: OpGraph | Sequence[Op]) -> float:
        """Modelled latency in ms of a network, batch 1."""
        whole = graph if isinstance(graph, OpGraph) else OpGraph(tuple(graph), graph[0].in_shape)
        return sum(one.us for one in self.times(whole)) / 1e3 + self.session_ms(whole.input_shape)

    # ---------------------------------------------------------------------------------------------- calibration

    def calibrate(self, pairs: Sequence[tuple[OpGraph, float]], *, leave_one_out: bool = True) -> Roofline:
        """The model fitted on (graph, measured latency in ms) of whole networks: at most a posteriori of log-normal errors and priors.

        Its `quality` is that of every network predicted by a fit without it, None below three or without `leave_one_out`. Raises
        UserError without pairs, or for a latency that is not positive.
        """
        if not pairs or any(not latency > 0 for _, latency in pairs):
            raise UserError(f"expected measured networks with positive latencies, got {[latency for _, latency in pairs]}")
        prior = self._prior or self.parameters
        nets = [Workload.of(self, graph) for graph, _ in pairs]
        measured_us = np.array([1e3 * latency for _, latency in pairs])
        fitted = _fit(nets, measured_us, prior)
        found = quality(self.left_out(pairs), measured_us / 1e3) if leave_one_out and len(pairs) >= 3 else None
        return replace(self, parameters=fitted, quality=found, networks=len(pairs), _prior=prior)

    def left_out(self, pairs: Sequence[tuple[OpGraph, float]]) -> np.ndarray:
        """Latency in ms of each network of `calibrate`'s pairs (n,) by a fit without it."""
        prior = self._prior or self.parameters
        nets = [Workload.of(self, graph) for graph, _ in pairs]
        measured_us, rows = np.array([1e3 * latency for _, latency in pairs]), range(len(pairs))
        fits = [_fit([nets[i] for i in rows if i != row], np.delete(measured_us, row), prior) for row in rows]
        return np.array([net.us(fit.vector()) / 1e3 for net, fit in zip(nets, fits, strict=True)])

    def choose(self, graphs: Sequence[OpGraph], count: int = MOST_NETWORKS) -> list[int]:
        """Which networks to measure: greedily D-optimal for the parameters (Fedorov 1972), the most informative first.

        Raises UserError for more networks than there are.
        """
        if not 1 <= count <= len(graphs):
            raise UserError(f"expected to choose 1 to {len(graphs)} networks, got {count}")
        at = self.parameters.vector()
        rows = np.array([Workload.of(self, graph).gradient(at) for graph in graphs]) / _NOISE
        information, chosen = np.eye(len(at)) / _SPREAD**2, list[int]()
        for _ in range(count):
            gain = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(information), rows)
            gain[chosen] = -1
            best = int(np.argmax(gain))
            chosen.append(best)
            information += np.outer(rows[best], rows[best])
        return chosen

    def to_json(self) -> dict[str, Any]:
        record = {key: getattr(self, key) for key in ("peak_ops_per_s", "bandwidth_bytes_per_s", "precision", "runtime", "lanes",
                                                      "networks", "name", "cache_bytes", "cache_bytes_per_s")}  # fmt: skip
        prior = None if self._prior is None else asdict(self._prior)
        found = None if self.quality is None else asdict(self.quality)
        return {**record, "parameters": asdict(self.parameters), "prior": prior, "quality": found}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Roofline:
        """Raises UserError when a field is missing or of a wrong kind."""
        try:
            given = dict(record)
            parameters, prior, found = Parameters(**given.pop("parameters")), given.pop("prior", None), given.pop("quality")
            first = None if prior is None else Parameters(**prior)
            return cls(**given, parameters=parameters, quality=None if found is None else Quality(**found), _prior=first)
        except (KeyError, TypeError) as error:
            raise UserError(f"expected a roofline as to_json writes it, got an error at {error}") from None


@dataclass(frozen=True)
class Workload:
    """A network as the arrays that its time follows from: per executed op ideal compute and memory times in µs, and its family."""

    compute: np.ndarray  # (ops,) at utilisation 1
    memory: np.ndarray  # (ops,) at efficiency 1
    family: np.ndarray  # (ops,) index into FAMILIES

    @classmethod
    def of(cls, model: Roofline, graph: OpGraph) -> Workload:
        ideal = replace(model, parameters=Parameters(1, 1, 1, 1, 1, 1))
        times = ideal.times(graph)
        family = [FAMILIES.index(model._work(one.op)[2]) for one in times]
        return cls(np.array([one.compute_us for one in times]), np.array([one.memory_us for one in times]), np.array(family, int))

    def us(self, vector: np.ndarray) -> float:
        """Time in µs for the logarithms of the parameters (6,), see `Parameters.vector`: as `Roofline.predict`, many times faster."""
        values = np.exp(vector)
        busy = np.maximum(self.compute / values[self.family], self.memory / values[3])
        return float(busy.sum() + values[4] * len(busy) + values[5])

    def gradient(self, vector: np.ndarray, step: float = 1e-3) -> np.ndarray:
        """Of the logarithm of the time, by central differences."""
        moves = np.eye(len(vector)) * step
        return np.array([(log(self.us(vector + move)) - log(self.us(vector - move))) / (2 * step) for move in moves])


def _shares(spec: DeviceSpec, precision: str) -> Parameters:
    """Priors of what is reached of the file's figures: nearly all of those that `sartor devices probe` measured, which were reached."""
    from sartor.hardware.probing import PROBED

    peak, bandwidth = (
        REACHED if PROBED in (spec.source(path) or "") else Parameters()
        for path in (f"peak_ops_per_s.{precision}", "bandwidth_bytes_per_s")
    )
    return replace(peak, efficiency=bandwidth.efficiency)


def _cache(spec: DeviceSpec, precision: str, cores: int) -> tuple[int, float]:
    """Bytes of the last cache (of an accelerator's buffer) for so many cores, and what they get out of it: a vector a cycle each.

    (0, 0.0) where the file does not tell, and on a microcontroller, whose main memory is that buffer.
    """
    lanes = spec.lanes.get(precision)
    last = max(spec.caches, key=lambda cache: cache.level, default=None)
    size = (spec.sram_bytes or 0) if last is None else last.bytes * (1 if last.shared else cores)
    if spec.kind == "mcu" or not size or not lanes or not spec.frequencies:
        return 0, 0.0
    return size, lanes * BYTES[precision] * cores * 1e6 * spec.frequencies[-1].mhz


def _fit(nets: Sequence[Workload], measured_us: np.ndarray, prior: Parameters) -> Parameters:
    from scipy.optimize import least_squares

    centre, target = prior.vector(), np.log(measured_us)
    counts = np.array([len(net.compute) for net in nets])
    owner = np.repeat(np.arange(len(nets)), counts)
    compute, memory, family = (np.concatenate([getattr(net, name) for net in nets]) for name in ("compute", "memory", "family"))

    def residuals(vector: np.ndarray) -> np.ndarray:  # `Workload.us` of all networks at once
        values = np.exp(vector)
        busy = np.bincount(owner, np.maximum(compute / values[family], memory / values[3]), len(nets))
        predicted = np.log(busy + values[4] * counts + values[5])
        return np.concatenate([(predicted - target) / _NOISE, (vector - centre) / _SPREAD])

    # The maximum in the model has kinks, and one start may stop at one: a few, spread around the prior, and the best of them.
    shifts = [np.zeros(6), *(sign * np.eye(6)[:5].sum(0) * 0.7 for sign in (-1, 1)), np.array([0.5, 0.5, 0.5, -0.5, 0, 0])]
    found = [least_squares(residuals, centre + shift, method="trf", max_nfev=200) for shift in shifts]
    return Parameters.of(min(found, key=lambda one: one.cost).x)
