"""Products of maps and matrices are what the matrix product of their pixels gives, by whichever library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sartor.layers import products
from sartor.layers.products import add_product, affine, as_maps, as_rows, moments

LAYOUTS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool(found.shape == expected.shape and (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1e-3))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 18),
    outputs=st.integers(1, 18),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(list(LAYOUTS)),
    part=st.booleans(),
    way=st.sampled_from(["quickest", "no adding convolution", "matrices"]),
)
def test_each_is_the_matrix_product(
    batch: int, inputs: int, outputs: int, height: int, width: int, dtype: torch.dtype, layout: str, part: bool, way: str
) -> None:
    x, dy = (
        drawn(batch, channels + 2 * part, height, width, seed=seed, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
        for seed, channels in enumerate((inputs, outputs))
    )
    if part:  # a slice of a concatenation's gradient
        x, dy = x[:, 1:-1], dy[:, 1:-1]
    matrix, bias = drawn(outputs, inputs, seed=2, dtype=dtype), drawn(outputs, seed=3, dtype=dtype)
    rows = as_rows(x).double()
    with pytest.MonkeyPatch.context() as patch:
        if way != "quickest":
            patch.setattr(products, "_ADD", None)
        if way == "matrices":
            patch.setattr(products, "_convolves", lambda x: False)
        assert close(moments(dy, x), (as_rows(dy).double().t() @ rows).to(dtype))
        value = affine(x, matrix, bias)
        assert value.is_contiguous(memory_format=torch.channels_last)
        expected = rows @ matrix.double().t() + bias.double()
        assert close(value, as_maps(expected.to(dtype), value.shape)) and close(affine(x, matrix) + bias[:, None, None], value)
        add_product(value, x, 2.0 * matrix)
        expected = expected + 2.0 * rows @ matrix.double().t()
        assert close(value, as_maps(expected.to(dtype), value.shape))


class Calls(TorchDispatchMode):
    """Names of the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(op).split(".")[1])
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fp32_takes_the_quick_way_and_it_is_there(dtype: torch.dtype) -> None:
    x, matrix = drawn(1, 4, 2, 2, seed=0, dtype=dtype), drawn(4, 4, seed=1, dtype=dtype)
    with Calls() as calls:
        moments(x, x)
        add_product(affine(x, matrix, matrix[0]), x, matrix)
    quick = {"convolution", "convolution_backward", "_convolution_pointwise_"}
    expected = quick if dtype == torch.float32 and torch.backends.mkldnn.is_available() else set()
    assert calls.names & quick == expected and bool(calls.names & {"mm", "addmm"}) == (not expected)
