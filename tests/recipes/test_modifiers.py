from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.methods.parts import strongest
from sartor.policies import Dirichlet, Sigmoid, Softmax
from sartor.recipes.modifiers import Anchor, ZeroOne, decaying_skip_dropout, keep_candidates, limit_skips

OPS = ("none", "skip_connect", "conv3", "conv5", "pool")
SPACE = Space({f"e{i}": OPS for i in range(4)})


def test_zero_one_loss_is_the_papers_and_drives_gates_apart() -> None:
    """Chu et al. 2020, equation 4: -10/N * sum (sigmoid(alpha) - 0.5)^2."""
    policy = Sigmoid(SPACE, scale=0.5).double()
    loss = ZeroOne(policy)(torch.tensor(2.0, dtype=torch.float64), {})
    gates = torch.sigmoid(policy.alpha)
    assert float(loss) == pytest.approx(2.0 - 10.0 * float(((gates - 0.5) ** 2).sum() / gates.numel()))
    gradient = torch.autograd.grad(loss, policy.alpha)[0]
    assert torch.equal((-gradient).sign(), (gates - 0.5).sign())  # descent moves every gate to the nearer of 0 and 1


def test_zero_one_loss_ignores_options_that_are_not_allowed() -> None:
    policy = Sigmoid(SPACE.restrict({name: list(OPS[1:]) for name in SPACE.choices}))
    term = ZeroOne(policy)
    before = float(term(torch.zeros(()), {}))
    with torch.no_grad():
        policy.alpha[:, 0] = 9.0
    assert float(term(torch.zeros(()), {})) == before


def test_anchor_adds_its_share() -> None:
    policy = Dirichlet(SPACE, scale=0.5)
    one, two = (float(Anchor(policy, w)(torch.zeros(()), {})) for w in (1e-3, 2e-3))
    assert one > 0 and two == pytest.approx(2 * one)


@pytest.mark.parametrize(("share", "kept"), [(1.0, 5), (5 / 8, 4), (3 / 8, 2), (0.5, 3), (0.01, 1)])
def test_candidates_are_the_strongest(share: float, kept: int) -> None:
    policy = Softmax(SPACE, scale=1.0, seed=3)
    space = keep_candidates(policy, share)
    for name, allowed in space.allowed.items():
        row = policy.strengths()[name]
        assert isinstance(row, dict) and len(allowed) == kept
        assert min(row[i] for i in allowed) >= max((row[i] for i in row if i not in allowed), default=-1.0)
    assert set(keep_candidates(Softmax(space, seed=4), share).allowed.items()) <= {(n, a) for n, a in space.allowed.items()} or share < 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 4))
def test_at_most_so_many_skips_are_derived_and_the_strongest_stay(seed: int, most: int) -> None:
    policy = Softmax(SPACE, scale=1.0, seed=seed)
    with torch.no_grad():
        policy.alpha[:, 1] += 1.5
    strengths = policy.strengths()
    free = strongest(SPACE)(strengths)
    arch = limit_skips(strongest(SPACE), SPACE, most)(strengths)
    skips = [name for name in SPACE.choices if free[name] == 1]
    kept = [name for name in SPACE.choices if arch[name] == 1]
    assert len(kept) == min(most, len(skips)) and set(kept) <= set(skips)

    def weight(name: str) -> float:
        row = strengths[name]
        assert isinstance(row, dict)
        return row[1]

    assert all(weight(a) >= weight(b) for a in kept for b in set(skips) - set(kept))
    for name in SPACE.choices:
        row = strengths[name]
        assert isinstance(row, dict)
        if name not in kept:
            assert arch[name] == max((i for i in row if i != 1 or free[name] != 1), key=row.__getitem__)


def test_skips_that_cannot_be_dropped_count() -> None:
    strengths = {"e0": 1, "e1": 1, "e2": {1: 0.9, 2: 0.1}, "e3": {1: 0.8, 2: 0.2}}
    assert limit_skips(strongest(SPACE), SPACE, 2)(strengths) == Arch({"e0": 1, "e1": 1, "e2": 2, "e3": 2})
    assert limit_skips(strongest(SPACE), SPACE, 0)(strengths) == Arch({"e0": 1, "e1": 1, "e2": 2, "e3": 2})


def test_skips_are_limited_by_each_of_their_labels_and_not_where_they_are_switched_off() -> None:
    space = Space({"a": ("identity", "conv"), "b": ("identity", "conv"), "c": ("conv", "pool")}, {"b": {"c": ["pool"]}})
    strengths = {"a": {0: 0.9, 1: 0.1}, "b": {0: 0.8, 1: 0.2}, "c": {0: 0.3, 1: 0.7}}
    assert limit_skips(strongest(space), space, 1)(strengths) == Arch({"a": 0, "b": 1, "c": 1})
    assert limit_skips(strongest(space), space, 1, skips={"pool"})(strengths) == Arch({"a": 0, "b": 0, "c": 1})
    off = {**strengths, "c": {0: 0.7, 1: 0.3}}  # `b` is off, which is spelled 0
    assert limit_skips(strongest(space), space, 1)(off) == Arch({"a": 0, "b": 0, "c": 0})
    assert limit_skips(strongest(space), space, 0)(off) == Arch({"a": 1, "b": 0, "c": 0})


def test_skip_dropout_decays_as_in_the_papers_code() -> None:
    """25 epochs, 10 of weights alone: rate * (24 - epoch) / 25 before, rate * exp(-0.2 * (epoch - 10)) after."""
    schedule = decaying_skip_dropout(0.4, 10 / 25)
    assert schedule(0.0) == pytest.approx(0.4)
    assert schedule(5 / 25) == pytest.approx(0.4 * 20 / 25)
    for number in (10, 15, 20):
        assert schedule(number / 25) == pytest.approx(0.4 * math.exp(-0.2 * (number - 10)))
