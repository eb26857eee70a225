"""What a searcher proposes and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sartor.arch import Arch


@dataclass(frozen=True)
class Proposal:
    """An architecture to evaluate.

    `meta` carries whatever the searcher must remember (generation, parents, rung, log-probability); it comes back unchanged,
    after a round trip through JSON, in the :class:`Trial`.
    """

    arch: Arch
    fidelity: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A finished evaluation. `metrics` is empty when `status` is ``"failed"``, and `error` then says why."""

    number: int
    arch: Arch
    metrics: Mapping[str, float]
    status: Literal["complete", "failed"] = "complete"
    fidelity: float | None = None
    seconds: float = 0.0
    error: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
