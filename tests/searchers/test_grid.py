from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.goals import Goals
from sartor.searchers.grid import GridSearch
from sartor.trial import Proposal, Trial

SPACE = Space({"depth": [1, 2], "k": [3, 5, 7], "e": [1, 2]}, {"e": {"depth": [2]}})  # 3 + 6 architectures
GOALS = Goals(("accuracy",))
RNG = np.random.default_rng(0)


def test_the_order_is_mixed_radix_over_what_exists() -> None:
    asked = GridSearch(SPACE, GOALS).ask([], [], 100, RNG)
    assert [tuple(p.arch.values()) for p in asked] == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, 2, 0), (1, 2, 1),
    ]  # fmt: skip


@given(st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8)), st.integers(1, 9))
def test_it_goes_on_where_the_first_gap_is(done: set[int], pending: set[int], n: int) -> None:
    history = [Trial(i, SPACE.at(number), {"accuracy": 0.5}) for i, number in enumerate(sorted(done, reverse=True))]
    asked = GridSearch(SPACE, GOALS).ask(history, [Proposal(SPACE.at(number)) for number in pending], n, RNG)
    assert [SPACE.index(p.arch) for p in asked] == [number for number in range(9) if number not in done | pending][:n]


def test_a_step_costs_the_same_in_a_space_of_any_size() -> None:
    huge = Space({f"c{i}": list(range(10)) for i in range(40)})
    searcher, history = GridSearch(huge, GOALS), list[Trial]()
    for i in range(200):
        history.append(Trial(i, searcher.ask(history, [], 1, RNG)[0].arch, {"accuracy": 0.5}))
    assert history[-1].arch == Arch({**dict.fromkeys(huge.choices, 0), "c37": 1, "c38": 9, "c39": 9})
