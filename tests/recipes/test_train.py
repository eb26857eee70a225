from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sartor.data import Policy
from sartor.errors import UserError
from sartor.recipes.loop import parameter_groups, stream
from sartor.recipes.loss import distillation_loss, soft_targets
from sartor.recipes.train import train

from .test_sandwich import Killed, equal, kill_at
from .tiny import TinyNet, tiny_data


def plain(seed: int = 0) -> nn.Module:
    net = TinyNet(seed=seed)
    return net.extract(net.largest)


def test_it_learns_and_reports_validation() -> None:
    module, data = plain(), tiny_data()
    result = train(module, data, epochs=6, batch=32)
    assert result.accuracy > 0.9 and result.top5 == 1.0 and result.steps == 48 and result.epochs == 6
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6] and not module.training
    x, y = (torch.from_numpy(v) for v in next(data.validation.batches(128)))
    assert (module(x).argmax(1) == y).float().mean().item() == pytest.approx(result.accuracy)
    rates = [row["lr"] for row in result.history]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 1e-3


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "mixup": 0.2, "augment": Policy(pad=1)}])
def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path, settings: dict[str, float]) -> None:
    def run(checkpoint: Path | None, **more: object) -> nn.Module:
        module = plain()
        train(module, tiny_data(64), steps=11, batch=16, checkpoint=checkpoint, checkpoint_seconds=0, **settings, **more)  # type: ignore[arg-type]
        return module

    whole, path = run(None), tmp_path / "final.safetensors"
    with pytest.raises(Killed):
        run(path, progress=kill_at(6))
    assert equal(whole, run(path))


def test_averaged_weights_come_with_their_own_bn_statistics() -> None:
    data, module = tiny_data(), plain()
    train(module, data, epochs=3, batch=32, ema=0.95)
    conv, bn = module[0][0], module[0][1]  # type: ignore[index]
    x = torch.from_numpy(data.train.images())
    assert torch.allclose(bn.running_mean, conv(x).mean((0, 2, 3)), atol=1e-4)


def test_a_teacher_teaches_what_the_labels_do_not() -> None:
    data, teacher = tiny_data(), plain(1)
    train(teacher, data, epochs=6, batch=32)
    student = plain(2)
    rng = np.random.default_rng(0)
    wrong = tiny_data()
    wrong.train.labels[:] = rng.permutation(wrong.train.labels)  # labels say nothing; only the teacher knows
    result = train(student, wrong, epochs=12, batch=32, lr=0.3, teacher=teacher, distillation=1.0)
    alone = train(plain(2), wrong, epochs=12, batch=32, lr=0.3)
    assert result.accuracy > 0.85 and alone.accuracy < 0.6


def test_distillation_is_kl_times_squared_temperature_and_never_reaches_the_teacher() -> None:
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = distillation_loss(student, soft_targets(teacher, 4.0), 4.0)
    p, q = F.softmax(teacher / 4, 1), F.softmax(student / 4, 1)
    assert loss.item() == pytest.approx(16 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    loss.backward()
    assert teacher.grad is None and student.grad is not None


def test_no_decay_on_vectors_and_kernel_transforms() -> None:
    net = TinyNet()
    groups = {g["weight_decay"]: {id(p) for p in g["params"]} for g in parameter_groups(net, 1e-4)}
    names = {name: id(p) for name, p in net.named_parameters()}
    decayed = {name for name, i in names.items() if i in groups[1e-4]}
    assert decayed == {"one.conv.weight", "two.conv.weight", "head.weight"}
    assert sum(map(len, groups.values())) == len(names) and any("transforms" in name for name in names)


def test_every_epoch_is_another_order_and_a_late_start_is_the_tail() -> None:
    data = tiny_data(64)
    source = stream(data.train, 16, 0, None, 0)
    images = [next(source)[0] for _ in range(12)]
    late = stream(data.train, 16, 0, None, 5)
    assert all(np.array_equal(next(late)[0], images[i]) for i in range(5, 12))
    first, second = np.concatenate(images[:4]), np.concatenate(images[4:8])
    assert not np.array_equal(first, second) and np.array_equal(np.sort(first, axis=None), np.sort(second, axis=None))


def test_a_split_below_one_batch_still_trains() -> None:
    assert train(plain(), tiny_data(24), steps=2, batch=100).steps == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"momentum": 1.0},
        {"warmup": 1.0},
        {"ema": 1.0},
        {"clip_norm": 0.0},
        {"label_smoothing": 1.0},
        {"batch": 0},
        {"weight_decay": -1.0},
    ],
)
def test_bad_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        train(plain(), tiny_data(32), steps=1, **settings)  # type: ignore[arg-type]


def test_a_nan_in_the_data_is_a_clear_error() -> None:
    data = tiny_data(32)
    data.train.raw[:] = math.nan
    with pytest.raises(UserError, match="the loss became nan at step 0"):
        train(plain(), data, steps=2, batch=16)
