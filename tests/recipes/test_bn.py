from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sartor.errors import UserError
from sartor.recipes.bn import calibrate_bn


def _net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))


def test_one_batch_gives_exactly_its_statistics_and_forgets_what_was() -> None:
    net, x = _net(), torch.randn(32, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean += 7.0
    calibrate_bn(net, x)
    net[3].eval()
    first = net[0](x)
    assert torch.allclose(net[1].running_mean, first.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(net[1].running_var, first.var((0, 2, 3)), rtol=1e-5)
    assert not net.training and all(not m.training for m in net.modules()) and net[1].momentum == 0.1
    # eval mode on these images is now train mode on them, but for the n - 1 of the variance
    expected = nn.functional.batch_norm(
        net[4](nn.functional.relu(nn.functional.batch_norm(first, None, None, net[1].weight, net[1].bias, True))),
        None,
        None,
        net[5].weight,
        net[5].bias,
        True,
    )
    assert torch.allclose(net(x), expected, atol=2e-2)


def test_batches_of_unequal_size_count_by_their_size() -> None:
    net, x = nn.Sequential(nn.BatchNorm2d(2)), torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(2)) * 3 + 1
    calibrate_bn(net, [x[:24], x[24:]])
    bn = net[0]
    assert torch.allclose(bn.running_mean, x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(bn.running_var, 0.8 * x[:24].var((0, 2, 3)) + 0.2 * x[24:].var((0, 2, 3)), rtol=1e-5)


def test_arrays_are_cut_into_equal_batches() -> None:
    sizes: list[int] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return x

    calibrate_bn(nn.Sequential(Spy(), nn.BatchNorm2d(1)), np.ones((21, 1, 2, 2), np.float32), batch=10)
    assert sizes == [7, 7, 7]


def test_no_images_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one training image"):
        calibrate_bn(_net(), [])
