"""Progressive search: Liu et al. 2018, "Progressive Neural Architecture Search", ECCV, https://arxiv.org/abs/1712.00559 (algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.arch import Label, Space
from sartor.goals import Goals
from sartor.searchers.progressive import Progressive


class PNAS(Progressive):
    """Grows architectures block by block; a predictor ranks the children of the beam by the first objective, feasible ones first.

    The paper's blocks are those of a cell, its beam K = 256, its predictor an LSTM ensemble; here the space names the blocks and the
    predictor is a Gaussian process on choices and pairs. Where a space has no order of growth (no option that means "not there yet"),
    this is a beam search over the choices one after the other.

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
        super().__init__("pnas", space, goals, _by_first_objective, beam=beam, blocks=blocks, base=base)


def _by_first_objective(values: NDArray[np.float64], violations: NDArray[np.float64]) -> NDArray[np.int_]:
    return np.lexsort((values[:, 0], violations))
