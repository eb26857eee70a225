"""The fast mixed operation: what differentiable search spends its time on, without what its textbook form computes twice.

A mixed edge (Liu et al. 2019, DARTS, section 2.2, equation 2) is ``sum_k share_k * candidate_k(x)``, and most candidates end in a 1x1
convolution and a batch normalisation by the statistics of the batch. Both are linear in the map before them once the statistics are known,
and the statistics follow from the mean and the second moments (the Gram matrix) of that map:

    y = W z,   mean(y) = W mean(z),   var(y) = diag(W cov(z) W^T)

So convolution, normalisation and weighted sum of *all* candidates of *all* edges into a node are one accumulation of matrix products
(:func:`mixed_sum`), which keeps nothing but the maps `z`; its gradients are matrix products too. The same holds in front of an activation
(:func:`pointwise_norm`). Maps are kept in channels_last, in which a map is a matrix `(pixels, channels)` as it lies in memory.

A convolution of dilation 2 is an ordinary one on the four phases of its input (:func:`to_phases`), and so are its gradients, for which
the libraries have slow kernels only. Everything is exact: it equals the textbook computation up to rounding. Where gradients are to be
differentiated again (`create_graph=True`: a Hessian), they are computed in the textbook way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

EPS = 1e-5


def as_rows(x: Tensor) -> Tensor:
    """`(batch, C, H, W)` as `(batch * H * W, C)`: a view of a channels_last tensor, a copy of any other."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_maps(rows: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of :func:`as_rows`: `(batch * H * W, C)` as a channels_last `(batch, C, H, W)`, `shape` giving batch, H and W."""
    return rows.view(shape[0], shape[2], shape[3], rows.shape[1]).permute(0, 3, 1, 2)


