"""Evaluation by table look-up: search strategies compared on published measurements, thousands of runs in minutes. Light: numpy only.

Two modes. *Realistic*: the search sees the validation accuracy of a training of 12 epochs, and what it chose is reported by its test
accuracy after 200 epochs. *Oracle*: it sees the reported figure itself, which measures sample efficiency alone, as many papers do.

Of the 15,625 cells 341 do not connect their input to their output. They are constant functions: their accuracies (10 %, as trained) are
reported, but they have no latency, as a compiler removes them and the devices timed next to nothing. As an objective or a limit a missing
latency is never feasible; in no figure do they count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.benchmarks import nasbench201, table
from sartor.errors import UserError
from sartor.goals import Goals, Limit, parse_limit

Mode = Literal["realistic", "oracle"]


@dataclass(frozen=True)
class Task:
    """What can be searched on a table: one data set of NAS-Bench-201, with or without a device."""

    name: str
    data: str
    description: str
    devices: tuple[str, ...]


_COMPLETE = tuple(name for name in table("nasbench201_latency").columns)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("nb201-cifar10", "cifar10", "NAS-Bench-201, CIFAR-10, 15,625 cells", _COMPLETE),
        Task("nb201-cifar100", "cifar100", "NAS-Bench-201, CIFAR-100, 15,625 cells", _COMPLETE),
        # The latencies are those of 32x32 pictures, which ImageNet16-120 does not have.
        Task("nb201-imagenet16", "imagenet16", "NAS-Bench-201, ImageNet16-120, 15,625 cells", ()),
    )
}
REFERENCE_ERROR = 0.5


class Tabular:
    """``Tabular("nb201-cifar10", "raspi4")(arch) -> {"accuracy", "params", "macs", "latency_ms"}``; accuracy is a fraction.

    `goals` are what a search on it follows: accuracy within the limits, if any; else accuracy, and latency where a device is given.
    :meth:`target` gives what is reported of an architecture, `best` is the highest reported accuracy within the limits, and :meth:`gap`
    compares a set of architectures with the true front.

    Args:
        task: a name in :data:`TASKS`.
        device: a latency column; the whole-batch time of the network on pictures of 32x32.
        mode: "realistic" or "oracle", see above.
        limits: such as "latency_ms<=20", "params<=500K", "macs<=100M".

    Raises:
        UserError: for an unknown task, device or mode, a device with a task that it was not measured for, a limit on what the table does
            not have, and limits that no architecture keeps.
    """

    def __init__(self, task: str, device: str | None = None, mode: Mode = "realistic", limits: Sequence[str] = ()) -> None:
        if task not in TASKS:
            raise UserError(f"unknown task '{task}'; tasks: {', '.join(TASKS)}")
        if mode not in ("realistic", "oracle"):
            raise UserError(f"a task is searched in the mode 'realistic' or 'oracle', got '{mode}'")
        self.task, self.device, self.mode = TASKS[task], device, mode
        if device is not None and device not in self.task.devices:
            known = ", ".join(self.task.devices) or "none: the latencies are those of 32x32 pictures"
            raise UserError(f"task '{task}' has no device '{device}'; devices: {known}")
        self.space: Space = nasbench201.SPACE
        parsed = tuple(parse_limit(limit) for limit in limits)
        self.goals = Goals(("accuracy",) if device is None or parsed else ("accuracy", "latency_ms"), parsed)
        data = self.task.data
        self._seen = self._column(f"{data}_val_12") / 100
        self._reported = self._column(f"{data}_test_200") / 100
        self._params, self._macs = self._column(f"{data}_params"), self._column(f"{data}_macs")
        self._latency_ms = None if device is None else np.where(self.connected, table("nasbench201_latency").column(device), np.nan)
        self.feasible = self._within(parsed)

    def _within(self, limits: Sequence[Limit]) -> np.ndarray:
        """Mask `(15625,)` of the architectures that keep all limits."""
        columns = {"params": self._params, "macs": self._macs, "latency_ms": self._latency_ms}
        mask = np.ones(len(self._params), dtype=bool)
        for limit in limits:
            column = columns.get(limit.key)
            if column is None:
                reason = "; give a device" if limit.key == "latency_ms" else ""
                raise UserError(f"task '{self.task.name}': a limit can be on latency_ms, params or macs, got '{limit}'{reason}")
            mask &= column <= limit.bound  # not so where it is missing
        if not mask.any():
            raise UserError(
                f"task '{self.task.name}': no architecture keeps {' and '.join(map(str, limits))}; the search could find nothing"
            )
        return mask

    @staticmethod
    def _column(name: str) -> np.ndarray:
        return table("nasbench201").column(name)

    @property
    def connected(self) -> np.ndarray:
        """Mask `(15625,)` of the architectures whose input reaches their output."""
        return nasbench201.connected()

    def index(self, arch: Mapping[str, int]) -> int:
        """Number of `arch` in the table."""
        return nasbench201.index_of(arch)

    def arch(self, index: int) -> Arch:
        """Inverse of :meth:`index`."""
        return nasbench201.arch_of(index)

    def __call__(self, arch: Mapping[str, int], fidelity: float | None = None) -> dict[str, float]:
        """What the search sees. A `fidelity` below 1 is the training of 12 epochs, all the table has below the full one of 200."""
        row = self.index(arch)
        full = self.mode == "oracle" and (fidelity is None or fidelity >= 1)
        return self._metrics(row, self._reported if full else self._seen)

    def target(self, arch: Mapping[str, int]) -> dict[str, float]:
        """What is reported: the test accuracy after 200 epochs."""
        return self._metrics(self.index(arch), self._reported)

    def _metrics(self, row: int, accuracy: np.ndarray) -> dict[str, float]:
        found = {"accuracy": float(accuracy[row]), "params": float(self._params[row]), "macs": float(self._macs[row])}
        if self._latency_ms is not None and self.connected[row]:
            found["latency_ms"] = float(self._latency_ms[row])
        return found

    # -- what is attainable --------------------------------------------------------------------------------------------

    @cached_property
    def best(self) -> float:
        """Highest reported accuracy within the limits, a fraction."""
        return float(self._reported[self.feasible].max())

    @cached_property
    def reference(self) -> np.ndarray:
        """Reference point of hypervolumes (error, latency_ms): an error of 0.5, and the connected cells' 99th percentile latency."""
        return np.array([REFERENCE_ERROR, float(np.percentile(self._latencies[self.connected], 99))])

    @property
    def _latencies(self) -> np.ndarray:
        if self._latency_ms is None:
            raise UserError(f"task '{self.task.name}' without a device has one objective; give a device")
        return self._latency_ms

    @cached_property
    def points(self) -> np.ndarray:
        """Reported (error, latency_ms) of every architecture `(15625, 2)`; +inf where it is not connected."""
        return self._points(self._reported)

    @cached_property
    def seen_points(self) -> np.ndarray:
        """The (error, latency_ms) that the search sees, like :attr:`points`."""
        return self._points(self._reported if self.mode == "oracle" else self._seen)

    def _points(self, accuracy: np.ndarray) -> np.ndarray:
        found = np.stack([1 - accuracy, self._latencies], axis=1)
        found[~self.connected] = np.inf
        return found

    @property
    def seen(self) -> np.ndarray:
        """The accuracy `(15625,)` that the search sees at full fidelity, fractions."""
        return self._reported if self.mode == "oracle" else self._seen

    @property
    def reported(self) -> np.ndarray:
        """The accuracy `(15625,)` that is reported, fractions."""
        return self._reported

    @cached_property
    def best_hypervolume(self) -> float:
        """Hypervolume of the true front."""
        return pareto.hypervolume(self.points, self.reference)

    def gap(self, rows: Sequence[int] | np.ndarray) -> float:
        """Hypervolume gap `1 - HV / HV(true front)` of a set of architectures (numbers in the table): 0 is the true front, 1 is nothing.

        In realistic mode the set is first reduced to its front by what the search saw, as one has to choose by that.
        """
        rows = np.asarray(rows, dtype=int)
        if len(rows) == 0:
            return 1.0
        chosen = rows[pareto.front(self.seen_points[rows])]
        return float(1 - pareto.hypervolume(self.points[chosen], self.reference) / self.best_hypervolume) if len(chosen) else 1.0
