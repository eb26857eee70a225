"""Operations read back from their signatures, as latency tables name them (:attr:`sartor.hardware.graph.Op.signature`)."""

from __future__ import annotations

import re
from typing import Any

from sartor.errors import UserError
from sartor.hardware.graph import Op, Shape

_SIZE = r"([1-9]\d{0,8})"
_SHAPES = re.compile(rf"{_SIZE}x{_SIZE}x{_SIZE}(?:>{_SIZE}x{_SIZE}x{_SIZE})?")
_WINDOW = re.compile(rf"k{_SIZE}s{_SIZE}(?:g{_SIZE})?(?:d{_SIZE})?")
_OTHER = re.compile(r"m(\d{1,18})p(\d{1,18})")


def parse(text: str) -> Op:
    """The operation of a signature, without name and producers' places: ``parse(op.signature).signature == op.signature``.

    Raises:
        UserError: for a text that is no signature.
    """
    try:
        op = _parse(*text.strip().split(":"))
    except (ValueError, TypeError, IndexError, UserError):
        op = None
    if op is None or op.signature != text.strip() or op.in_shape[0] % op.groups or op.out_shape[0] % op.groups:
        raise UserError(f"op: expected a signature such as conv:16x14x14>48x14x14:k1s1g1:relu or add:16x14x14, but got {text[:80]!r}.")
    return op


def _parse(kind: str, shapes: str, *rest: str) -> Op:
    numbers = [int(size) for size in _matched(_SHAPES, shapes) if size is not None]
    into: Shape = (numbers[0], numbers[1], numbers[2])
    out: Shape = (numbers[3], numbers[4], numbers[5]) if len(numbers) > 3 else into
    left, fields, inputs = list(rest), dict[str, Any](), 1
    if kind == "se":
        hidden, act = left
        return Op(kind, into, out, act=act, inputs=(-1,), hidden=int(hidden.removeprefix("h")))
    if kind in ("conv", "maxpool", "avgpool"):
        kernel, stride, groups, dilation = (int(size or 1) for size in _matched(_WINDOW, left.pop(0)))
        fields = {"kernel": kernel, "stride": stride, "groups": groups, "dilation": dilation}
    if kind == "concat" and left and left[0].startswith("n"):
        inputs = int(left.pop(0)[1:])
    if kind == "other":
        label = ":".join(left[:-1])
        macs, params = (int(count or 0) for count in _matched(_OTHER, left[-1]))
        return Op(kind, into, out, inputs=(-1,), label=label, own_macs=macs, own_params=params)
    if kind == "conv" and left[:1] == ["add"]:
        inputs = 2
        left.pop(0)
    (act,) = left or [""]
    return Op(kind, into, out, act=act, inputs=(-1,) * inputs, **fields)


def _matched(pattern: re.Pattern[str], text: str) -> tuple[str | None, ...]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return found.groups()


__all__ = ["parse"]
