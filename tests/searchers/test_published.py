"""Figures that are known of NAS-Bench-201, reached by the searchers on the packaged table."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from sartor.arch import Arch
from sartor.evaluators.tabular import Tabular
from sartor.goals import Goals
from sartor.searchers.local import LocalSearch
from sartor.trial import Trial


def evaluations_to_optimum(table: Tabular, seed: int) -> int:
    """Distinct evaluations of steepest local search until the best cell of the table, which it searches itself."""
    known: dict[Arch, dict[str, float]] = {}
    searcher, history = LocalSearch(table.space, Goals(("accuracy",)), improvement="best"), list[Trial]()
    while not history or history[-1].metrics["accuracy"] < table.best:
        proposal = searcher.ask(history, [], 1, np.random.default_rng((seed, len(history))))[0]
        known[proposal.arch] = table(proposal.arch)
        history.append(Trial(len(history), proposal.arch, known[proposal.arch], meta=proposal.meta))
    return len(known)


@cache
def oracle(task: str) -> Tabular:
    return Tabular(task, mode="oracle")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "mean"), [("nb201-cifar100", 130), ("nb201-cifar10", 124), ("nb201-imagenet16", 464)])
def test_steepest_local_search_needs_the_known_number_of_evaluations(task: str, mean: int) -> None:
    """The mean of 150 runs within three standard errors and 5 %.

    130 and 464 are published; 124 is what a plain loop over a neighbour matrix, written apart from this package, needs on this table
    (127 and 442 on the other two). The published 200 for CIFAR-10 is not that of this table's optimum.
    """
    found = np.array([evaluations_to_optimum(oracle(task), seed) for seed in range(150)])
    assert abs(found.mean() - mean) < 3 * found.std() / np.sqrt(len(found)) + 0.05 * mean
