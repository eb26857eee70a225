from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sartor.recipes.hypergradient import WeightStep, dominant_eigenvalue, frozen, unrolled_gradient


class Problem:
    """Two mixtures of two branches in a small regression in float64: smooth, so that differentiation through the step is exact."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.x = [normal(12, 4), normal(12, 4)]  # training, validation
        self.y = [normal(12), normal(12)]
        self.weights = [(0.5 * normal(4, 3)).requires_grad_(), normal(3).requires_grad_(), (0.5 * normal(4, 3)).requires_grad_()]
        self.alphas = [(0.3 * normal(2)).requires_grad_(), (0.3 * normal(3, 2)).requires_grad_()]
        self.velocities = [0.1 * normal(4, 3), 0.1 * normal(3), 0.1 * normal(4, 3)]

    def loss(self, part: int, weights: list[Tensor], alphas: list[Tensor]) -> Tensor:
        first, readout, second = weights
        p, q = torch.softmax(alphas[0], 0), torch.softmax(alphas[1], 1)
        hidden = p[0] * torch.tanh(self.x[part] @ first) + p[1] * torch.sin(self.x[part] @ second)
        hidden = q[:, 0] * hidden + q[:, 1] * hidden.square()
        return ((hidden @ readout - self.y[part]) ** 2).mean()

    def exact(self, lr: float, momentum: float, decay: float) -> Tensor:
        """Gradient through the step by automatic differentiation."""
        gradients = torch.autograd.grad(self.loss(0, self.weights, self.alphas), self.weights, create_graph=True)
        moved = [w - lr * (g + decay * w + momentum * v) for w, g, v in zip(self.weights, gradients, self.velocities, strict=True)]
        return flat(torch.autograd.grad(self.loss(1, moved, self.alphas), self.alphas))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("seed", [0, 2, 7, 9])
def test_second_order_agrees_with_exact_differentiation_where_the_first_order_does_not(seed: int) -> None:
    problem = Problem(seed)
    lr, momentum, decay = 0.5, 0.9, 3e-4
    before = [w.detach().clone() for w in problem.weights]
    step = WeightStep(lr, momentum, problem.velocities, [decay] * 3)
    loss, gradients = unrolled_gradient(
        lambda: problem.loss(0, problem.weights, problem.alphas),
        lambda: problem.loss(1, problem.weights, problem.alphas),
        problem.weights,
        problem.alphas,
        step,
    )
    found, exact = flat(gradients), problem.exact(lr, momentum, decay)
    first_order = flat(torch.autograd.grad(problem.loss(1, problem.weights, problem.alphas), problem.alphas))
    assert float((found - exact).norm() / exact.norm()) <= 1e-2
    assert cosine(first_order, exact) <= 0.9
    assert all(torch.equal(w, b) for w, b in zip(problem.weights, before, strict=True)), "weights are put back bit for bit"
    assert float(loss) != problem.loss(1, problem.weights, problem.alphas).item(), "the loss is that after the step"


def test_without_the_step_it_is_the_first_order_gradient() -> None:
    problem = Problem(0)
    _, found = unrolled_gradient(
        lambda: problem.loss(0, problem.weights, problem.alphas),
        lambda: problem.loss(1, problem.weights, problem.alphas),
        problem.weights,
        problem.alphas,
        WeightStep(0.0),
    )
    expected = torch.autograd.grad(problem.loss(1, problem.weights, problem.alphas), problem.alphas)
    assert flat(found).allclose(flat(expected))


def test_weights_are_put_back_when_a_loss_fails() -> None:
    problem = Problem(0)
    before = [w.detach().clone() for w in problem.weights]

    def failing() -> Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        unrolled_gradient(
            lambda: problem.loss(0, problem.weights, problem.alphas), failing, problem.weights, problem.alphas, WeightStep(0.5)
        )
    assert all(torch.equal(w, b) for w, b in zip(problem.weights, before, strict=True))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dominant_eigenvalue_of_a_quadratic(sign: float) -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    matrix = torch.from_numpy(basis @ np.diag([sign * 7.0, 3.0, -2.0, 1.0, 0.5, 0.0]) @ basis.T)
    a, b = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True), torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        v = torch.cat([a.flatten(), b])
        return 0.5 * v @ matrix @ v + v.sum()

    assert dominant_eigenvalue(loss, [a, b], iterations=200, tolerance=1e-9) == pytest.approx(7.0 if sign > 0 else 3.0, rel=1e-4)


def test_dominant_eigenvalue_of_a_linear_loss_is_zero() -> None:
    a = torch.ones(3, requires_grad=True)
    assert dominant_eigenvalue(lambda: (2 * a).sum(), [a]) == 0.0


def test_weights_have_no_gradients_while_frozen_and_are_as_before_afterwards() -> None:
    weights = [torch.ones(2, requires_grad=needed) for needed in (True, False, True)]
    with pytest.raises(ZeroDivisionError), frozen(weights):
        assert not any(w.requires_grad for w in weights) and not (weights[0] * 2).requires_grad
        raise ZeroDivisionError
    assert [w.requires_grad for w in weights] == [True, False, True]
