"""Device-aware progressive search: Dong et al. 2018, "DPP-Net: Device-aware Progressive Search for Pareto-optimal Neural Architectures",
ECCV, https://arxiv.org/abs/1806.08198 (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor import pareto
from sartor.arch import Label, Space
from sartor.goals import Goals
from sartor.searchers.progressive import Progressive


class DPPNet(Progressive):
    """Progressive growth in which the beam is a Pareto front: children are kept for accuracy and the device's metrics together.

    As PNAS, with non-dominated sorting in place of the ranking by one objective, on the predictions of all objectives and limits. The
    paper predicts accuracy only and reads the device metrics of all children; here a metric is known once its trial has finished. Fronts
    that do not fit are thinned by crowding distance.

    Args:
        beam, blocks, base: as in :class:`sartor.searchers.progressive.Progressive`.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        beam: int = 16,
        blocks: Sequence[Sequence[str]] | None = None,
        base: Mapping[str, Label] | None = None,
    ) -> None:
        super().__init__("dpp-net", space, goals, _by_front, beam=beam, blocks=blocks, base=base)


def _by_front(values: NDArray[np.float64], violations: NDArray[np.float64]) -> NDArray[np.int_]:
    rank = pareto.ranks(values, violations)
    return pareto.crowded_order(rank, pareto.crowding(values, rank))
