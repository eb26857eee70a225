"""Rewards of learned controllers: one figure of a trial, more is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from sartor.errors import UserError
from sartor.goals import Goals, metric_name, metric_of, mnasnet_reward
from sartor.searchers.constraints import deductions
from sartor.trial import Trial

Reward = Callable[[Trial], float]  # NaN where the trial failed or lacks a metric
Form = Literal["objective", "mnasnet-soft", "mnasnet-hard", "weighted"]


def make_reward(form: Form, goals: Goals, *, target_ms: float | None = None, weights: Mapping[str, float] | None = None) -> Reward:
    """A reward by name.

    objective: the first objective (accuracy, usually), negated where less is better.
    mnasnet-soft, mnasnet-hard: `accuracy · (latency / target)^w` (Tan et al. 2019, equation 2), see :func:`sartor.goals.mnasnet_reward`.
    weighted: the sum of `weight · value`, negated where less is better; weight 1 for each objective unless `weights` says otherwise.

    Limits: a trial loses its violation (the sum of its relative excesses), or what the softer forms of
    :class:`sartor.searchers.constraints.Constrained` deduct. MnasNet's forms speak for the limit on latency themselves.

    Args:
        target_ms: of MnasNet's forms; None for the limit on `latency_ms`.

    Raises:
        UserError: for an unknown form, metric or weight, and a missing target.
    """
    if form not in get_args(Form):
        raise UserError(f"unknown reward '{form}'; known: {', '.join(get_args(Form))}")
    if form in ("mnasnet-soft", "mnasnet-hard"):
        bounds = [limit.bound for limit in goals.limits if limit.metric == "latency_ms"]
        target = target_ms if target_ms is not None else bounds[0] if bounds else None
        if target is None or not (math.isfinite(target) and target > 0):
            raise UserError(f"reward '{form}' needs a target latency above zero: set target_ms or a limit such as latency=2ms")
        others = tuple(limit for limit in goals.limits if limit.metric != "latency_ms")
        return _less_violation(lambda m: _mnasnet(m, target, form == "mnasnet-hard"), dataclasses.replace(goals, limits=others))
    if form == "objective":
        return _less_violation(_weighted({goals.objectives[0]: 1.0}), goals)
    given = {metric_name(name): float(weight) for name, weight in (weights or dict.fromkeys(goals.objectives, 1.0)).items()}
    if not all(math.isfinite(weight) for weight in given.values()) or not any(given.values()):
        raise UserError(f"reward 'weighted': the weights must be finite and not all 0, got {given}")
    return _less_violation(_weighted(given), goals)


def _weighted(weights: Mapping[str, float]) -> Callable[[Mapping[str, float]], float]:
    signed = {name: weight if metric_of(name).direction == "max" else -weight for name, weight in weights.items()}
    return lambda metrics: sum(weight * metrics.get(name, math.nan) for name, weight in signed.items())


def _mnasnet(metrics: Mapping[str, float], target_ms: float, hard: bool) -> float:
    accuracy, latency_ms = metrics.get("accuracy", math.nan), metrics.get("latency_ms", math.nan)
    return mnasnet_reward(accuracy, latency_ms, target_ms, hard=hard) if latency_ms > 0 else math.nan


def _less_violation(figure: Callable[[Mapping[str, float]], float], goals: Goals) -> Reward:
    def reward(trial: Trial) -> float:
        if trial.status != "complete":
            return math.nan
        found = figure(trial.metrics) - float(deductions(goals, [trial])[0]) - float(goals.table([trial])[1][0])
        return found if math.isfinite(found) else math.nan

    return reward
