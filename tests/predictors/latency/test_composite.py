from __future__ import annotations

import itertools

import numpy as np
import pytest

from sartor.errors import UserError
from sartor.hardware.cost import Factor, cost
from sartor.hardware.graph import Op
from sartor.predictors.latency.composite import Composite, weighted, weighted_price, worst_case
from sartor.predictors.latency.features import moved_values

SMALL, LARGE = Op("conv", (8, 4, 4), (8, 4, 4), kernel=1), Op("conv", (8, 4, 4), (8, 4, 4), kernel=3)


def latency(op: Op) -> float:
    return 1e-3 * op.macs + 0.5


def test_the_price_of_an_op_is_the_formula() -> None:
    price = Composite(alpha=2.0, beta=3.0, gamma=5.0).price(latency, bytes_per_value=1)
    assert price(LARGE) == pytest.approx(2 * 2 * LARGE.macs + 3 * moved_values(LARGE) + 5 * latency(LARGE))


def test_a_reference_costs_the_sum_of_the_relative_weights() -> None:
    composite = Composite.relative(0.2, 0.3, 0.5, flops=1e6, moved_bytes=4e4, latency_ms=2.0)
    assert composite.of(flops=1e6, moved_bytes=4e4, latency_ms=2.0) == pytest.approx(1.0)
    assert composite.of(flops=np.array([1e6, 2e6]), moved_bytes=4e4, latency_ms=2.0) == pytest.approx([1.0, 1.2])


def test_on_mixtures_it_is_the_exact_expectation() -> None:
    price = Composite(1e-3, 1e-3, 1.0).price(latency)
    factors = [Factor((name,), lambda indices: ((SMALL, LARGE)[indices[0]],)) for name in ("a", "b")]
    mixture = {"a": {0: 0.3, 1: 0.7}, "b": {0: 0.9, 1: 0.1}}
    expected = sum(
        mixture["a"][i] * mixture["b"][j] * float(cost(factors, price, {"a": i, "b": j})) for i, j in itertools.product((0, 1), repeat=2)
    )
    assert cost(factors, price, mixture) == pytest.approx(expected)


def test_several_platforms() -> None:
    times = {"phone": 4.0, "board": 30.0, "server": 1.0}
    assert weighted(times, {"phone": 0.5, "board": 0.1}) == pytest.approx(5.0)
    assert worst_case(times, {"phone": 5.0, "board": 20.0}) == pytest.approx(1.5)
    arrays = {"phone": np.array([4.0, 6.0]), "board": np.array([30.0, 10.0])}
    assert worst_case(arrays, {"phone": 5.0, "board": 20.0}) == pytest.approx([1.5, 1.2])
    double = weighted_price({"phone": latency, "board": lambda op: 2 * latency(op)}, {"phone": 1.0, "board": 0.5})
    assert double(LARGE) == pytest.approx(2 * latency(LARGE))


def test_gradients_pass() -> None:
    torch = pytest.importorskip("torch")
    phone, board = (torch.tensor(value, requires_grad=True) for value in (4.0, 30.0))
    worst_case({"phone": phone, "board": board}, {"phone": 5.0, "board": 20.0}).backward()
    assert board.grad.item() == pytest.approx(0.05) and phone.grad is None
    weighted({"phone": phone, "board": board}, {"phone": 0.25}).backward()
    assert phone.grad.item() == 0.25


def test_nonsense_is_refused() -> None:
    for call, message in (
        (lambda: Composite(0, 0, 0), "not all of them 0"),
        (lambda: Composite(-1, 0, 1), "at least 0"),
        (lambda: Composite.relative(1, 1, 1, flops=0, moved_bytes=1, latency_ms=1), "positive figures"),
        (lambda: weighted({"phone": 1.0}, {"board": 1.0}), "board"),
        (lambda: weighted({"phone": 1.0}, {}), "none"),
        (lambda: worst_case({"phone": 1.0}, {"phone": 0.0}), "positive limits"),
        (lambda: weighted({"phone": 1.0}, {"phone": -1.0}), "at least 0"),
    ):
        with pytest.raises(UserError, match=message):
            call()
