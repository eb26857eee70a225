from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sartor.data import Dataset, Split
from sartor.errors import UserError
from sartor.evaluators.supernet import SupernetEvaluator, fold_bn
from sartor.recipes.bn import calibrate_bn
from sartor.recipes.sandwich import train_sandwich
from sartor.spaces.mobile import MobileNet, MobileSpec, Stage

SPEC = MobileSpec("tiny", (Stage((8, 16), (1, 2), kernels=(3, 5), expands=(1, 3), ses=(False, True)),), stem_widths=(8,), stem_strides=(1,))


def data(validation: int = 120) -> Dataset:
    """Two classes of bright halves in noise."""
    splits = []
    for seed, n in enumerate((256, validation, 4)):
        rng, labels = np.random.default_rng(seed), np.arange(n) % 4
        images = rng.normal(size=(n, 1, 8, 8)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] *= 2.5
        splits.append(Split(images, labels, np.zeros(1), np.ones(1)))
    return Dataset("halves", *splits, tuple("abcd"), np.zeros(1), np.ones(1))


@pytest.fixture(scope="module")
def net() -> MobileNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MobileNet(SPEC, (1, 8, 8), 4)
    train_sandwich(net, data(), steps=4, batch=32)
    return net


def test_metrics_are_those_of_the_calibrated_extracted_net(net: MobileNet) -> None:
    d = data()
    evaluator = SupernetEvaluator(net, d, calibration=256)
    for arch in (net.smallest, net.largest, net.space.sample(np.random.default_rng(1))):
        module = calibrate_bn(net.extract(arch), d.train.images(), batch=64)
        with torch.no_grad():
            hits = module(torch.from_numpy(d.validation.images())).argmax(1).numpy() == d.validation.labels
        got = evaluator(arch)
        # calibration images come in another order: a borderline image may flip
        assert got["accuracy"] == pytest.approx(hits.mean(), abs=0.03)
        assert got["params"] == sum(p.numel() for p in net.extract(arch).parameters())
        assert got["macs"] == net.costs(arch)["macs"] == evaluator.evaluate_module(net.extract(arch))["macs"]
        assert got["top5"] == 1.0


def test_results_are_cached_by_canonical_architecture_until_cleared(net: MobileNet) -> None:
    evaluator = SupernetEvaluator(net, data())
    loose = dict(net.smallest)
    off = [name for name in net.space.choices if name not in net.space.active(net.smallest)]
    loose[off[0]] = 1  # a switched-off choice, spelled otherwise
    first = evaluator(net.smallest)
    first["accuracy"] = -1.0  # the caller's copy
    calls: list[object] = []
    evaluator._evaluate = lambda *a: calls.append(a) or {"accuracy": 0.5}  # type: ignore[method-assign,assignment,func-returns-value]
    assert evaluator(loose)["accuracy"] >= 0.0 and not calls
    evaluator.clear()
    assert evaluator(loose)["accuracy"] == 0.5 and len(calls) == 1


def test_the_supernet_itself_is_untouched(net: MobileNet) -> None:
    before = {name: t.clone() for name, t in net.state_dict().items()}
    SupernetEvaluator(net, data())(net.largest)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_subset_is_seeded_and_of_the_size_asked_for(net: MobileNet) -> None:
    def labels(seed: int) -> torch.Tensor:
        return torch.cat([y for _, y in SupernetEvaluator(net, data(), images=50, batch=32, seed=seed)._validation])

    assert len(labels(0)) == 50 and torch.equal(labels(0), labels(0)) and not torch.equal(labels(0), labels(1))
    assert len(torch.cat([y for _, y in SupernetEvaluator(net, data(), images=10_000)._validation])) == 120


def test_folding_changes_no_output_and_leaves_no_norm(net: MobileNet) -> None:
    module = calibrate_bn(net.extract(net.largest), data().train.images())
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = module(x), fold_bn(module)(x)
    assert torch.allclose(before, after, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def test_a_norm_that_does_not_follow_its_convolution_stays() -> None:
    class Skipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(F.relu(self.conv(x)))

    module, x = Skipped().eval(), torch.randn(2, 1, 3, 3)
    module.bn.running_mean += 1.0  # type: ignore[operator]
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(fold_bn(module)(x), expected) and isinstance(module.bn, nn.BatchNorm2d)


def test_no_validation_images_is_an_error(net: MobileNet) -> None:
    with pytest.raises(UserError, match="no validation images"):
        SupernetEvaluator(net, data(validation=0))
