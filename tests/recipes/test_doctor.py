"""The doctor on a constructed collapsing search, on a healthy one, and on each other illness by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.benchmarks.nasbench201 import OPS, SPACE
from sartor.errors import UserError
from sartor.methods import METHODS
from sartor.policies import Softmax
from sartor.recipes.bilevel import search_bilevel
from sartor.recipes.doctor import Doctor, decidedness, diagnose, guard, probe_ranks, rank_disorder, reset
from sartor.recipes.evaluate import shared_accuracy
from sartor.recipes.faithfulness import rank_correlation
from sartor.recipes.trajectory import Snapshot
from sartor.spaces import build

from .tiny import TinyNet, tiny_data

SKIP, CONV = OPS.index("skip_connect"), OPS.index("nor_conv_3x3")


def epoch(number: int, logits: dict[str, list[float]], total: int = 20, **more: Any) -> Snapshot:
    """A snapshot whose strengths are softmaxes; the losses fall as they should unless told otherwise."""
    strengths = {}
    for name, row in logits.items():
        p = np.exp(np.array(row) - max(row))
        strengths[name] = dict(enumerate((p / p.sum()).tolist()))
    arch = Arch({name: max(row, key=row.__getitem__) for name, row in strengths.items()})
    losses = {"train_loss": 2.0 - 0.05 * number, "train_accuracy": 0.2 + 0.02 * number, "validation_loss": 2.1 - 0.04 * number}
    return Snapshot(number, 10 * number, number / total, arch, strengths, **{"validation_accuracy": 0.2 + 0.02 * number, **losses, **more})


def course(winners: dict[str, int], late: dict[str, tuple[int, int]], total: int = 20) -> list[Snapshot]:
    """Logits that grow towards `winners`; from the epoch given in `late` on, an edge turns to another option."""
    found = []
    for number in range(1, total + 1):
        logits = {}
        for name in SPACE.choices:
            row = [0.0] * len(OPS)
            row[winners[name]] = 0.12 * number
            if name in late and number >= late[name][0]:
                row[late[name][1]] = 0.12 * number + 1.0
            logits[name] = row
        found.append(epoch(number, logits, total))
    return found


HEALTHY = course(dict.fromkeys(SPACE.choices, CONV), {"edge03": (4, SKIP)})
COLLAPSING = course(dict.fromkeys(SPACE.choices, CONV), {name: (6 + 2 * i, SKIP) for i, name in enumerate(SPACE.choices)})


def run(trajectory: list[Snapshot]) -> Doctor:
    doctor = Doctor(SPACE)
    for snapshot in trajectory:
        doctor(snapshot)
    return doctor


def test_a_healthy_search_has_nothing_wrong_in_any_epoch() -> None:
    doctor = run(HEALTHY)
    assert doctor.findings == [] and "Nothing wrong" in doctor.report()[0]
    assert all(guard(SPACE)(HEALTHY[:n]) is None for n in range(1, 21))


def test_a_collapse_is_first_a_warning_then_severe_and_the_guard_goes_back_before_it() -> None:
    doctor = run(COLLAPSING)
    first, second = doctor.findings
    assert first.kind == second.kind == "skip-collapse" and not first.severe and second.severe
    assert first.epoch == 8 and second.epoch == 10 and second.seen.startswith("3 of 6")  # the third edge turned in epoch 10
    assert "darts-plus" in second.advice
    stop = guard(SPACE)
    verdicts = [stop(COLLAPSING[:n]) for n in range(1, 21)]
    assert verdicts[:9] == [None] * 9 and verdicts[9] is not None
    kept = COLLAPSING[verdicts[9].epoch - 1]
    assert verdicts[9].epoch == 9 and sum(i == SKIP for i in kept.arch.values()) == 2


def test_a_guarded_search_ends_and_derives_the_architecture_from_before() -> None:
    """The real loop, with a policy that is pushed to skips from outside."""
    from sartor.spaces.nasbench201 import NasBench201

    net = NasBench201((1, 8, 8), 4, channels=4, cells=1)
    policy = Softmax(net.space)
    rows = {row: name for name, row in policy.row.items()}

    def push(snapshot: Snapshot) -> None:
        import torch

        with torch.no_grad():
            for row in range(len(rows)):
                policy.alpha[row, SKIP if row < snapshot.epoch else CONV] += 6.0

    result = search_bilevel(net, policy, tiny_data(64), steps=16, batch=16, on_epoch=push, stops=[guard(net.space)])
    assert result.stopped is not None and "skip-collapse" in result.stopped
    assert len(result.trajectory) < 8 and sum(i == SKIP for i in result.arch.values()) <= 2


def test_parameters_that_never_leave_uniform_and_ones_that_are_certain_at_once() -> None:
    flat = [epoch(n, {name: [1e-3 * i for i in range(5)] for name in SPACE.choices}) for n in range(1, 21)]
    assert diagnose(flat[:8], SPACE) == []
    (early,), (late,) = diagnose(flat[:11], SPACE), diagnose(flat, SPACE)
    assert early.kind == late.kind == "vanishing" and not early.severe and late.severe and decidedness(flat[-1]) < 0.01
    sharp = [epoch(n, {name: [0.0, 0.0, 0.0, 30.0, 0.0] for name in SPACE.choices}) for n in range(1, 21)]
    assert [f.kind for f in diagnose(sharp[:3], SPACE)] == ["saturated"] and diagnose(sharp, SPACE) == []
    assert decidedness(sharp[0]) == pytest.approx(1.0)


def test_a_rising_validation_loss_under_a_falling_training_loss() -> None:
    rising = [replace(s, validation_loss=1.5 + 0.12 * max(0, s.epoch - 10)) for s in HEALTHY]
    assert diagnose(rising[:12], SPACE) == []
    (found,) = diagnose(rising[:13], SPACE)
    assert found.kind == "over-fitting" and found.severe and found.back_to == 10
    both = [replace(s, train_loss=1.0 + 0.1 * s.epoch) for s in rising]  # the training loss rises too: something else
    assert diagnose(both, SPACE) == []
    verdict = guard(SPACE)(rising[:13])
    assert verdict is not None and verdict.epoch == 10


def test_an_architecture_that_gets_worse_on_other_images() -> None:
    held = [replace(s, metrics={"accuracy": 0.6 - 0.05 * s.epoch}) for s in HEALTHY[:6]]
    (found,) = diagnose(held, SPACE)
    assert found.kind == "over-fitting" and "45.0% to 30.0%" in found.seen


def test_a_mixture_far_better_than_what_is_derived_from_it() -> None:
    small = [replace(s, metrics={"accuracy": 0.52}) for s in HEALTHY]
    large = [replace(s, metrics={"accuracy": 0.3}) for s in HEALTHY]
    assert diagnose(small, SPACE) == []
    (found,) = diagnose(large, SPACE)
    assert found.kind == "discretisation" and found.severe and "60.0%" in found.seen and "30.0%" in found.seen


def test_epochs_of_weights_alone_are_not_judged_and_each_kind_is_told_once() -> None:
    alone = [replace(s, validation_loss=None, validation_accuracy=None) for s in COLLAPSING]
    assert run(alone).findings == []
    told: list[Any] = []
    doctor = Doctor(SPACE, tell=told.append)
    for snapshot in COLLAPSING:
        doctor(snapshot)
    assert told == doctor.findings and len(told) == 2 and len(doctor.report()) == 2


def test_rank_disorder_comes_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=30)
    assert rank_disorder(rank_correlation(truth + 0.2 * rng.normal(size=30), truth)) is None
    found = rank_disorder(rank_correlation(rng.normal(size=30), truth))
    assert found is not None and found.severe and "Kendall's tau" in found.seen and "95% interval" in found.seen
    few = rank_disorder(rank_correlation([1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]))
    assert few is not None and not few.severe  # tau is 0.67, but four networks say little


def test_ranks_are_probed_by_training_fresh_networks() -> None:
    net = TinyNet()
    found = probe_ranks(net, tiny_data(128), nets=4, steps=6, batch=32)
    assert found.n == 4 and -1 <= found.kendall_tau.value <= 1
    module = net.extract(net.smallest)
    before = [p.detach().clone() for p in module.parameters()]
    reset(module, seed=3)
    assert any(not np.array_equal(a.numpy(), b.detach().numpy()) for a, b in zip(before, module.parameters(), strict=True))
    with pytest.raises(UserError, match="at least 3"):
        probe_ranks(net, tiny_data(64), archs=[net.smallest], steps=1)
    with pytest.raises(UserError, match="unknown diagnosis 'flu'"):
        guard(SPACE, kinds=["flu"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="does not mend 'vanishing'; it acts on skip-collapse, over-fitting"):
        guard(SPACE, kinds=["skip-collapse", "vanishing"])


def test_a_resumed_search_is_judged_as_the_interrupted_one_was(tmp_path: Path) -> None:
    """The epochs of before the break are told again, also by a search that has nothing left to do."""

    def searched(evaluate: Any, steps: int = 24) -> tuple[Doctor, Any]:
        net = TinyNet()
        doctor = Doctor(net.space)
        settings: dict[str, Any] = {"checkpoint": tmp_path / "s.safetensors", "checkpoint_seconds": 0.0, "evaluate": evaluate}
        return doctor, search_bilevel(net, Softmax(net.space), tiny_data(64), steps=steps, batch=16, on_epoch=doctor, **settings)

    accuracy = shared_accuracy(tiny_data(64).validation)
    calls: list[int] = []

    def breaks(net: Any, arch: Arch) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return accuracy(net, arch)

    with pytest.raises(KeyboardInterrupt):
        searched(breaks)
    doctor, result = searched(accuracy)
    assert doctor.trajectory == list(result.trajectory) and len(doctor.trajectory) == 12
    again, _ = searched(accuracy)
    assert again.trajectory == doctor.trajectory and again.findings == doctor.findings != []


def test_what_is_derived_is_judged_with_the_weights_of_the_search() -> None:
    """A method searches with a copy of the network: an accuracy by the one that was given would be that of untrained weights."""
    net, data = TinyNet(), tiny_data(128)
    nets: list[Any] = []
    accuracy = shared_accuracy(data.validation)

    def evaluate(searched: Any, arch: Arch) -> dict[str, float]:
        nets.append(searched)
        found = accuracy(searched, arch)
        assert searched.training  # as it was
        return found

    result = METHODS["darts"](net, data, epochs=8, batch=16, evaluate=evaluate)
    assert all(one is result.net for one in nets) and result.net is not net
    trained, untrained = result.trajectory[-1].metrics["accuracy"], accuracy(net, result.arch)["accuracy"]
    assert trained == accuracy(result.net, result.trajectory[-1].arch)["accuracy"] != untrained


def test_options_may_be_lists() -> None:
    """They cannot be in a set, and are no skip connections."""
    space = Space({"a": [[1, 2], [3, 4]], "b": ["skip_connect", "x"]})
    epochs = [replace(s, arch=Arch({"a": 1, "b": 1}), strengths={}) for s in HEALTHY]
    assert diagnose(epochs, space) == [] and guard(space)(epochs) is None


def test_the_cells_of_nasnet_collapse_too() -> None:
    space = build("nasnet", (3, 16, 16), 10).space
    identity = {name: options.index("identity") for name, options in space.choices.items() if "identity" in options}
    assert identity
    arch = space.canonical({**dict(space.sample(np.random.default_rng(0))), **identity})
    epochs = [replace(s, arch=arch, strengths={}) for s in HEALTHY]
    assert [f.kind for f in diagnose(epochs, space) if f.severe] == ["skip-collapse"]
