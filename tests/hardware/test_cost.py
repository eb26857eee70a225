from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware import CostModel, Factor, Op, all_ops, cost

SIZES = {"a": 3, "b": 4, "c": 2}


def _op(width: int, kernel: int = 1) -> Op:
    return Op("conv", (width + 1, 4, 4), (width + 2, 4, 4), kernel=kernel)


FACTORS = [
    Factor((), lambda i: (_op(7),)),
    Factor(("a",), lambda i: (_op(i[0]),)),
    Factor(("a", "b"), lambda i: (_op(i[0], 1 + 2 * i[1]), _op(i[1]))),
    Factor(("c", "b", "a"), lambda i: (_op(sum(i)),) if i[0] else ()),
]


def price(op: Op) -> float:
    return float(op.macs) ** 0.7


@st.composite
def mixtures(draw: Any) -> dict[str, dict[int, float]]:
    found = {}
    for name, size in SIZES.items():
        support = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
        weights = np.array([draw(st.floats(0.05, 1)) for _ in support])
        found[name] = dict(zip(support, (weights / weights.sum()).tolist(), strict=True))
    return found


@given(mixtures())
def test_expectation_equals_enumeration(arch: dict[str, dict[int, float]]) -> None:
    expected = 0.0
    for picked in itertools.product(*(arch[name].items() for name in SIZES)):
        ints = {name: index for name, (index, _) in zip(SIZES, picked, strict=True)}
        expected += float(np.prod([weight for _, weight in picked])) * float(cost(FACTORS, price, ints))
    assert cost(FACTORS, price, arch) == pytest.approx(expected, rel=1e-9)


@given(mixtures(), st.integers(0, 2**32 - 1))
def test_gradient_equals_finite_difference(arch: dict[str, dict[int, float]], seed: int) -> None:
    tensors = {n: {i: torch.tensor(w, dtype=torch.float64, requires_grad=True) for i, w in m.items()} for n, m in arch.items()}
    total = cost(FACTORS, price, tensors)
    assert isinstance(total, torch.Tensor) and total.item() == pytest.approx(float(cost(FACTORS, price, arch)), rel=1e-9)
    total.backward()
    name = list(SIZES)[seed % 3]
    index = next(iter(arch[name]))
    step = 1e-4
    up, down = ({**arch, name: {**arch[name], index: arch[name][index] + sign * step}} for sign in (1, -1))
    slope = (float(cost(FACTORS, price, up)) - float(cost(FACTORS, price, down))) / (2 * step)
    assert float(tensors[name][index].grad) == pytest.approx(slope, rel=1e-6)


def test_ints_and_tensors_may_be_mixed() -> None:
    weight = torch.tensor([0.25, 0.75], requires_grad=True)
    mixed = cost(FACTORS, price, {"a": {0: weight[0], 2: weight[1]}, "b": 1, "c": {1: 1.0}})
    assert isinstance(mixed, torch.Tensor)
    parts = [float(cost(FACTORS, price, {"a": a, "b": 1, "c": 1})) for a in (0, 2)]
    assert mixed.item() == pytest.approx(0.25 * parts[0] + 0.75 * parts[1], rel=1e-5)


def test_model_asks_each_price_and_each_factor_once() -> None:
    asked: list[str] = []
    called: list[tuple[int, ...]] = []

    def ops(indices: tuple[int, ...]) -> tuple[Op, ...]:
        called.append(indices)
        return (_op(indices[0]),)

    model = CostModel([Factor(("a",), ops)], lambda op: asked.append(op.signature) or 1.0)  # type: ignore[func-returns-value]
    for _ in range(50):
        for index in range(3):
            assert model({"a": index}) == 1.0
    assert len(asked) == 3 and len(called) == 3


def test_missing_choice_is_named() -> None:
    with pytest.raises(UserError, match="'b'"):
        cost(FACTORS, price, {"a": 0})


def test_all_ops_cover_every_architecture() -> None:
    known = {op.signature for op in all_ops(FACTORS, SIZES)}
    used = {
        op.signature for ints in itertools.product(*map(range, SIZES.values()))
        for factor in FACTORS for op in factor.at(tuple(dict(zip(SIZES, ints, strict=True))[name] for name in factor.scope))
    }  # fmt: skip
    assert known == used
