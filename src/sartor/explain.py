"""Which choices mattered: functional analysis of variance over a history (Hutter, Hoos & Leyton-Brown 2014, "An Efficient Approach for
Assessing Hyperparameter Importance", ICML).

A Gaussian process (Hutter et al. take a forest, whose shrinkage would belittle every choice in histories of a few dozen trials) learns the
metric from the finished trials, and stands in for it on architectures drawn uniformly from the space (all of them, if they are few). So a
search that looked mostly at good architectures is explained over the whole space, with the caution that there it rests on the model: `r2`
says how well it predicts trials that it did not see.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Arch, Label, Space
from sartor.errors import UserError
from sartor.searchers.embedding import Embedding
from sartor.searchers.gp import GP, Floats, Kernel, fit
from sartor.trial import Trial

_FEWEST = 10  # trials
_WHOLE = 4096  # architectures that the model is read at: the whole space, or so many draws
_LEARNT = 400  # trials that the model learns from, evenly spread over a longer history
_FITTED = 150  # of these, those that its hyperparameters are fitted to
OFF = "(off)"  # the state of a choice that is switched off


@dataclass(frozen=True)
class Explanation:
    """What a history says about a metric.

    Attributes:
        importance: choice -> share 0..1 of the metric's variance over the space that the choice explains alone, largest first.
        pairs: pair of choices -> share that the two explain only together; the largest first.
        effects: choice -> option label (or "(off)") -> mean of the metric over the architectures that have it, in the metric's unit.
        mean: of the metric over the space.
        r2: share of variance that the model explains of trials it did not see (left out one at a time); below 0.5 the rest says little.
        trials: how many had the metric.
    """

    importance: dict[str, float]
    pairs: dict[tuple[str, str], float]
    effects: dict[str, dict[Label, float]]
    mean: float
    r2: float
    trials: int


def importances(space: Space, trials: Sequence[Trial], metric: str, *, seed: int = 0) -> dict[str, float]:
    """Share 0..1 of the metric's variance that each choice explains alone, largest first; see :func:`explain`."""
    return explain(space, trials, metric, pairs=0, seed=seed).importance


def explain(space: Space, trials: Sequence[Trial], metric: str, *, pairs: int = 10, seed: int = 0) -> Explanation:
    """Importances, interactions and marginal effects of the choices.

    Where a choice exists only under a condition, it shares variance with the choice it depends on: shares then may add up to more than 1.

    Args:
        trials: the history; failed ones, and ones without the metric or of another space, are left out.
        pairs: how many pairs of choices to report, those with the largest share.

    Raises:
        UserError: for fewer than ten trials with the metric.
    """
    known = [t for t in trials if t.status == "complete" and np.isfinite(t.metrics.get(metric, np.nan)) and t.arch in space]
    if len(known) < _FEWEST:
        raise UserError(f"explaining '{metric}' needs at least {_FEWEST} finished trials that report it, got {len(known)} of {len(trials)}")
    archs = _uniform(space, seed)
    predicted, r2 = _process(space, known, metric, archs)
    states = {name: _states(space, archs, name) for name in space.choices}
    total = float(predicted.var())
    drawn = space.size > len(archs)
    alone = {name: _explained(codes, predicted, drawn) / total if total > 0 else 0.0 for name, codes in states.items()}
    together: dict[tuple[str, str], float] = {}
    if pairs > 0 and total > 0:
        for a, b in itertools.combinations([name for name in states if states[name].max() != states[name].min()], 2):
            joint = _explained(states[a] * (len(space.choices[b]) + 1) + states[b], predicted, drawn) / total
            together[a, b] = max(0.0, joint - alone[a] - alone[b])
    return Explanation(
        importance=dict(sorted(alone.items(), key=lambda item: -item[1])),
        pairs=dict(sorted(together.items(), key=lambda item: -item[1])[:pairs]),
        effects={name: _means(space, name, codes, predicted) for name, codes in states.items()},
        mean=float(predicted.mean()),
        r2=r2,
        trials=len(known),
    )


def to_json(space: Space, trials: Sequence[Trial], metrics: Sequence[str], *, seed: int = 0) -> list[dict[str, Any]]:
    """The explanations of several metrics as a report reads them; metrics with too few trials are left out."""
    found = []
    for metric in metrics:
        try:
            one = explain(space, trials, metric, seed=seed)
        except UserError:
            continue
        effects = {name: {str(label): mean for label, mean in means.items()} for name, means in one.effects.items() if len(means) > 1}
        pairs = [[*pair, value] for pair, value in one.pairs.items()]
        plain = {"metric": metric, "trials": one.trials, "r2": one.r2, "mean": one.mean, "importance": one.importance, "pairs": pairs}
        found.append({**plain, "effects": effects})
    return found


def _uniform(space: Space, seed: int) -> list[Arch]:
    if space.size <= _WHOLE:
        return list(space)
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(_WHOLE)]


def _process(space: Space, trials: Sequence[Trial], metric: str, archs: Sequence[Arch]) -> tuple[Floats, float]:
    """The metric `(n,)` at `archs` as a Gaussian process has it, and its R² on trials left out one at a time."""
    if len(trials) > _LEARNT:
        trials = [trials[i] for i in np.linspace(0, len(trials) - 1, _LEARNT).astype(int)]
    embedding = Embedding(space)
    y = np.array([trial.metrics[metric] for trial in trials], dtype=float)
    shift, width = float(y.mean()), float(y.std())
    if width == 0.0 or not len(embedding.group):
        return np.full(len(archs), shift), 0.0
    rows, targets = embedding.rows([trial.arch for trial in trials]), (y - shift) / width
    kernel = Kernel(embedding.group, (tuple(range(len(embedding.names))),))
    few = np.linspace(0, len(y) - 1, min(len(y), _FITTED)).astype(int)
    gp = GP.condition(rows, targets, kernel, fit(rows[few], targets[few], kernel))
    parts = [gp.posterior(embedding.rows(archs[i : i + 1024])).mean for i in range(0, len(archs), 1024)]
    return shift + width * np.concatenate(parts), 1 - float((gp.left_out_errors() ** 2).mean() / targets.var())


def _states(space: Space, archs: Sequence[Arch], name: str) -> NDArray[np.int64]:
    """Option index of a choice in each architecture `(n,)`, and one more for being switched off."""
    off = len(space.choices[name])
    if not space.conditions:
        return np.array([arch[name] for arch in archs], dtype=np.int64)
    return np.array([arch[name] if name in space.active(arch) else off for arch in archs], dtype=np.int64)


def _explained(codes: NDArray[np.int64], values: Floats, drawn: bool) -> float:
    """Variance of the conditional means of `values` given `codes`; not below 0.

    Where the architectures are `drawn`, less what chance adds to it: of a whole space, each mean is known, and chance adds nothing.
    """
    _, group = np.unique(codes, return_inverse=True)
    counts = np.bincount(group)
    if len(counts) == 1:
        return 0.0
    means = np.bincount(group, weights=values) / counts
    between = float((counts * (means - values.mean()) ** 2).sum()) / len(values)
    if not drawn:
        return between
    spare = len(values) - len(counts)
    within = float(((values - means[group]) ** 2).sum()) / spare if spare > 0 else 0.0
    return max(0.0, between - within * (len(counts) - 1) / len(values))


def _means(space: Space, name: str, codes: NDArray[np.int64], values: Floats) -> dict[Label, float]:
    labels = [*space.choices[name], OFF]
    found = {code: float(values[codes == code].mean()) for code in np.unique(codes)}
    return {label if isinstance(label, str | int | float | bool) else str(label): found[i] for i, label in enumerate(labels) if i in found}
