"""What is to be run: a case is one strategy on one task with one seed. Checked as a whole before anything runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sartor.errors import UserError
from sartor.evaluators.tabular import Mode, Tabular
from sartor.goals import parse_limit
from sartor.searchers import Searcher, make_searcher
from sartor.searchers.constraints import constrained

LIMITS = "limits"  # the setting of every strategy that says in which form it keeps them


@dataclass(frozen=True)
class Group:
    """What strategies are compared on: a task, a device (None for accuracy alone), what the search sees, and limits to keep."""

    task: str
    device: str | None = None
    mode: Mode = "realistic"
    limits: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = self.task + (f" on {self.device}" if self.device else "")
        return where + (f" with {', '.join(self.limits)}" if self.limits else "")

    @property
    def front(self) -> bool:
        """Whether a front of accuracy and latency is searched, rather than one architecture."""
        return self.device is not None and not self.limits

    def tabular(self) -> Tabular:
        """The evaluator."""
        return Tabular(self.task, self.device, self.mode, self.limits)


@dataclass(frozen=True)
class Case:
    """`budget` evaluations by a strategy, asked for `batch` at a time. `strategy` is spelled as :func:`parse_strategy` reads it."""

    strategy: str
    group: Group
    seed: int
    budget: int
    batch: int = 1


def parse_strategy(text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of `name` or `name:setting=value,setting=value`; a value is JSON (20, 0.5, true, null, a list, an
    object) or else text.

    Raises:
        UserError: for a setting without `=`.
    """
    name, _, rest = text.strip().partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in _parts(rest))):
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise UserError(f"strategy '{text}': expected NAME:SETTING=VALUE,SETTING=VALUE, got '{part}'")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value.strip()
    return name, settings


def _parts(text: str) -> list[str]:
    """`text` cut at its commas, but for those that belong to a JSON value: within brackets or quotes."""
    parts, depth, quoted = [""], 0, False
    for before, sign in zip(" " + text, text, strict=False):
        if sign == '"' and before != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def spell_strategy(name: str, settings: dict[str, Any]) -> str:
    """One spelling for equal settings, so that a result is found again."""
    parts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in sorted(settings.items())]
    return name + (":" + ",".join(parts) if parts else "")


def grid(
    strategies: Sequence[str],
    tasks: Sequence[str],
    devices: Sequence[str | None] = (None,),
    *,
    seeds: int | Sequence[int] = 10,
    budget: int = 100,
    batch: int = 1,
    mode: Mode = "realistic",
    limits: Sequence[str] = (),
    known: Collection[str] = (),
) -> list[Case]:
    """Every combination, seeds outermost, so that an interrupted comparison is fair. Nothing is given twice.

    Args:
        seeds: how many (0, 1, ...) or which.
        limits: to be kept on every task; the accuracy is then the only objective.
        known: strategies that a results file has rows of, and that need not be registered here: those of other programs.

    Raises:
        UserError: for an unknown strategy, setting, task or device, limits that cannot be kept, and numbers below 1.
    """
    count, numbers = (seeds, range(seeds)) if isinstance(seeds, int) else (len(seeds), seeds)
    for what, value in (("seeds", count), ("budget", budget), ("batch", batch)):
        if value < 1:
            raise UserError(f"{what}: expected a whole number of at least 1, but got {value}")
    spelled_limits = tuple(sorted({str(parse_limit(limit)) for limit in limits}))
    groups = list(dict.fromkeys(Group(task, device, mode, spelled_limits) for task in tasks for device in devices))
    tables = [group.tabular() for group in groups]
    if not tables:
        raise UserError("expected at least one task")
    different = {table.goals: table for table in tables}.values()  # what a strategy can be made for depends on the goals alone
    spelled = []
    for text in strategies:
        name, settings = parse_strategy(text)
        spelled.append(spell_strategy(name, settings))
        if spelled[-1] in known:
            continue
        for table in different:
            _check(text, table)
    return [Case(s, group, seed, budget, batch) for seed in numbers for group in groups for s in dict.fromkeys(spelled)]


def make(strategy: str, tabular: Tabular) -> Searcher:
    """The searcher of a strategy on a task.

    The setting `limits` is no searcher's: it is the form in which that strategy keeps limits, by name or as an object with the form's own
    settings (see :class:`sartor.searchers.constraints.Constrained`). What it found is judged by the limits as they are.

    Raises:
        UserError: as :func:`make_searcher`, and for a form without limits.
    """
    name, settings = parse_strategy(strategy)
    goals = tabular.goals
    if LIMITS in settings:
        form = settings.pop(LIMITS)
        if not goals.limits:
            raise UserError(f"strategy '{strategy}': there are no limits to keep; give one, such as latency_ms<=20")
        goals = constrained(goals, **({"form": form} if isinstance(form, str) else form))
    return make_searcher(name, tabular.space, goals, **settings)


def _check(text: str, tabular: Tabular) -> None:
    try:
        make(text, tabular)
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a setting of another form than the searcher takes
        raise UserError(f"strategy '{text}': a setting has another form than the strategy takes ({error})") from error
