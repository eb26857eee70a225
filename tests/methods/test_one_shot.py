"""Supernets by name are trained, then explored within the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sartor import methods
from sartor.errors import UserError
from sartor.layers.blocks import Block
from sartor.predictors.accuracy import FEWEST
from sartor.recipes.checkpoint import load_checkpoint
from sartor.recipes.cost_term import Cost

from .small import blobs, cell_net, elastic_net

QUICK: dict[str, Any] = {"steps": 4, "batch": 16, "seed": 1}

#: Whole searches with a supernet: minutes in all.
pytestmark = pytest.mark.slow


def test_spos_trains_one_path_a_step_and_evolves_within_the_limits() -> None:
    net = elastic_net()
    limit = 0.6 * net.costs(net.largest)["params"]
    result = methods.spos(net, blobs(), evaluations=12, population=4, limits=[f"params<={limit:.0f}"], **QUICK)
    assert result.steps == 4 and len(result.trials) == 12 and result.notes == ()
    feasible = [t for t in result.trials if t.metrics["params"] <= limit]
    assert result.metrics["accuracy"] == max(t.metrics["accuracy"] for t in feasible)
    assert net.costs(result.arch)["params"] <= limit
    again = methods.spos(net, blobs(), evaluations=12, population=4, limits=[f"params<={limit:.0f}"], history=result.trials[:7], **QUICK)
    assert [t.arch for t in again.trials] == [t.arch for t in result.trials]  # goes on where it stopped


def test_spos_says_that_nothing_is_within_a_hopeless_limit() -> None:
    result = methods.spos(elastic_net(), blobs(), evaluations=12, population=4, limits=["params<=1"], **QUICK)
    assert (
        len(result.trials) == 1 and result.notes[0].startswith("1 of 12 sub-nets") and "no evaluated architecture keeps" in result.notes[1]
    )


def test_ofa_shrinks_then_specialises_for_other_limits_without_training() -> None:
    net = elastic_net()
    cost = Cost.of_macs(net.space, net.factors())
    result = methods.ofa(net, blobs(), evaluations=20, rounds=2, steps=12, batch=16, costs=[cost])
    assert len(result.trials) == 20 and result.steps >= 5
    limit = 0.5 * float(cost(net.largest))
    tight = methods.specialise(result, blobs(), limits=[f"macs<={limit:.0f}"], costs=[cost], rounds=3, evaluations=24)
    assert float(cost(tight.arch)) <= limit and tight.steps == result.steps
    assert all(torch.equal(a, b) for a, b in zip(result.net.parameters(), tight.net.parameters(), strict=True))
    with pytest.raises(UserError, match="needs choices named"):
        methods.ofa(cell_net(), blobs(), steps=6)


def test_ofa_has_enough_to_learn_from_however_short_the_time() -> None:
    result = methods.ofa(elastic_net(), blobs(), seconds=0.05, batch=16, rounds=1)
    assert len(result.trials) >= FEWEST and result.arch in elastic_net().space


def test_bignas_selects_from_coarse_to_fine_and_may_check_its_ranking() -> None:
    net = elastic_net()
    result = methods.bignas(net, blobs(), evaluations=22, coarse=16, steps=3, batch=16, ranks=3, rank_epochs=1)
    assert "of 3 networks: Kendall's tau" in result.notes[0]
    grid, fine = result.trials[:16], result.trials[16:]
    for trial in grid:  # all choices of a kind have the same relative size
        on = net.space.active(trial.arch)
        for kind in ("kernel", "expand", "depth"):
            assert len({trial.arch[n] for n in on if n.endswith(kind)}) == 1
    assert len(fine) >= 1 and result.metrics["accuracy"] == max(t.metrics["accuracy"] for t in result.trials)


def test_bignas_has_its_schedule_for_long_budgets_and_starts_residual_blocks_as_the_identity(tmp_path: Path) -> None:
    for budget, schedule in (({"epochs": 100}, "exponential"), ({"epochs": 1}, None), ({"steps": 2}, None)):
        file = tmp_path / f"{schedule}-{next(iter(budget))}.safetensors"
        methods.bignas(elastic_net(), blobs(), evaluations=2, coarse=1, batch=64, random_nets=0, checkpoint=file, **budget)
        settings = load_checkpoint(file)[1]["settings"]
        assert settings.get("schedule") == schedule and settings.get("floor", 0.0) == (0.05 if schedule else 0.0)
    result = methods.bignas(elastic_net(), blobs(), evaluations=4, coarse=2, steps=2, batch=16, lr=1e-3)
    residual = [m for m in result.net.modules() if isinstance(m, Block) and m.residual]
    assert residual and all(0 < b.project.bn.weight.abs().max() < 0.1 for b in residual)


def test_limits_on_what_nothing_measures_are_refused() -> None:
    with pytest.raises(UserError, match="a limit on latency_ms needs its cost"):
        methods.spos(elastic_net(), blobs(), limits=["latency=2ms"], steps=1)
    with pytest.raises(UserError, match="evaluations"):
        methods.bignas(elastic_net(), blobs(), evaluations=0, steps=1)
