from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.layers.blocks import Block
from sartor.recipes.checkpoint import load_checkpoint
from sartor.recipes.sampler import stratified_sampler, uniform_sampler
from sartor.recipes.sandwich import sandwich_step, start_as_identities, thread_pool, train_sandwich
from sartor.spaces import build

from .tiny import TinyNet, tiny_data


class Killed(Exception):
    """Stands for a kill signal: raised from the progress callback, between two steps."""


def kill_at(step: int) -> Any:
    def progress(_: str, done: int, __: int) -> None:
        if done == step:
            raise Killed

    return progress


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_gradient_is_the_sum_of_label_loss_of_the_largest_and_distillation_of_the_others() -> None:
    net, data = TinyNet(), tiny_data(32)
    x, y = (torch.from_numpy(v) for v in next(data.train.batches(32)))
    others = [net.smallest, net.space.at(3)]
    loss = sandwich_step(net, x, y, others, label_smoothing=0.1)
    got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    logits = net(x, net.largest)
    constant = F.softmax(logits.detach().clone(), 1)
    first = F.cross_entropy(logits, y, label_smoothing=0.1)
    total = first + sum(F.cross_entropy(net(x, a), constant) for a in others)  # cross-entropy: KL up to a constant
    total.backward()
    assert loss == pytest.approx(first.item(), abs=1e-6)
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.allclose(got[name], p.grad, atol=1e-6), name


def test_residual_blocks_may_start_as_the_identity_and_learn_to_leave_it() -> None:
    net, data = build("mobile", (1, 8, 8), 4), tiny_data(64, classes=4)
    blocks = [m for m in net.modules() if isinstance(m, Block)]
    residual = [b for b in blocks if b.residual]
    assert 0 < len(residual) == start_as_identities(net) < len(blocks)
    x = torch.randn(4, residual[0].config.inputs.max, 6, 6)
    assert torch.equal(residual[0](x, net.largest), x)
    x = torch.randn(4, blocks[0].config.inputs.max, 6, 6)
    assert not blocks[0].residual and blocks[0](x, net.largest).std() > 0.1  # where nothing bridges it, a block still computes
    train_sandwich(net, data, steps=3, batch=16, zero_residuals=True)
    assert all((b.project.bn.weight != 0).any() and b.project.bn.weight.abs().max() < 0.5 for b in residual)
    given = {name: t.clone() for name, t in build("mobile", (1, 8, 8), 4).state_dict().items()}
    train_sandwich(net, data, steps=1, batch=16, lr=1e-9, zero_residuals=True, initial=given)
    assert all(torch.allclose(b.project.bn.weight, torch.ones(())) for b in residual)  # weights that are given stay


def test_the_learning_rate_may_decay_exponentially_to_a_constant() -> None:
    rows = train_sandwich(TinyNet(), tiny_data(64), steps=16, batch=16, lr=0.1, schedule="exponential", floor=0.05, warmup=0.0).history
    rates = [row["lr"] for row in rows]
    assert rates[0] == pytest.approx(0.1 * 0.97 ** (150 * 3.5 / 16))
    assert rates[-1] == pytest.approx(0.005) and rates == sorted(rates, reverse=True)
    with pytest.raises(UserError, match="schedule= must be cosine or exponential, got step"):
        train_sandwich(TinyNet(), tiny_data(64), steps=1, batch=16, schedule="step")


def test_nets_side_by_side_give_the_same_gradients_to_the_bit_and_the_same_training() -> None:
    net = build("mobile", (1, 8, 8), 4)
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    others = [net.smallest, net.space.at(3), net.space.at(net.space.size // 2)]
    loss = sandwich_step(net, x, y, others)
    got = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    with thread_pool(2) as pool:
        assert sandwich_step(net, x, y, others, pool=pool) == loss
    for name, p in net.named_parameters():
        assert (p.grad is None and got[name] is None) or torch.equal(p.grad, got[name]), name
    nets = [TinyNet(), TinyNet()]
    nets[1].load_state_dict(nets[0].state_dict())
    for one, workers in zip(nets, (1, 2), strict=True):
        train_sandwich(one, tiny_data(64), steps=6, batch=16, workers=workers)
    assert equal(*nets)


def test_a_step_runs_largest_smallest_and_random_nets_and_regularises_the_largest_only() -> None:
    net = TinyNet()
    train_sandwich(net, tiny_data(64), steps=6, batch=16, drop_path=0.4, largest_only=0.34, random_nets=3)
    assert [a for a, _ in net.calls[:3]] == [net.largest] * 3  # steps 0..2 are weights-only: 0, 1/6, 2/6 < 0.34
    steps = [net.calls[3 + 5 * i : 8 + 5 * i] for i in range(3)]
    assert len(net.calls) == 18
    for i, calls in enumerate(steps):
        assert calls[0][0] == net.largest and calls[1][0] == net.smallest
        assert calls[0][1] == pytest.approx(0.4 * (3 + i) / 6) and all(rate == 0.0 for _, rate in calls[1:])
    assert len({a for calls in steps for a, _ in calls[2:]}) > 1


def test_every_subnet_learns() -> None:
    net, data = TinyNet(), tiny_data()
    result = train_sandwich(net, data, epochs=8, batch=32, lr=0.2)
    assert result.steps == 64 and result.epochs == 8 and len(result.history) == 8 and not net.training
    x, y = (torch.from_numpy(v) for v in next(data.validation.batches(128)))
    with torch.no_grad():
        for arch in net.space:
            assert (net(x, arch).argmax(1) == y).float().mean() > 0.7, dict(arch)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "drop_path": 0.3, "largest_only": 0.2}])
