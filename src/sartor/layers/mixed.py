"""The fast mixed operation: what differentiable search spends its time on, without what its textbook form computes twice.

A mixed edge (Liu et al. 2019, DARTS, section 2.2, equation 2) is ``sum_k share_k * candidate_k(x)``, and most candidates end in a 1x1
convolution and a batch normalisation by the statistics of the batch. Both are linear in the map before them once the statistics are known,
and the statistics follow from the mean and the second moments (the Gram matrix) of that map:

    y = W z,   mean(y) = W mean(z),   var(y) = diag(W cov(z) W^T)

So convolution, normalisation and weighted sum of *all* candidates of *all* edges into a node are one accumulation of matrix products
(:func:`mixed_sum`), which keeps nothing but the maps `z`; its gradients are matrix products too. The same holds in front of an activation
(:func:`pointwise_norms`). Maps are kept in channels_last, in which a map is a matrix `(pixels, channels)` as it lies in memory.

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

from sartor.layers.products import add_product, affine, as_maps, as_rows, moments

EPS = 1e-5


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
    """``norm(W z) = weight z - shift`` of several maps, and what the gradients need. Small matrices, in double precision."""

    weight: Tensor  # (maps, outputs, inputs): W / sigma
    shift: Tensor  # (maps, outputs): mean(W z) / sigma
    inverse: Tensor  # (maps, outputs): 1 / sigma
    gram: Tensor  # (maps, inputs, inputs): mean of z z^T
    mean: Tensor  # (maps, inputs): mean of z

    def tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.shift, self.inverse, self.gram, self.mean


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Means of the channels of several maps of one size: `(maps, channels)`, double."""
    rows = [as_rows(x) for x in maps]
    return torch.stack([x.sum(0) for x in rows]).double() / len(rows[0])


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _fold(zs: Sequence[Tensor], weights: Sequence[Tensor], eps: float) -> _Folded:
    """Statistics of every ``W z``, `z` `(batch, inputs, H, W)`, without computing it. All maps and all weights have one shape."""
    gram = torch.stack([moments(z, z) for z in zs]).double() / _pixels(zs[0])
    mean, weight = _mean(zs), torch.stack(list(weights)).flatten(2).double()
    centre = (weight @ mean[..., None])[..., 0]
    variance = ((weight @ gram) * weight).sum(2) - centre * centre
    inverse = torch.rsqrt(variance.clamp_min(0.0) + eps)
    return _Folded(inverse[..., None] * weight, inverse * centre, inverse, gram, mean)


def _fold_backward(
    dys: Sequence[Tensor], mean_dy: Tensor, zs: Sequence[Tensor], f: _Folded, shares: Tensor, needed: Sequence[bool], by_weight: bool
) -> tuple[list[Tensor | None], Sequence[Tensor | None], Tensor]:
    """Gradients of ``shares[k] * norm(W_k z_k)`` `(batch, outputs, H, W)` in the maps (where `needed`), the weights and the shares.

    With y = norm(W z), batch normalisation gives dz = share / sigma * W^T (dy - mean(dy) - y * k), where k = mean(dy * y) by channel. As y
    is affine in z, k follows from the one product dy z^T, and dz from two products of rank `outputs`.
    """
    pixels, kind = _pixels(zs[0]), zs[0].dtype
    cross = torch.stack([moments(dy, z) for dy, z in zip(dys, zs, strict=True)]).double() / pixels
    k = (cross * f.weight).sum(2) - mean_dy * f.shift
    scaled = shares[:, None, None] * f.weight
    constant = ((f.shift * k - mean_dy)[:, None] @ scaled)[:, 0].to(kind)
    product, factor = (f.weight.transpose(1, 2) @ (-k[..., None] * scaled)).to(kind), scaled.transpose(1, 2).to(kind)
    dw: Sequence[Tensor | None] = [None] * len(zs)
    if by_weight:
        covariance = f.weight @ f.gram - f.shift[..., None] * f.mean[:, None]
        gradient = cross - mean_dy[..., None] * f.mean[:, None] - k[..., None] * covariance
        dw = ((pixels * shares[:, None] * f.inverse)[..., None] * gradient).to(kind).unbind(0)
    found: list[Tensor | None] = [affine(dy, factor[i], constant[i]) if needed[i] else None for i, dy in enumerate(dys)]
    for i, dz in enumerate(found):
        if dz is not None:
            add_product(dz, zs[i], product[i].t())
    return found, dw, pixels * k.sum(1)


