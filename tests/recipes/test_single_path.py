"""Single paths: one architecture a step from the given sampler, gradients added over a group, bit-for-bit resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sartor.arch import Space
from sartor.errors import UserError
from sartor.recipes.loop import Optimisation
from sartor.recipes.sampler import uniform_sampler
from sartor.recipes.single_path import fair_paths, single, train_single_path

from .test_sandwich import Killed, equal, kill_at
from .tiny import TinyNet, tiny_data


def test_every_step_runs_one_path_drawn_uniformly() -> None:
    net = TinyNet()
    train_single_path(net, tiny_data(64), steps=60, batch=16)
    archs = [arch for arch, _ in net.calls]
    assert len(archs) == 60 and len(set(archs)) == net.space.size
    for name in net.space.choices:
        assert 0.3 < np.mean([a[name] for a in archs]) < 0.7


def test_a_group_of_paths_adds_their_gradients() -> None:
    net, data = TinyNet(), tiny_data(16)
    group = [net.space.at(1), net.space.at(6)]
    plain = Optimisation(lr=0.5, momentum=0.0, weight_decay=0.0, warmup=0.0, clip_norm=None)
    twin = TinyNet()
    twin.load_state_dict(net.state_dict())
    train_single_path(net, data, steps=1, batch=16, paths=lambda rng: group, weights=plain, label_smoothing=0.1)
    images, labels = next(data.train.batches(16))  # all of them: their order does not matter
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    loss = sum(F.cross_entropy(twin(x, a), y, label_smoothing=0.1) for a in group)
    loss.backward()  # type: ignore[union-attr]
    from sartor.recipes.schedule import cosine

    for (name, moved), start in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert start.grad is not None
        assert torch.allclose(moved, start - 0.5 * cosine(0.5) * start.grad, atol=1e-5), name


def test_fair_groups_hold_every_option_equally_often_also_where_choices_differ_in_number() -> None:
    space = Space({"a": tuple(range(6)), "b": (0, 1, 2), "c": (0, 1)})
    rng = np.random.default_rng(0)
    for _ in range(10):
        group = fair_paths(space)(rng)
        assert len(group) == 6
        for name, options in space.choices.items():
            assert np.bincount([g[name] for g in group]).tolist() == [6 // len(options)] * len(options)


@pytest.mark.parametrize("fair", [False, True])
def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path, fair: bool) -> None:
    def run(checkpoint: Path | None, progress: Any = None) -> TinyNet:
        net = TinyNet()
        paths = fair_paths(net.space) if fair else single(uniform_sampler(net.space))
        train_single_path(
            net, tiny_data(64), steps=9, batch=16, paths=paths, drop_path=0.2, seed=3, checkpoint=checkpoint, checkpoint_seconds=0,
            progress=progress,
        )  # fmt: skip
        return net

    whole, path = run(None), tmp_path / "supernet.safetensors"
    with pytest.raises(Killed):
        run(path, kill_at(5))
    assert equal(run(path), whole) and not equal(whole, TinyNet())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"\.space"):
        train_single_path(nn.Linear(1, 1), tiny_data(64), steps=1)
    with pytest.raises(UserError, match="label_smoothing"):
        train_single_path(TinyNet(), tiny_data(64), steps=1, label_smoothing=1.0)