def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path, settings: dict[str, float]) -> None:
    def run(checkpoint: Path | None, progress: Any = None) -> TinyNet:
        net = TinyNet()
        train_sandwich(
            net, tiny_data(64), steps=11, batch=16, seed=3, checkpoint=checkpoint, checkpoint_seconds=0, progress=progress, **settings
        )  # type: ignore[arg-type]
        return net

    whole, path = run(None), tmp_path / "supernet.safetensors"
    with pytest.raises(Killed):
        run(path, kill_at(6))
    assert load_checkpoint(path)[1]["step"] == 6  # in the middle of the second epoch
    resumed = run(path)
    assert equal(whole, resumed) and not equal(whole, TinyNet())
    assert equal(run(path), whole)  # a finished training is only loaded


def test_the_global_generator_is_left_alone_and_the_seed_decides() -> None:
    nets = []
    for seed, noise in ((0, 1), (0, 2), (1, 3)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        net = TinyNet()
        train_sandwich(net, tiny_data(64), steps=3, batch=16, seed=seed, drop_path=0.5)
        assert torch.equal(before, torch.get_rng_state())
        nets.append(net)
    assert equal(nets[0], nets[1]) and not equal(nets[0], nets[2])


def test_divergence_says_what_to_do_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    with pytest.raises(UserError, match="lower lr="):
        train_sandwich(TinyNet(), tiny_data(64), steps=40, batch=16, lr=1e30, clip_norm=None, checkpoint=path, checkpoint_seconds=0)
    if path.exists():
        assert all(bool(torch.isfinite(t).all()) for t in load_checkpoint(path)[0].values())


def test_foreign_checkpoints_and_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    train_sandwich(TinyNet(), tiny_data(64), steps=2, batch=16, checkpoint=path)
    with pytest.raises(UserError, match=r"lr=0\.2, this training has 0\.1"):
        train_sandwich(TinyNet(), tiny_data(64), steps=2, batch=16, lr=0.1, checkpoint=path)
    with pytest.raises(UserError, match="of another network"):
        train_sandwich(TinyNet(classes=5), tiny_data(64), steps=2, batch=16, checkpoint=path)
    with pytest.raises(UserError, match=r"\.space"):
        train_sandwich(nn.Linear(1, 1), tiny_data(64), steps=2, batch=16)


def test_it_starts_from_given_weights_and_reports_partial_ones() -> None:
    donor = TinyNet(seed=7)
    weights = dict(donor.state_dict())
    weights["head.weight"] = weights["head.weight"][:, :5]
    net = TinyNet()
    result = train_sandwich(net, tiny_data(64), steps=1, batch=16, lr=1e-9, initial=weights)
    assert result.initial is not None and list(result.initial.partial) == ["head.weight"]
    assert torch.allclose(net.one.conv.weight, donor.one.conv.weight, atol=1e-6)


def test_a_time_budget_completes_its_schedule_and_says_what_is_left() -> None:
    seen: list[tuple[str, int, int]] = []
    result = train_sandwich(TinyNet(), tiny_data(64), seconds=0.5, batch=16, progress=lambda *a: seen.append(a))
    assert result.steps == len(seen) > 2 and result.seconds >= 0.5
    assert result.history[-1]["lr"] < 0.1 * 0.5
    assert seen[-1][1:] == (0, 1) or seen[-1][1] == seen[-1][2]
    assert all("left" in what and "loss" in what for what, _, _ in seen)


def test_strata_are_drawn_equally_often_where_uniform_sampling_is_lopsided() -> None:
    from sartor.arch import Space

    space = Space({f"c{i}": (1, 2, 4, 8) for i in range(8)})

    def cost(arch: Any) -> float:
        return float(sum(space.choices[n][i] for n, i in arch.items()))

    low, high, strata = 8.0, 64.0, 5
    rng = np.random.default_rng(0)
    bounds = np.linspace(np.log(low), np.log(high), strata + 1)[1:-1]

    def shares(draw: Any) -> np.ndarray:
        bands = [int(np.searchsorted(bounds, np.log(cost(draw(rng))))) for _ in range(400)]
        return np.bincount(bands, minlength=strata) / 400

    uniform, stratified = shares(uniform_sampler(space)), shares(stratified_sampler(space, cost, strata=strata, range_=(low, high)))
    assert uniform.max() > 0.5 and uniform.min() < 0.05
    assert stratified.min() > 0.12 and stratified.max() < 0.28


def test_a_sampler_refuses_costs_that_are_not_positive() -> None:
    with pytest.raises(UserError, match="positive"):
        stratified_sampler(TinyNet().space, lambda _: 0.0)