def _textbook_gradients(
    compute: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """Gradients of ``compute(*inputs)`` as functions that can be differentiated again; None where none is needed."""
    twins = [x.view_as(x) for x in inputs]  # what one input owes to another is no business of this gradient
    wanted = [twin for twin, need in zip(twins, needed, strict=True) if need]
    found = iter(torch.autograd.grad(compute(*twins), wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _like(gradient: Tensor | None, weight: Tensor, needed: bool) -> Tensor | None:
    return gradient.view(weight.shape) if gradient is not None and needed else None


def _textbook_norm(z: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.batch_norm(F.conv2d(z, weight.flatten(1)[..., None, None]), None, None, None, None, training=True, eps=eps)


class _PointwiseNorm(Function):
    @staticmethod
    def forward(ctx: Any, relu: bool, eps: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        zs, weights = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        folded = _fold(zs, weights, eps)
        matrices, biases = folded.weight.to(zs[0].dtype), (-folded.shift).to(zs[0].dtype)
        ys = [affine(z, matrices[i], biases[i]) for i, z in enumerate(zs)]
        if relu:
            ys = [torch.relu_(y) for y in ys]
        ctx.relu, ctx.eps = relu, eps
        ctx.save_for_backward(*folded.tensors(), *tensors, *(ys if relu else ()))
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        small, saved, count = ctx.saved_tensors[:5], ctx.saved_tensors[5:], len(dys)
        zs, weights = saved[:count], saved[count : 2 * count]
        if ctx.relu:
            dys = tuple(torch.ops.aten.threshold_backward(dy, y, 0) for dy, y in zip(dys, saved[2 * count :], strict=True))
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            norm = partial(_textbook_norm, eps=ctx.eps)
            pairs = zip(zs, weights, needed[:count], needed[count:], dys, strict=True)
            again = [_textbook_gradients(norm, (z, w), (need_z, need_w), dy) for z, w, need_z, need_w, dy in pairs]
            return None, None, *(dz for dz, _ in again), *(dw for _, dw in again)
        ones = small[0].new_ones(count)
        dzs, dws, _ = _fold_backward(dys, _mean(dys), zs, _Folded(*small), ones, needed[:count], any(needed[count:]))
        found = [_like(dw, w, need) for dw, w, need in zip(dws, weights, needed[count:], strict=True)]
        return None, None, *dzs, *found


def pointwise_norms(zs: Sequence[Tensor], weights: Sequence[Tensor], *, relu: bool = False, eps: float = EPS) -> tuple[Tensor, ...]:
    """1x1 convolution, batch normalisation by the batch's statistics without scale and shift, and ReLU if asked, of several maps.

    Equal to ``batch_norm(conv2d(z, weight), training=True)`` for each, in one pass over `z` and one over the result.

    Args:
        zs: at least one, all `(batch, inputs, H, W)`.
        weights: as many, all `(outputs, inputs, 1, 1)`.

    Returns:
        As many `(batch, outputs, H, W)`.
    """
    found: tuple[Tensor, ...] = _PointwiseNorm.apply(relu, eps, *zs, *weights)  # type: ignore[no-untyped-call]  # torch's has no types
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

    `phases`: the map is in the layout of :func:`to_phases`, and so is its convolution, which must have a weight.
    """

    map: Tensor
    weight: Tensor | None = None
    phases: bool = False


def _by_shape(kinds: Sequence[tuple[bool, bool]], weights: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the terms with a weight, those of one shape together: their small matrices are worked on at once."""
    groups: dict[torch.Size, list[int]] = {}
    for number, ((convolved, _), weight) in enumerate(zip(kinds, weights, strict=True)):
        if convolved:
            groups.setdefault(weight.shape, []).append(number)
    return list(groups.values())


class _MixedSum(Function):
    @staticmethod
    def forward(ctx: Any, kinds: Sequence[tuple[bool, bool]], eps: float, shares: Tensor, *tensors: Tensor) -> Tensor:
        zs, weights = tensors[: len(kinds)], tensors[len(kinds) :]
        double, kind = shares.double(), zs[0].dtype
        matrices: dict[int, Tensor] = {}
        shift: dict[bool, Any] = {False: 0.0, True: 0.0}
        saved: list[Tensor] = []
        for group in _by_shape(kinds, weights):
            folded = _fold([zs[i] for i in group], [weights[i] for i in group], eps)
            matrices.update(zip(group, (double[group, None, None] * folded.weight).to(kind).unbind(0), strict=True))
            shifts = double[group, None] * folded.shift
            for phases in (False, True):
                places = [place for place, i in enumerate(group) if kinds[i][1] == phases]
                shift[phases] = shift[phases] - shifts[places].sum(0)
            saved += folded.tensors()
        sums: dict[bool, Tensor] = {}
        for i, matrix in matrices.items():  # the first one brings the shift of all
            phases = kinds[i][1]
            if phases in sums:
                add_product(sums[phases], zs[i], matrix)
            else:
                sums[phases] = affine(zs[i], matrix, shift[phases].to(kind))
        for i, share in enumerate(shares.tolist()):
            if i not in matrices:
                sums[False] = sums[False].add_(zs[i], alpha=share) if False in sums else zs[i] * share
        ctx.kinds, ctx.eps = kinds, eps
        ctx.save_for_backward(shares, *tensors, *saved)
        return _joined(sums).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.kinds)
        shares, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            compute = partial(_textbook_sum, ctx.kinds, ctx.eps)
            return None, None, *_textbook_gradients(compute, (shares, *saved[: 2 * count]), ctx.needs_input_grad[2:], dy)
        zs, weights, small = saved[:count], saved[count : 2 * count], saved[2 * count :]
        need_shares, need_z, need_w = ctx.needs_input_grad[2], ctx.needs_input_grad[3 : 3 + count], ctx.needs_input_grad[3 + count :]
        upstream = {False: dy.contiguous(memory_format=torch.channels_last)}  # a slice of a concatenation's gradient is read many times
        if any(phases for _, phases in ctx.kinds):
            upstream[True] = to_phases(dy).contiguous(memory_format=torch.channels_last)
        mean = _mean([upstream[False]])
        dzs: list[Tensor | None] = [None] * count
        dws: list[Tensor | None] = [None] * count
        d_shares = shares.new_zeros(count, dtype=torch.float64)
        for place, group in enumerate(_by_shape(ctx.kinds, weights)):
            dys = [upstream[ctx.kinds[i][1]] for i in group]
            found, dw, d_share = _fold_backward(
                dys, mean, [zs[i] for i in group], _Folded(*small[5 * place : 5 * place + 5]), shares[group].double(),
                [need_z[i] for i in group], any(need_w),
            )  # fmt: skip
            d_shares[group] = d_share
            for i, dz, gradient in zip(group, found, dw, strict=True):
                dzs[i], dws[i] = dz, _like(gradient, weights[i], need_w[i])
        for i, share in enumerate(shares.tolist()):
            if not ctx.kinds[i][0]:
                dzs[i] = upstream[False] * share if need_z[i] else None
                if need_shares:
                    d_shares[i] = torch.dot(as_rows(upstream[False]).view(-1), as_rows(zs[i]).reshape(-1))
        return None, None, d_shares.to(shares.dtype), *dzs, *dws


def _textbook_sum(kinds: Sequence[tuple[bool, bool]], eps: float, shares: Tensor, *tensors: Tensor) -> Tensor:
    total: Any = 0.0
    for number, (convolved, phases) in enumerate(kinds):
        z, weight = tensors[number], tensors[len(kinds) + number]
        value = _textbook_norm(z, weight, eps) if convolved else z
        total = total + shares[number] * (from_phases(value) if phases else value)
    found: Tensor = total
    return found


def _joined(sums: dict[bool, Tensor]) -> Tensor:
    """The sums in both layouts as one map."""
    if True not in sums:
        return sums[False]
    spread = from_phases(sums[True])
    return sums[False].add_(spread) if False in sums else spread


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
    tensors = [*(term.map for term in terms), *(nothing if term.weight is None else term.weight for term in terms)]
    found: Tensor = _MixedSum.apply(kinds, eps, shares, *tensors)  # type: ignore[no-untyped-call]
    return found


__all__ = [
    "EPS", "Term", "average_pool", "channel_norm", "from_phases", "mixed_sum", "pointwise_norms", "to_phases",
]  # fmt: skip
