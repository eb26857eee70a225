"""What goes wrong in differentiable and weight-sharing search, found while it runs: what was seen, what to do, and, if asked, doing it.

Every diagnosis reads the trajectory alone, so that a resumed search is judged as the interrupted one was; the rank of shared against
stand-alone accuracy is the exception, as it needs a few networks trained by themselves (:func:`probe_ranks`). The gap at discretisation and
one form of over-fitting need the accuracy of what is derived after each epoch: ``evaluate=shared_accuracy(data.validation)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from torch import nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.faithfulness import RankCorrelation, rank_correlation
from sartor.recipes.schedule import Progress
from sartor.recipes.splits import TrainingData
from sartor.recipes.stops import SKIPS, labelled
from sartor.recipes.trajectory import Snapshot, Stop, Verdict

Kind = Literal["skip-collapse", "vanishing", "saturated", "over-fitting", "discretisation", "rank-disorder"]
KINDS: tuple[Kind, ...] = ("skip-collapse", "vanishing", "saturated", "over-fitting", "discretisation", "rank-disorder")
#: Those that going back to an earlier epoch mends.
MENDED: tuple[Kind, ...] = ("skip-collapse", "over-fitting")


@dataclass(frozen=True)
class Finding:
    """One diagnosis.

    Attributes:
        kind: one of :data:`KINDS`.
        severe: whether the derived architecture should not be trusted as it is.
        epoch: in which it was found.
        seen: one sentence with the figures.
        advice: one sentence: what to do.
        back_to: the last epoch that was free of it, which :func:`guard` derives from; None where going back does not help.
    """

    kind: Kind
    severe: bool
    epoch: int
    seen: str
    advice: str
    back_to: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} (epoch {self.epoch}): {self.seen} {self.advice}"


@dataclass(frozen=True)
class Thresholds:
    """When something counts.

    Args:
        skips: share of a cell's derived operations that are skip connections; at a half the cell has collapsed.
        decided: mean distance of a choice's probabilities from uniform, 0 (uniform) to 1 (certain), below which nothing was learned.
        certain: the same, above which it has nothing left to learn.
        early: share of the budget before which certainty comes too soon, and after which indecision is one.
        window: epochs that a rise or fall must last.
        rise: relative rise of the validation loss that counts as over-fitting.
        gap: accuracy, a fraction, that discretisation may cost.
        tau: Kendall's tau below which a ranking by shared weights is disorder.
    """

    skips: float = 0.5
    decided: float = 0.05
    certain: float = 0.97
    early: float = 0.5
    window: int = 3
    rise: float = 0.05
    gap: float = 0.1
    tau: float = 0.3


def diagnose(
    trajectory: Sequence[Snapshot], space: Space, thresholds: Thresholds | None = None, *, skips: Collection[str] = SKIPS
) -> list[Finding]:
    """What is wrong at the last of `trajectory`'s epochs, the severe first. Epochs of weights alone are not judged."""
    t = thresholds or Thresholds()
    searched = [s for s in trajectory if s.validation_loss is not None]
    if not searched:
        return []
    checks: tuple[Callable[[], Finding | None], ...] = (
        lambda: _skip_collapse(searched, space, t, skips),
        lambda: _undecided(searched, t),
        lambda: _saturated(searched, t),
        lambda: _over_fitting(searched, t),
        lambda: _discretisation(searched, t),
    )
    found = [finding for check in checks if (finding := check()) is not None]
    return sorted(found, key=lambda f: not f.severe)


