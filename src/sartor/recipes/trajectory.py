"""The course of a differentiable search, epoch by epoch: what stops and diagnoses read, what reports plot, what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from sartor.arch import Arch


@dataclass(frozen=True)
class Snapshot:
    """The state at the end of one epoch.

    Attributes:
        epoch: counted from 1.
        step: weight steps so far.
        fraction: spent share of the budget.
        arch: the architecture that the policy stands for.
        strengths: choice -> {option index: weight}, edge weights included; settled choices are left out.
        train_loss, validation_loss: mean cross-entropy over the epoch's weight steps and architecture steps, of the mixture that was run.
        train_accuracy, validation_accuracy: likewise, fractions. The validation figures are None in epochs without architecture steps.
        eigenvalue: dominant eigenvalue of the validation loss's Hessian in the architecture parameters, if it was asked for.
        metrics: of `arch`, if an evaluator was given.
    """

    epoch: int
    step: int
    fraction: float
    arch: Arch
    strengths: Mapping[str, Mapping[int, float]]
    train_loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    eigenvalue: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        strengths = {name: [[index, weight] for index, weight in row.items()] for name, row in self.strengths.items()}
        return {**asdict(self), "arch": dict(self.arch), "strengths": strengths, "metrics": dict(self.metrics)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Snapshot:
        strengths = {name: {int(index): float(weight) for index, weight in row} for name, row in content["strengths"].items()}
        return Snapshot(**{**content, "arch": Arch(content["arch"]), "strengths": strengths})


@dataclass(frozen=True)
class Verdict:
    """A search should end: why, and the epoch whose architecture is to be taken."""

    reason: str
    epoch: int


#: Metrics of the architecture that is derived after an epoch, by the network as it is then trained (a method searches with a copy):
#: (network, architecture) -> metrics. The doctor reads "accuracy", see :func:`sartor.recipes.evaluate.shared_accuracy`.
EvaluateShared = Callable[[nn.Module, Arch], Mapping[str, float]]


def restored(snapshots: Sequence[Mapping[str, Any]], on_epoch: Callable[[Snapshot], None] | None) -> list[Snapshot]:
    """The epochs of a checkpoint; `on_epoch` is told of them first, so that it has seen what it would have seen without a break."""
    found = [Snapshot.from_json(content) for content in snapshots]
    if on_epoch is not None:
        for snapshot in found:
            on_epoch(snapshot)
    return found


#: Looks at the epochs so far, the last one just ended; None to go on. Pure, so that a resumed search judges as the interrupted one did.
Stop = Callable[[Sequence[Snapshot]], Verdict | None]
