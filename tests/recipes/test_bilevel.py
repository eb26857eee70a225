from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.policies import Controller, Gumbel, Policy, Softmax, TwoPath
from sartor.recipes.bilevel import Adam, SearchResult, search_bilevel
from sartor.recipes.checkpoint import load_checkpoint
from sartor.recipes.cost_term import Cost, Target
from sartor.recipes.elimination import Potential
from sartor.recipes.trajectory import Snapshot, Verdict

from .tiny import TinyNet, tiny_data

FAST = Adam(lr=0.05)


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(policy: Policy, net: TinyNet | None = None, **settings: Any) -> SearchResult:
    given = {"steps": 10, "batch": 32, "architecture": FAST, **settings}
    return search_bilevel(net or TinyNet(), policy, tiny_data(), **given)


def tensors_of(result: SearchResult) -> dict[str, torch.Tensor]:
    return {**{f"net.{n}": t for n, t in result.net.state_dict().items()}, **{f"p.{n}": t for n, t in result.policy.state_dict().items()}}


@pytest.mark.parametrize(("order", "every"), [(1, 1), (2, 1), (1, 4)])
@pytest.mark.parametrize("kind", [Softmax, Gumbel])
def test_resumed_search_repeats_the_interrupted_one_bit_for_bit(kind: type[Policy], order: int, every: int, tmp_path: Path) -> None:
    space = TinyNet().space

    def begin(**settings: Any) -> SearchResult:
        cost = Cost("params", [Potential(("w1",), np.array([1.0, 3.0]))])
        return run(kind(space), order=order, every=every, weights_only=0.2, terms=[Target(cost, 1.5)], **settings)

    whole = begin()
    path = tmp_path / "search.safetensors"

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        begin(checkpoint=path, checkpoint_seconds=0.0, progress=interrupt)
    resumed = begin(checkpoint=path)
    assert resumed.arch == whole.arch and resumed.steps == whole.steps
    found, expected = tensors_of(resumed), tensors_of(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert resumed.trajectory == whole.trajectory
    again = begin(checkpoint=path)  # a finished search is only read
    assert again.arch == whole.arch and again.trajectory == whole.trajectory


def test_architecture_parameters_and_their_optimiser_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    result = run(Softmax(TinyNet().space), checkpoint=path)
    tensors, state = load_checkpoint(path)
    assert torch.equal(tensors["companion.policy.alpha"], result.policy.alpha)
    assert {"companion.adam.step.alpha", "companion.adam.exp_avg.alpha", "companion.adam.exp_avg_sq.alpha"} <= tensors.keys()
    assert Snapshot.from_json(state["companion"]["trajectory"][-1]) == result.trajectory[-1]


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    run(Softmax(TinyNet().space), steps=2, checkpoint=path)
    with pytest.raises(UserError, match="policy"):
        run(Gumbel(TinyNet().space), steps=2, checkpoint=path)
    with pytest.raises(UserError, match="terms"):
        run(Softmax(TinyNet().space), steps=2, checkpoint=path, terms=[Target(widths(), 2.0)])
    path.unlink()
    run(Gumbel(TinyNet().space), steps=2, checkpoint=path, terms=[Target(widths(), 2.0)])
    with pytest.raises(UserError, match=r"'target': 2\.0.*'target': 3\.0"):
        run(Gumbel(TinyNet().space), steps=2, checkpoint=path, terms=[Target(widths(), 3.0)])
    with pytest.raises(UserError, match="'range'"):
        run(Gumbel(TinyNet().space, temperature=(5.0, 1.0)), steps=2, checkpoint=path, terms=[Target(widths(), 2.0)])


def test_what_a_term_counts_does_not_keep_a_search_from_going_on(tmp_path: Path) -> None:
    class Counting:
        def __init__(self, weight: float = 0.1) -> None:
            self.weight, self.seen = weight, 0

        def __call__(self, loss: torch.Tensor, mixture: Any) -> torch.Tensor:
            return loss * (1 + self.weight)

        def update(self, mixture: Any) -> None:
            self.seen += 1

    path, term = tmp_path / "search.safetensors", Counting()
    first = run(Softmax(TinyNet().space), steps=3, checkpoint=path, terms=[term])
    assert term.seen == 3 and run(Softmax(TinyNet().space), steps=3, checkpoint=path, terms=[term]).arch == first.arch
    with pytest.raises(UserError, match=r"'weight': 0\.1.*'weight': 0\.2"):
        run(Softmax(TinyNet().space), steps=3, checkpoint=path, terms=[Counting(0.2)])


def widths() -> Cost:
    """A cost of TinyNet's two widths."""
    space = TinyNet().space
    return Cost("params", [Potential((name,), np.arange(1.0, 1 + len(space.choices[name]))) for name in ("w1", "w2")])


def test_a_policy_that_a_bilevel_search_cannot_train_is_refused() -> None:
    """Nothing of a controller would ever move; the unrolled step has passes of other pairs than the one that is moved together."""
    with pytest.raises(UserError, match=r"Controller .* use search_reinforce"):
        run(Controller(TinyNet().space), steps=2)
    with pytest.raises(UserError, match=r"TwoPath .* use order=1"):
        run(TwoPath(TinyNet().space), steps=2, order=2)


def test_the_architecture_rests_while_weights_are_trained_alone() -> None:
    policy = Softmax(TinyNet().space)
    before = policy.alpha.detach().clone()
    epochs: list[torch.Tensor] = []
    run(policy, steps=8, weights_only=0.5, on_epoch=lambda snapshot: epochs.append(policy.alpha.detach().clone()))
    assert torch.equal(epochs[0], before)
    assert not torch.equal(epochs[-1], before)


def test_epochs_of_weights_alone_have_no_validation_figures() -> None:
    found = run(Softmax(TinyNet().space), steps=8, weights_only=0.5).trajectory
    assert [s.validation_loss is None for s in found] == [True, False]
    assert all(0.0 <= s.train_accuracy <= 1.0 and s.train_loss > 0 for s in found)


def test_weights_and_architecture_see_different_images(monkeypatch: pytest.MonkeyPatch) -> None:
    net = TinyNet()
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    forward = net.forward

    def spying(x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
        of_architecture = any(isinstance(w, torch.Tensor) and w.requires_grad for row in arch.values() for w in row.values())
        seen[of_architecture].update(image.numpy().tobytes() for image in x)
        return forward(x, arch, drop_path)

    monkeypatch.setattr(net, "forward", spying)
    run(Softmax(net.space), net, steps=8)
    assert len(seen[True]) == len(seen[False]) == 128
    assert not seen[True] & seen[False]


def test_steps_of_the_architecture_may_be_fewer_and_lose_no_images() -> None:
    class Counted:
        taken = 0

        def __call__(self, loss: torch.Tensor, mixture: Any) -> torch.Tensor:
            return loss

        def update(self, mixture: Any) -> None:
            self.taken += 1

    class Seen(TinyNet):
        def forward(self, x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
            self.batches = [*getattr(self, "batches", []), x.detach().clone()]
            return super().forward(x, arch, drop_path)

    validated = []
    for every, steps, taken in ((1, 3, 3), (4, 9, 3), (4, 8, 2)):
        term, net = Counted(), Seen()
        run(Softmax(net.space), net, steps=steps, every=every, terms=[term])
        assert term.taken == taken
        first = [i * (every + 1) for i in range(taken)]  # an architecture step comes before that of the weights
        validated.append([net.batches[i] for i in first])
    assert all(torch.equal(a, b) for a, b in zip(validated[0], validated[1], strict=True)), "one batch after the other"
    with pytest.raises(UserError, match="every="):
        run(Softmax(TinyNet().space), every=2, joint=True)


def test_joint_search_follows_the_gradient_of_one_loss() -> None:
    net = TinyNet()
    policy = Softmax(net.space)
    alpha = policy.alpha.detach().clone()
    result = run(policy, net, steps=1, joint=True, architecture=Adam(lr=0.1, weight_decay=0.0))
    assert result.trajectory[0].train_loss == result.trajectory[0].validation_loss
    # Adam's first step is lr * sign(gradient): every parameter that takes part moved, and the weights did too.
    moved = (policy.alpha - alpha).detach().abs()
    assert bool((moved[policy.mask] > 0.09).all())
    assert not torch.equal(net.head.weight, TinyNet().head.weight)


def test_first_step_descends_the_validation_gradient() -> None:
    """One architecture step of plain direction: alpha moves against the sign of the validation loss's gradient, not the training loss's."""
    net, data = TinyNet(), tiny_data()
    policy = Softmax(net.space)
    captured: dict[str, Any] = {}

    class Watch:
        def __call__(self, loss: torch.Tensor, mixture: Any) -> torch.Tensor:
            captured["gradient"] = torch.autograd.grad(loss, policy.alpha, retain_graph=True)[0]
            return loss

        def update(self, mixture: Any) -> None:
            captured["updated"] = True

    before = policy.alpha.detach().clone()
    search_bilevel(net, policy, data, steps=1, batch=32, architecture=Adam(lr=0.01, weight_decay=0.0), terms=[Watch()])
    change = (policy.alpha.detach() - before)[policy.mask]
    assert torch.equal(change.sign(), -captured["gradient"][policy.mask].sign())
    assert captured["updated"]


def test_a_stop_ends_the_search_and_chooses_the_epoch() -> None:
    def stop(epochs: Any) -> Verdict | None:
        return Verdict("enough", 1) if len(epochs) == 2 else None

    archs: list[Arch] = []
    result = run(Softmax(TinyNet().space), steps=40, stops=[stop], on_epoch=lambda s: archs.append(s.arch))
    assert len(result.trajectory) == 2 and result.steps == 8
    assert result.stopped == "epoch 2: enough"
    assert result.arch == archs[0]


def test_a_stopped_search_is_not_continued(tmp_path: Path) -> None:
    def stop(epochs: Any) -> Verdict | None:
        return Verdict("enough", 1) if len(epochs) >= 2 else None

    path = tmp_path / "search.safetensors"
    first = run(Softmax(TinyNet().space), steps=40, stops=[stop], checkpoint=path)
    second = run(Softmax(TinyNet().space), steps=40, stops=[stop], checkpoint=path)
    assert (second.steps, second.stopped, second.arch) == (first.steps, first.stopped, first.arch)


def test_evaluated_metrics_and_the_eigenvalue_are_in_the_trajectory() -> None:
    result = run(Softmax(TinyNet().space), steps=8, eigenvalue=True, evaluate=lambda net, arch: {"sum": float(sum(arch.values()))})
    for snapshot in result.trajectory:
        assert snapshot.metrics == {"sum": float(sum(snapshot.arch.values()))}
        assert snapshot.eigenvalue is not None and np.isfinite(snapshot.eigenvalue)
        assert Snapshot.from_json(snapshot.to_json()) == snapshot


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"order": 3}, "order"),
        ({"joint": True, "order": 2}, "joint"),
        ({"share": 1.0}, "share"),
        ({"weights_only": 1.0}, "weights_only"),
        ({"architecture": Adam(lr=0.0)}, "architecture"),
        ({"steps": None}, "steps"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        run(Softmax(TinyNet().space), **settings)


def test_golden_search_of_a_fixed_seed() -> None:
    result = run(Softmax(TinyNet().space), steps=8)
    first = next(iter(result.trajectory[-1].strengths.values()))
    assert {k: round(v, 2) for k, v in first.items()} == GOLDEN


GOLDEN = {0: 0.38, 1: 0.62}


@pytest.mark.parametrize("order", [1, 2])
def test_passes_for_the_architecture_alone_compute_no_gradients_of_weights(order: int) -> None:
    class Watched(TinyNet):
        def forward(self, x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
            self.__dict__.setdefault("seen", []).append({p.requires_grad for p in self.parameters()})
            return super().forward(x, arch, drop_path)

    net = Watched()
    run(Softmax(net.space), net, steps=2, order=order)
    # First order: alpha, then weights. Second: training, validation one step ahead (both gradients), two passes for alpha, then weights.
    assert net.__dict__["seen"] == ([{False}, {True}] if order == 1 else [{True}, {True}, {False}, {False}, {True}]) * 2
    assert all(p.requires_grad for p in net.parameters())
