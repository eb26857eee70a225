"""The arithmetic of a training step: all in fp32, or the products in bf16.

Automatic mixed precision (Micikevicius et al. 2018, "Mixed precision training") with bfloat16 (Kalamkar et al. 2019): weights, gradients of
weights, statistics and the optimiser stay in fp32; bf16 has fp32's exponents, so that losses need no scaling. A processor with bf16
instructions trains convolutions 1.3 to 1.7 times as fast; one without them is slower, which is why a run measures before it chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sartor.errors import UserError

ARITHMETICS = ("fp32", "bf16")


def check(arithmetic: str) -> None:
    """Raises:
    UserError: for an arithmetic of another name than those of `ARITHMETICS`.
    """
    if arithmetic not in ARITHMETICS:
        raise UserError(f"expected arithmetic= of {' or '.join(ARITHMETICS)}, got {arithmetic!r}")


def forward(arithmetic: str, net: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``net(*inputs)`` in the arithmetic "fp32" or "bf16"; what comes out is never bf16, so that a loss can be taken of it.

    Weights are cast anew in each pass: the usual cache of casts is shared by threads, and nets that run side by side would meet in it.
    """
    if arithmetic == "fp32":
        return net(*inputs)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return net(*inputs).float()