def to_phases(x: Tensor) -> Tensor:
    """`(batch, C, H, W)` with even sides as its four pictures of every second pixel, `(4 * batch, C, H / 2, W / 2)`, channels_last."""
    n, c, h, w = x.shape
    split = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
    return split.permute(2, 4, 0, 1, 3, 5).reshape(4 * n, h // 2, w // 2, c).permute(0, 3, 1, 2)


def from_phases(x: Tensor) -> Tensor:
    """Inverse of :func:`to_phases`."""
    n, c, h, w = x.shape
    split = x.permute(0, 2, 3, 1).reshape(2, 2, n // 4, h, w, c)
    return split.permute(2, 3, 0, 4, 1, 5).reshape(n // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


# -- a 1x1 convolution and its batch normalisation as one affine map -----------------------------------------------------------


@dataclass(frozen=True)
class _Folded:
    """``norm(W z) = weight z - shift``, and what the gradient needs. Small matrices, in double precision."""

    weight: Tensor  # (outputs, inputs): W / sigma
    shift: Tensor  # (outputs,): mean(W z) / sigma
    inverse: Tensor  # (outputs,): 1 / sigma
    gram: Tensor  # (inputs, inputs): mean of z z^T
    mean: Tensor  # (inputs,): mean of z

    def tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.shift, self.inverse, self.gram, self.mean


def _fold(z: Tensor, weight: Tensor, eps: float) -> _Folded:
    """Statistics of ``z W^T`` for `z` `(pixels, inputs)`, without computing it."""
    gram = (z.t() @ z).double() / len(z)
    mean = z.sum(0).double() / len(z)
    weight = weight.double()
    centre = weight @ mean
    variance = ((weight @ gram) * weight).sum(1) - centre * centre
    inverse = torch.rsqrt(variance.clamp_min(0.0) + eps)
    return _Folded(inverse[:, None] * weight, inverse * centre, inverse, gram, mean)


def _fold_backward(
    dy: Tensor, mean_dy: Tensor, z: Tensor, f: _Folded, share: float, *, need_z: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None, float]:
    """Gradients of ``share * norm(z W^T)`` `(pixels, outputs)` in `z`, `W` and `share`.

    With y = norm(z W^T), batch normalisation gives dz = share / sigma * (dy - mean(dy) - y * k) W, where k = mean(dy * y) by channel. As y
    is affine in z, k follows from the one product dy^T z, and dz from two products of rank `outputs`.
    """
    pixels = len(z)
    cross = (dy.t() @ z).double() / pixels
    k = (cross * f.weight).sum(1) - mean_dy * f.shift
    dz = dw = None
    scaled = share * f.weight
    if need_z:
        constant = (f.shift * k - mean_dy) @ scaled
        dz = torch.addmm(constant.to(z.dtype), dy, scaled.to(z.dtype))
        dz.addmm_(z, (f.weight.t() @ (k[:, None] * scaled)).to(z.dtype), alpha=-1)
    if need_weight:
        covariance = f.weight @ f.gram - torch.outer(f.shift, f.mean)
        dw = (share * pixels * f.inverse)[:, None] * (cross - torch.outer(mean_dy, f.mean) - k[:, None] * covariance)
        dw = dw.to(z.dtype)
    return dz, dw, pixels * float(k.sum())


def _textbook_gradients(
    compute: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """Gradients of ``compute(*inputs)`` as functions that can be differentiated again; None where none is needed."""
    twins = [x.view_as(x) for x in inputs]  # what one input owes to another is no business of this gradient
    wanted = [twin for twin, need in zip(twins, needed, strict=True) if need]
    found = iter(torch.autograd.grad(compute(*twins), wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _textbook_norm(z: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.batch_norm(F.conv2d(z, weight.flatten(1)[..., None, None]), None, None, None, None, training=True, eps=eps)


class _PointwiseNorm(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, relu: bool, eps: float) -> Tensor:
        folded = _fold(as_rows(z), weight.flatten(1), eps)
        y = F.conv2d(z, folded.weight.to(z.dtype)[..., None, None], -folded.shift.to(z.dtype))
        if relu:
            y = torch.relu_(y)
        ctx.relu, ctx.eps = relu, eps
        ctx.save_for_backward(z, weight, *((y,) if relu else ()), *folded.tensors())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, *saved = ctx.saved_tensors
        if ctx.relu:
            dy = torch.ops.aten.threshold_backward(dy, saved[0], 0)
        if torch.is_grad_enabled():
            again = _textbook_gradients(lambda z, w: _textbook_norm(z, w, ctx.eps), (z, weight), ctx.needs_input_grad[:2], dy)
            return *again, None, None
        flat = as_rows(dy)
        mean = flat.sum(0).double() / len(flat)
        need_z, need_weight = ctx.needs_input_grad[:2]
        dz, dw, _ = _fold_backward(flat, mean, as_rows(z), _Folded(*saved[-5:]), 1.0, need_z=need_z, need_weight=need_weight)
        return None if dz is None else as_maps(dz, z.shape), None if dw is None else dw.view(weight.shape), None, None


def pointwise_norm(z: Tensor, weight: Tensor, *, relu: bool = False, eps: float = EPS) -> Tensor:
    """1x1 convolution, batch normalisation by the batch's statistics without scale and shift, and ReLU if asked.

    Equal to ``batch_norm(conv2d(z, weight), training=True)``, in one pass over `z` and one over the result.

    Args:
        z: `(batch, inputs, H, W)`.
        weight: `(outputs, inputs, 1, 1)`.

    Returns:
        `(batch, outputs, H, W)`.
    """
    found: Tensor = _PointwiseNorm.apply(z, weight, relu, eps)  # type: ignore[no-untyped-call]  # torch's Function.apply has no types
    return found


class _ChannelNorm(Function):
    """Normalised maps and 1 / sigma. The gradient of the second is what lets the first one's be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, _, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(y, inverse)
        return y, inverse

    @staticmethod
    def backward(ctx: Any, dy: Tensor, d_inverse: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        flat, out = as_rows(dy), as_rows(y)
        k = (flat * out).sum(0) / len(flat)
        dx = flat * inverse - inverse * flat.sum(0) / len(flat)
        dx = dx.addcmul_(out, inverse * (k + inverse * d_inverse / len(flat)), value=-1)
        return as_maps(dx, y.shape), None


def channel_norm(x: Tensor, *, eps: float = EPS) -> Tensor:
    """Batch normalisation of `(batch, C, H, W)` by the batch's statistics, without scale and shift.

    Torch's own gradient of it is many times slower in channels_last.
    """
    found: Tensor = _ChannelNorm.apply(x, eps)[0]  # type: ignore[no-untyped-call]
    return found


def average_pool(x: Tensor, stride: int = 1) -> Tensor:
    """3x3 average pool of padding 1 that does not count the padding: a depthwise convolution with ones and a division by the count."""
    ones = x.new_ones(1, 1, 3, 3)
    count = F.conv2d(x.new_ones(1, 1, x.shape[2], x.shape[3]), ones, None, stride, 1)
    return F.conv2d(x, ones.expand(x.shape[1], 1, 3, 3), None, stride, 1, 1, x.shape[1]) * count.reciprocal()


# -- the weighted sum ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One summand of a node: a map `(batch, C, H, W)` as it is, or, with a `weight`, the normalised 1x1 convolution of it.

    `phases`: the map is in the layout of :func:`to_phases`, and so is its convolution.
    """

    map: Tensor
    weight: Tensor | None = None
    phases: bool = False


class _MixedSum(Function):
    @staticmethod
    def forward(ctx: Any, kinds: Sequence[tuple[bool, bool]], eps: float, shares: Tensor, *tensors: Tensor) -> Tensor:
        values, saved = shares.tolist(), []
        folded: list[_Folded | None] = []
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        shift: dict[bool, Any] = {False: 0.0, True: 0.0}
        for (convolved, phases), share, (z, weight) in zip(kinds, values, pairs, strict=True):
            folded.append(_fold(as_rows(z), weight.flatten(1), eps) if convolved else None)
            if (fold := folded[-1]) is not None:
                shift[phases] = shift[phases] - share * fold.shift
        sums: dict[bool, Tensor] = {}
        shape = _sum_shape(kinds, pairs)
        for (_, phases), share, (z, _), fold in zip(kinds, values, pairs, folded, strict=True):
            rows = as_rows(z)
            if phases not in sums:
                start = torch.as_tensor(shift[phases], dtype=z.dtype, device=z.device)
                sums[phases] = start.expand(len(rows), shape[1]).contiguous()
            if fold is None:
                sums[phases].add_(rows, alpha=share)
            else:
                sums[phases].addmm_(rows, (share * fold.weight.t()).to(z.dtype))
                saved += fold.tensors()
        ctx.kinds, ctx.eps = kinds, eps
        ctx.save_for_backward(shares, *tensors, *saved)
        return _joined(sums, shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        shares, *saved = ctx.saved_tensors
        count = len(ctx.kinds)
        tensors, small = saved[: 2 * count], iter(saved[2 * count :])
        if torch.is_grad_enabled():
            compute = partial(_textbook_sum, ctx.kinds, ctx.eps)
            return None, None, *_textbook_gradients(compute, (shares, *tensors), ctx.needs_input_grad[2:], dy)
        rows = {False: as_rows(dy).contiguous()}  # a slice of a concatenation's gradient is read many times
        if any(phases for _, phases in ctx.kinds):
            rows[True] = as_rows(to_phases(dy))
        mean = rows[False].sum(0).double() / len(rows[False])
        grads: list[Tensor | None] = []
        d_shares: list[float] = []
        for number, ((convolved, phases), share) in enumerate(zip(ctx.kinds, shares.tolist(), strict=True)):
            z, weight = tensors[2 * number], tensors[2 * number + 1]
            need_z, need_weight = ctx.needs_input_grad[3 + 2 * number : 5 + 2 * number]
            upstream = rows[phases]
            if not convolved:
                d_shares.append(float(torch.dot(upstream.reshape(-1), as_rows(z).reshape(-1))) if ctx.needs_input_grad[2] else 0.0)
                grads += [as_maps(upstream * share, z.shape) if need_z else None, None]
                continue
            fold = _Folded(*(next(small) for _ in range(5)))
            dz, dw, d_share = _fold_backward(upstream, mean, as_rows(z), fold, share, need_z=need_z, need_weight=need_weight)
            d_shares.append(d_share)
            grads += [None if dz is None else as_maps(dz, z.shape), None if dw is None else dw.view(weight.shape)]
        return None, None, torch.tensor(d_shares, dtype=shares.dtype, device=shares.device), *grads


def _textbook_sum(kinds: Sequence[tuple[bool, bool]], eps: float, shares: Tensor, *tensors: Tensor) -> Tensor:
    total: Any = 0.0
    for number, (convolved, phases) in enumerate(kinds):
        z, weight = tensors[2 * number], tensors[2 * number + 1]
        value = _textbook_norm(z, weight, eps) if convolved else z
        total = total + shares[number] * (from_phases(value) if phases else value)
    found: Tensor = total
    return found


def _sum_shape(kinds: Sequence[tuple[bool, bool]], pairs: Sequence[tuple[Tensor, Tensor]]) -> torch.Size:
    """Shape of the sum, from the first summand."""
    (convolved, phases), (z, weight) = kinds[0], pairs[0]
    n, c, h, w = z.shape
    channels = weight.shape[0] if convolved else c
    return torch.Size((n // 4, channels, 2 * h, 2 * w) if phases else (n, channels, h, w))


def _joined(sums: dict[bool, Tensor], shape: torch.Size) -> Tensor:
    """The sums in both layouts as one map."""
    if True not in sums:
        return as_maps(sums[False], shape)
    n, c, h, w = shape
    spread = from_phases(sums[True].view(4 * n, h // 2, w // 2, c).permute(0, 3, 1, 2))
    return spread if False not in sums else as_maps(sums[False].add_(as_rows(spread)), shape)


def mixed_sum(terms: Sequence[Term], shares: Tensor, *, eps: float = EPS) -> Tensor:
    """``sum_k shares[k] * value(terms[k])``, the value of a term with a weight being ``batch_norm(conv2d(map, weight))``.

    Args:
        terms: at least one; values of one shape `(batch, C, H, W)`.
        shares: `(terms,)`, the mixture's weights. No gradient for them is computed where none is asked for.

    Returns:
        `(batch, C, H, W)`, channels_last.
    """
    kinds = tuple((term.weight is not None, term.phases) for term in terms)
    nothing = shares.new_empty(0)
    tensors = [t for term in terms for t in (term.map, nothing if term.weight is None else term.weight)]
    found: Tensor = _MixedSum.apply(kinds, eps, shares, *tensors)  # type: ignore[no-untyped-call]
    return found


__all__ = [
    "EPS", "Term", "as_maps", "as_rows", "average_pool", "channel_norm", "from_phases", "mixed_sum", "pointwise_norm", "to_phases",
]  # fmt: skip
