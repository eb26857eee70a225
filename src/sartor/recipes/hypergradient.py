"""Gradients of the validation loss through one step of training: the second order of DARTS, and the curvature that RobustDARTS watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class WeightStep:
    """The step of the weights that is unrolled: ``w - lr * (gradient + weight_decay_w * w + momentum * velocity_w)``.

    `velocities` and `decays` are per weight tensor; None for zero.
    """

    lr: float
    momentum: float = 0.0
    velocities: Sequence[Tensor | None] | None = None
    decays: Sequence[float] | None = None

    def displacement(self, number: int, weight: Tensor, gradient: Tensor) -> Tensor:
        moved = gradient
        if self.decays is not None and self.decays[number]:
            moved = moved + self.decays[number] * weight
        velocity = self.velocities[number] if self.velocities is not None else None
        if velocity is not None and self.momentum:
            moved = moved + self.momentum * velocity
        return -self.lr * moved


def unrolled_gradient(
    train_loss: Loss,
    validation_loss: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    step: WeightStep,
    *,
    epsilon: float = 0.01,
) -> tuple[Tensor, list[Tensor]]:
    """Gradient in `alphas` of the validation loss after one unrolled step of `weights`, and that loss.

    Liu et al. 2019 (DARTS), section 2.3: equation 7, ``dL_val(w', alpha) - lr * d2L_train(w, alpha) . dL_val(w')``, whose matrix-vector
    product is a finite difference of the gradients in alpha at ``w +- e * dL_val(w')`` with ``e = epsilon / |dL_val(w')|`` (equation 8 and
    footnote 2). Two more forward and backward passes, and no memory for second derivatives.

    Args:
        train_loss, validation_loss: recompute a scalar loss from the present values of weights and alphas. Any random draw in them must
            repeat from call to call.
        weights, alphas: leaf tensors. The weights are moved in place and put back, bit for bit.
    """
    start = [w.detach().clone() for w in weights]
    try:
        gradients = _gradients(train_loss(), weights)
        with torch.no_grad():
            for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                weight.add_(step.displacement(number, weight, gradient))
        del gradients
        loss = validation_loss()
        found = _gradients(loss, [*alphas, *weights])
        direct, direction = found[: len(alphas)], found[len(alphas) :]
        norm = torch.sqrt(torch.stack([d.square().sum() for d in direction]).sum())
        if not bool(norm > 0):
            return loss.detach(), direct
        scale = epsilon / norm
        ahead = _alpha_gradients_at(train_loss, weights, start, direction, scale, alphas)
        behind = _alpha_gradients_at(train_loss, weights, start, direction, -scale, alphas)
        product = [(a - b) / (2 * scale) for a, b in zip(ahead, behind, strict=True)]
        return loss.detach(), [d - step.lr * p for d, p in zip(direct, product, strict=True)]
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, start, strict=True):
                weight.copy_(value)


@contextmanager
def frozen(weights: Iterable[Tensor]) -> Iterator[None]:
    """No gradients for `weights` in what is computed meanwhile.

    Asking for the gradients of the architecture alone is not enough: a function of our own does not learn what is asked for, and would
    compute those of its weights too.
    """
    held = [weight for weight in weights if weight.requires_grad]
    for weight in held:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)


def _alpha_gradients_at(
    loss: Loss, weights: Sequence[Tensor], start: Sequence[Tensor], direction: Sequence[Tensor], scale: Tensor, alphas: Sequence[Tensor]
) -> list[Tensor]:
    with torch.no_grad():
        for weight, value, towards in zip(weights, start, direction, strict=True):
            torch.add(value, scale * towards, out=weight)
    with frozen(weights):
        return _gradients(loss(), alphas)


def _gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a scalar; zero for inputs that it does not depend on."""
    found = torch.autograd.grad(loss, list(inputs), allow_unused=True) if loss.requires_grad else [None] * len(inputs)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def dominant_eigenvalue(loss: Loss, alphas: Sequence[Tensor], *, iterations: int = 20, tolerance: float = 1e-2, seed: int = 0) -> float:
    """The largest eigenvalue of the Hessian of `loss` in `alphas`, by power iteration on exact Hessian-vector products.

    Zela et al. 2020 ("Understanding and robustifying differentiable architecture search", section 3) watch it for the validation loss;
    their code takes the largest of all, not the one of largest magnitude: where that is negative, it is shifted out of the way.

    Args:
        iterations: at most so many products a pass; one ends when the estimate changes by less than `tolerance`, relatively.
    """
    inputs = list(alphas)
    gradients = torch.autograd.grad(loss(), inputs, create_graph=True, allow_unused=True)
    kept = [(x, g) for x, g in zip(inputs, gradients, strict=True) if g is not None and g.requires_grad]
    if not kept:
        return 0.0
    xs, gs = [x for x, _ in kept], [g for _, g in kept]

    def product(vector: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(gs, xs, grad_outputs=vector, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if p is None else p.detach() for x, p in zip(xs, found, strict=True)]

    def extreme(shift: float) -> float:
        """The eigenvalue of ``H + shift`` of largest magnitude."""
        return _power_iteration(
            lambda v: [p + shift * part for p, part in zip(product(v), v, strict=True)], xs, iterations, tolerance, seed
        )

    value = extreme(0.0)
    return value if value >= 0 else extreme(-value) + value


def _power_iteration(
    product: Callable[[list[Tensor]], list[Tensor]], like: Sequence[Tensor], iterations: int, tolerance: float, seed: int
) -> float:
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in like]
    value = 0.0
    for _ in range(iterations):
        norm = torch.sqrt(torch.stack([v.square().sum() for v in vector]).sum())
        if not bool(norm > 0):
            return 0.0
        vector = [v / norm for v in vector]
        image = product(vector)
        last, value = value, float(sum((v * i).sum() for v, i in zip(vector, image, strict=True)))
        if abs(value - last) <= tolerance * abs(value):
            break
        vector = image
    return value
