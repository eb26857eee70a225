"""Op-level predictor: the latency of one operation from what it is, learned from measured operations.

`t = f([kind, H, W, Cin, Cout, K, S, groups])` as one Gaussian process for each kind on the logarithms of sizes and of the latency, around a
line in them: work, traffic and the sizes themselves are products, so a roofline is piecewise linear there and the process bends the line.
Kinds that were not measured are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph
from sartor.predictors.kernel import KernelModel, fit_kernel
from sartor.predictors.latency.additive import Additive, fit_additive
from sartor.predictors.latency.features import kind_of, moved_values

Floats = NDArray[np.float64]
FEWEST = 5  # measured ops of a kind that are needed to learn it
_LINE = 0.5  # ridge penalty on the line, in units of the standardised features' deviation


def op_features(ops: Sequence[Op]) -> Floats:
    """Logarithms (base 2) of sizes, work and traffic of ops, `(n, 9)`."""
    rows = [
        (
            op.in_shape[1] * op.in_shape[2],
            op.out_shape[1] * op.out_shape[2],
            op.in_shape[0],
            op.out_shape[0],
            op.kernel,
            op.stride,
            op.in_shape[0] / op.groups,
            max(op.macs, 1),
            moved_values(op),
        )
        for op in ops
    ]
    return np.log2(np.array(rows, dtype=float).reshape(len(ops), 9))


@dataclass(frozen=True)
class _Kind:
    """A line in standardised features, and the process of what it leaves."""

    shift: Floats
    scale: Floats
    line: Floats
    process: KernelModel | None

    @staticmethod
    def fit(features: Floats, log_latency: Floats) -> _Kind:
        shift, deviation = features.mean(0), features.std(0)
        scale = np.where(deviation > 1e-9, deviation, np.inf)  # what never varied has no say
        x = (features - shift) / scale
        mean = float(log_latency.mean())
        slopes = np.linalg.solve(x.T @ x + _LINE * np.eye(x.shape[1]), x.T @ (log_latency - mean))
        left = log_latency - mean - x @ slopes
        varied = len(left) > 2 * FEWEST and float(np.abs(x).max()) > 0 and float(left.std()) > 1e-9
        return _Kind(shift, scale, np.concatenate([[mean], slopes]), fit_kernel("gp", x, left) if varied else None)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        x = (features - self.shift) / self.scale
        mean = self.line[0] + x @ self.line[1:]
        if self.process is None:
            return mean, np.full(len(x), 0.1)
        bend, deviation = self.process.predict(x)
        return mean + bend, deviation


@dataclass(frozen=True)
class OpModel:
    """Fitted op-level predictor; made by :func:`fit_ops`.

    Attributes:
        kinds: fitted model by kind (see :func:`sartor.predictors.latency.features.kind_of`).
        whole: what the sum over ops becomes in a whole network, by kind and with a fixed cost; None without :meth:`calibrated`.
        measured: ms by signature, of ops that need no model; see :meth:`with_measured`.
    """

    kinds: Mapping[str, _Kind]
    whole: Additive | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    _others: tuple[str, ...] = ()  # kinds of which too few were measured for a model

    def with_measured(self, ops: Sequence[Op], latency_ms: Floats) -> OpModel:
        """The same, with the latencies of these ops as they were measured; they may be of kinds that were not learned."""
        known = {op.signature: float(ms) for op, ms in zip(ops, latency_ms, strict=True)}
        return replace(self, measured=known, _others=tuple(sorted({kind_of(op) for op in ops} - set(self.kinds))))

    def knows(self, op: Op) -> bool:
        """Whether the op was measured, or is of a kind that was learned."""
        return op.signature in self.measured or kind_of(op) in self.kinds

    def op_latency(self, ops: Sequence[Op]) -> tuple[Floats, Floats]:
        """Latency of ops in isolation in ms `(n,)`, and its relative deviation `(n,)`.

        Raises:
            UserError: for a kind of op that was not measured.
        """
        mean = np.log([self.measured.get(op.signature, 1.0) for op in ops])
        deviation = np.zeros(len(ops))
        names = ["" if op.signature in self.measured else kind_of(op) for op in ops]
        unknown = sorted(set(names) - set(self.kinds) - {""})
        if unknown:
            raise UserError(f"expected ops of kinds that were measured ({', '.join(self.kinds)}), got {unknown[0]}: measure some of these")
        features = op_features(ops)
        for kind in set(names) - {""}:
            rows = np.array([i for i, name in enumerate(names) if name == kind])
            mean[rows], deviation[rows] = self.kinds[kind].predict(features[rows])
        return np.exp(mean), deviation

    def price(self, op: Op) -> float:
        """Latency of one op in isolation in ms, for :func:`sartor.hardware.cost`."""
        return float(self.op_latency([op])[0][0])

    def predict(self, graphs: Sequence[OpGraph]) -> Floats:
        """Latency of networks in ms `(n,)`: the sum over their ops, as corrected by :meth:`calibrated`."""
        columns = self._columns(graphs)
        return columns[:, 1:].sum(1) if self.whole is None else self.whole.predict({"all": columns})[0]

    def calibrated(self, graphs: Sequence[OpGraph], latency_ms: Floats) -> OpModel:
        """The same ops, with a factor for each kind and a fixed cost learned from whole networks.

        Args:
            graphs: measured networks, ten or more.
            latency_ms: their latencies `(n,)`.
        """
        return replace(self, whole=fit_additive({"all": self._columns(graphs)}, latency_ms))

    def _columns(self, graphs: Sequence[OpGraph]) -> Floats:
        """1, and the summed latency of the ops of each kind, `(n, 1 + kinds)`."""
        order = [*self.kinds, *self._others]
        ops = [op for graph in graphs for op in graph]
        prices = self.op_latency(ops)[0] if ops else np.zeros(0)
        columns = np.zeros((len(graphs), 1 + len(order)))
        columns[:, 0] = 1.0
        owners = np.repeat(np.arange(len(graphs)), [len(graph) for graph in graphs])
        np.add.at(columns, (owners, np.array([1 + order.index(kind_of(op)) for op in ops], dtype=int)), prices)
        return columns


def fit_ops(ops: Sequence[Op], latency_ms: Floats) -> OpModel:
    """Learn the latency of operations from measured ones, a few dozen of each kind.

    Args:
        ops: measured operations.
        latency_ms: their latencies in isolation `(n,)`.

    Raises:
        UserError: for latencies that are not positive, and kinds with too few measurements.
    """
    y = np.asarray(latency_ms, dtype=float)
    if y.shape != (len(ops),) or not len(ops):
        raise UserError(f"expected one latency for each of the {len(ops)} ops, got an array of shape {y.shape}")
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise UserError("expected positive latencies of ops in ms, got some that are zero, negative or missing: leave them out")
    names, features = np.array([kind_of(op) for op in ops]), op_features(ops)
    found = sorted(set(names.tolist()))
    rare = [kind for kind in found if (names == kind).sum() < FEWEST]
    if rare:
        raise UserError(f"expected at least {FEWEST} measured ops of a kind, got {(names == rare[0]).sum()} of {rare[0]}: measure more")
    return OpModel({kind: _Kind.fit(features[names == kind], np.log(y[names == kind])) for kind in found})