def guard(space: Space, kinds: Collection[Kind] = MENDED, thresholds: Thresholds | None = None) -> Stop:
    """A stop that acts on severe findings: the search ends, and the architecture of the last epoch without the finding is taken.

    Raises:
        UserError: for an unknown kind, and one that no earlier epoch is free of.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"guard: unknown diagnosis '{unknown[0]}'; known: {', '.join(KINDS)}")
    idle = [kind for kind in kinds if kind not in MENDED]
    if idle:
        raise UserError(f"guard: it goes back to an earlier epoch, which does not mend '{idle[0]}'; it acts on {', '.join(MENDED)}")

    def stop(trajectory: Sequence[Snapshot]) -> Verdict | None:
        for finding in diagnose(trajectory, space, thresholds):
            if finding.kind in kinds and finding.severe and finding.back_to is not None:
                return Verdict(f"{finding.kind}: {finding.seen}", finding.back_to)
        return None

    return stop


@dataclass
class Doctor:
    """An `on_epoch` callback that keeps what it finds and tells of each kind once, and again when it becomes severe.

    Args:
        tell: gets every new finding.
    """

    space: Space
    thresholds: Thresholds = field(default_factory=Thresholds)
    tell: Callable[[Finding], None] | None = None
    trajectory: list[Snapshot] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def __call__(self, snapshot: Snapshot) -> None:
        if any(snapshot.epoch <= known.epoch for known in self.trajectory):
            self.trajectory, self.findings = [s for s in self.trajectory if s.epoch < snapshot.epoch], []  # a new stage or search
        self.trajectory.append(snapshot)
        for finding in diagnose(self.trajectory, self.space, self.thresholds):
            if not any(known.kind == finding.kind and known.severe >= finding.severe for known in self.findings):
                self.findings.append(finding)
                if self.tell is not None:
                    self.tell(finding)

    def report(self) -> list[str]:
        """Sentences for the user; one that says so if nothing was found."""
        if not self.findings:
            return [f"Nothing wrong was found in {len(self.trajectory)} epochs."]
        return [str(finding) for finding in self.findings]


# -- diagnoses ----------------------------------------------------------------------------------------------------------------


def _cells(space: Space, arch: Mapping[str, int], skips: Collection[str]) -> dict[str, list[str]]:
    """Cell -> its choices that are on and offer a skip connection; a space of one cell has the one name ''."""
    on = space.active(arch)
    found: dict[str, list[str]] = {}
    for name, options in space.choices.items():
        if name in on and any(labelled(label, skips) for label in options):
            found.setdefault(next((cell for cell in ("normal", "reduc") if name.startswith(cell)), ""), []).append(name)
    return found


def _skips(space: Space, arch: Mapping[str, int], skips: Collection[str]) -> tuple[float, int, int]:
    """(largest share of skip connections in a cell, how many, of how many operations)."""
    worst = (0.0, 0, 0)
    for cell, names in _cells(space, arch, skips).items():
        held = [n for n in names if space.choices[n][arch[n]] != "none"]
        count = sum(labelled(space.choices[n][arch[n]], skips) for n in held)
        if held and cell != "reduc":  # reduction cells of good DARTS genotypes are full of parameter-free operations
            worst = max(worst, (count / len(names), count, len(names)))
    return worst


def _skip_collapse(epochs: Sequence[Snapshot], space: Space, t: Thresholds, skips: Collection[str]) -> Finding | None:
    shares = [_skips(space, e.arch, skips) for e in epochs]
    share, count, total = shares[-1]
    if count < 2:
        return None
    # From half of the operations on it has collapsed; before, two or more that became more are a warning (DARTS+, Liang et al. 2019).
    severe = share >= t.skips
    grew = len(shares) > t.window and share > max(s for s, _, _ in shares[-1 - t.window : -1][:1])
    if not severe and not grew:
        return None
    healthy = [e.epoch for e, (s, n, _) in zip(epochs, shares, strict=True) if s < t.skips and n <= 2]
    return Finding(
        "skip-collapse",
        severe,
        epochs[-1].epoch,
        f"{count} of {total} operations of the derived cell are skip connections.",
        "Skip connections win because the others train more slowly: use a stop (darts-plus, robust-darts), or pc-darts, gdas or drnas.",
        healthy[-1] if healthy else epochs[0].epoch,
    )


def decidedness(snapshot: Snapshot) -> float:
    """Mean over choices of how far the strongest option is above uniform: 0 for uniform weights, 1 for one option alone."""
    found = []
    for row in snapshot.strengths.values():
        total, count = math.fsum(row.values()), len(row)
        if count > 1 and total > 0:
            found.append((max(row.values()) / total - 1 / count) * count / (count - 1))
    return float(np.mean(found)) if found else 1.0


def _undecided(epochs: Sequence[Snapshot], t: Thresholds) -> Finding | None:
    last, value = epochs[-1], decidedness(epochs[-1])
    if last.fraction < t.early or value >= t.decided or len(epochs) < 2:
        return None
    return Finding(
        "vanishing",
        last.fraction >= 1.0 - 1e-9,
        last.epoch,
        f"After {last.fraction:.0%} of the search the options of a choice are as good as equally strong ({value:.3f} on average, where 0 is"
        " equal and 1 is one alone): the derived architecture is close to a random one.",
        "Search longer, raise the learning rate of the architecture, or use gdas, whose falling temperature decides.",
    )


def _saturated(epochs: Sequence[Snapshot], t: Thresholds) -> Finding | None:
    last, value = epochs[-1], decidedness(epochs[-1])
    if last.fraction >= t.early or value <= t.certain:
        return None
    return Finding(
        "saturated",
        False,
        last.epoch,
        f"After only {last.fraction:.0%} of the search the architecture parameters are {value:.3f} from uniform (1 is certain): their"
        " gradients vanish, and nothing else will be tried.",
        "Lower the learning rate of the architecture, train the weights alone for longer first, or use drnas or a higher temperature.",
        None,
    )


def _over_fitting(epochs: Sequence[Snapshot], t: Thresholds) -> Finding | None:
    if len(epochs) <= t.window:
        return None
    last, tail = epochs[-1], epochs[-1 - t.window :]
    losses = [float(e.validation_loss) for e in epochs if e.validation_loss is not None]
    best = len(losses) - 1 - int(np.argmin(losses[::-1]))  # of equal ones the last
    rising = all(a < b for a, b in zip(losses[-1 - t.window : -1], losses[-t.window :], strict=True))
    if rising and losses[-1] > (1 + t.rise) * losses[best] and tail[-1].train_loss < tail[0].train_loss:
        return Finding(
            "over-fitting",
            losses[-1] > (1 + 3 * t.rise) * losses[best],
            last.epoch,
            f"The validation loss has risen for {t.window} epochs, from {losses[best]:.3f} at its best to {losses[-1]:.3f}, while the"
            f" training loss fell to {last.train_loss:.3f}.",
            "Stop here, add augmentation or drop-path, or give the weights more images.",
            epochs[best].epoch,
        )
    held = [(e.metrics.get("accuracy"), e.validation_accuracy) for e in tail]
    if any(a is None or b is None for a, b in held):
        return None
    outside, inside = [float(a) for a, _ in held if a is not None], [float(b) for _, b in held if b is not None]
    falls = all(a > b for a, b in pairwise(outside)) and all(a < b for a, b in pairwise(inside))
    if not falls or outside[0] - outside[-1] < t.gap / 2:
        return None
    return Finding(
        "over-fitting",
        outside[0] - outside[-1] > t.gap,
        last.epoch,
        f"Accuracy on the images that choose the architecture rose to {inside[-1]:.1%} in {t.window} epochs, and that of the derived"
        f" architecture on others fell from {outside[0]:.1%} to {outside[-1]:.1%}.",
        "The search fits its validation images: stop here, or divide off more images for the architecture.",
        tail[0].epoch,
    )


def _discretisation(epochs: Sequence[Snapshot], t: Thresholds) -> Finding | None:
    last = epochs[-1]
    alone = last.metrics.get("accuracy")
    if alone is None or last.validation_accuracy is None or last.fraction < t.early:
        return None
    gap = last.validation_accuracy - alone
    if gap <= t.gap:
        return None
    return Finding(
        "discretisation",
        gap > 2 * t.gap,
        last.epoch,
        f"The mixture has {last.validation_accuracy:.1%} accuracy and the architecture derived from it {alone:.1%} with the same weights.",
        "What the search scores is not what it derives: use a method that runs one option (gdas, proxylessnas, spos), or a falling"
        " temperature (snas, fbnet).",
    )


# -- ranks: shared weights against training alone -----------------------------------------------------------------------------


def rank_disorder(ranks: RankCorrelation, *, epoch: int = 0, thresholds: Thresholds | None = None) -> Finding | None:
    """The diagnosis of a rank correlation; None where its value is fine and its interval above zero."""
    t = thresholds or Thresholds()
    tau = ranks.kendall_tau
    if tau.value >= t.tau and tau.low > 0:
        return None
    return Finding(
        "rank-disorder",
        tau.value < t.tau,
        epoch,
        f"Shared and stand-alone accuracy of {ranks.n} networks agree with Kendall's tau {tau.value:.2f}"
        f" [{tau.low:.2f}, {tau.high:.2f}] ({ranks.confidence:.0%} interval).",
        "Do not choose by shared weights alone: train the best few by themselves, train the supernet longer or with the sandwich rule, or"
        " compare more networks.",
    )


def probe_ranks(
    net: Any,
    data: TrainingData,
    *,
    nets: int = 8,
    archs: Sequence[Arch] | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    images: int | None = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    **training: Any,
) -> RankCorrelation:
    """Kendall's tau between shared-weight accuracy and that of the same architectures trained alone from fresh weights.

    Yu et al. 2020, "Evaluating the search phase of neural architecture search", section 4: the absence of this check is the main pitfall of
    weight sharing.

    Args:
        net: with trained shared weights.
        nets: architectures to draw uniformly, at least 3; `archs` gives others.
        steps, seconds: of each training alone; exactly one.
        images: validation images for each accuracy; None for all.
        training: further settings of :func:`sartor.recipes.train.train`.
    """
    from sartor.evaluators.supernet import SupernetEvaluator
    from sartor.recipes.train import train

    rng = np.random.default_rng([seed, 8])
    chosen = list(archs) if archs is not None else _distinct(net.space, nets, rng)
    if len(chosen) < 3:
        raise UserError(f"ranks need at least 3 architectures, got {len(chosen)}")
    evaluator = SupernetEvaluator(net, data, images=images, seed=seed)
    shared, alone = [], []
    for number, arch in enumerate(chosen):
        if progress is not None:
            progress("rank check", number, len(chosen))
        shared.append(evaluator(arch)["accuracy"])
        module = reset(net.extract(arch), seed=seed + number)
        train(module, data, steps=steps, seconds=seconds, validate=False, seed=seed, **training)
        alone.append(evaluator.evaluate_module(module)["accuracy"])
    if progress is not None:
        progress("rank check", len(chosen), len(chosen))
    return rank_correlation(shared, alone, seed=seed)


def reset(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Fresh weights in every torch layer, in place."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            renew = getattr(part, "reset_parameters", None)
            if callable(renew):
                renew()
    return module


def _distinct(space: Space, count: int, rng: np.random.Generator) -> list[Arch]:
    found: dict[Arch, None] = {}
    for _ in range(50 * count):
        found[space.sample(rng)] = None
        if len(found) == count:
            break
    return list(found)


__all__ = [
    "KINDS", "MENDED", "Doctor", "Finding", "Thresholds", "decidedness", "diagnose", "guard", "probe_ranks", "rank_disorder", "reset",
]  # fmt: skip
