"""The contract that every searcher keeps. A new searcher is one row in CASES, with settings so small that 60 trials see all its phases."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.goals import Goals
from sartor.searchers import MULTI_FIDELITY, SEARCHERS, Searcher, make_searcher
from sartor.trial import Proposal, Trial

CASES: dict[str, dict[str, Any]] = {
    "random": {},
    "nsga2": {"population": 8},
    "grid": {},
    "evolution": {"population": 10, "sample": 4},
    "genetic": {"population": 8, "tournament": 2},
    "local": {},
    "nsga3": {"population": 8, "partitions": 3},
    "dpp": {"pool": 20, "batch": 5},
    "pnas": {"beam": 4},
    "dpp-net": {"beam": 4},
    "halving": {},
    "hyperband": {},
    "asha": {},
    "reinforce": {"hidden": 8, "batch": 10},
    "ppo": {"hidden": 8, "batch": 20, "epochs": 2, "network": "transformer", "reward": "mnasnet-soft"},
    "bayes": {"initial": 5, "whole": 100, "pool": 20, "memory": 20},
    "bananas": {"initial": 5, "round": 5, "members": 2, "steps": 20, "pool": 20, "memory": 20},
    "linas": {"population": 7, "inner_population": 8, "inner_generations": 3, "memory": 20},
}
DETERMINISTIC = {"grid"}  # their order depends on nothing; every other searcher draws from the generator
# First proposals for seed 0, 24 trials: changes only where a searcher's (or the space's) stream is meant to change.
GOLDEN: dict[str, str] = {
    "random": "3fb75608448a",
    "nsga2": "90c9d5870675",
    "grid": "e38ba1dcf8fb",
    "evolution": "e8449564be2d",
    "genetic": "3adec5e69892",
    "local": "62eeb2e89d59",
    "nsga3": "3982ac4d9a13",
    "dpp": "16a44c65da49",
    "pnas": "8fd22dffcb9f",
    "dpp-net": "6cb5c512801a",
    "halving": "792ef90c5d11",
    "hyperband": "b5162f2895ab",
    "asha": "c8d9b6bc0d41",
    "reinforce": "0cdae221adf7",
    "ppo": "9aca8dfa8ceb",
    "bayes": "7bdb458342f3",
    "bananas": "e39802c6a926",
    "linas": "f48d48a4ef86",
}

PLAIN = Space({f"c{i}": list(range(4)) for i in range(6)})
CONDITIONAL = Space(
    {"depth": [1, 2, 3], "kind": ["a", "b"], "k1": [3, 5, 7], "k2": [3, 5, 7], "extra": ["x", "y"]},
    {"k1": {"depth": [2, 3]}, "k2": {"depth": [3]}, "extra": {"k2": [7], "kind": ["b"]}},
)
LONE = Space({"only": ["one"], "a": [1, 2, 3], "fixed": [0], "b": list(range(30))})
HUGE = Space({f"c{i}": list(range(10)) for i in range(20)})
SINGLE = Space({"only": ["one"]})
SPACES = {
    "plain": PLAIN,
    "conditional": CONDITIONAL,
    "lone": LONE,
    "huge": HUGE,
    "single": SINGLE,
    "restricted": PLAIN.restrict({"c0": [1, 3]}),
}
GOALS = Goals.parse(["accuracy", "latency"], ["latency=8ms"])

Evaluate = Callable[[Arch], dict[str, float] | None]


def evaluate(arch: Arch) -> dict[str, float]:
    weight = sum((i + 1) * index for i, index in enumerate(arch.values()))
    return {"accuracy": 1 - 1 / (2 + weight), "latency_ms": 1.0 + sum(arch.values())}


def sometimes(arch: Arch) -> dict[str, float] | None:
    """Fails for a third of the architectures, and reports NaN or nothing for another."""
    case = int(hashlib.sha256(arch.to_json().encode()).hexdigest(), 16) % 6
    if case < 2:
        return None
    return evaluate(arch) | ({"latency_ms": math.nan} if case == 2 else {}) if case != 3 else {"params": 1.0}


def hopeless(arch: Arch) -> dict[str, float]:
    return evaluate(arch) | {"latency_ms": 1e6}


def finish(number: int, proposal: Proposal, evaluate: Evaluate) -> Trial:
    metrics = evaluate(proposal.arch)
    meta = json.loads(json.dumps(dict(proposal.meta)))
    if metrics is None:
        return Trial(number, proposal.arch, {}, status="failed", fidelity=proposal.fidelity, error="no", meta=meta)
    return Trial(number, proposal.arch, metrics, fidelity=proposal.fidelity, meta=meta)


def run(searcher: Searcher, *, trials: int, n: int = 1, seed: int = 0, evaluate: Evaluate = evaluate) -> list[list[Trial]]:
    """Ask `n` at a time and finish them all, until there are `trials` or nothing is left; the trials of each ask."""
    done: list[Trial] = []
    asks: list[list[Trial]] = []
    while len(done) < trials:
        asked = searcher.ask(done, [], n, np.random.default_rng((seed, len(done))))
        assert len(asked) <= n
        if not asked:
            break
        asks.append([finish(len(done) + i, proposal, evaluate) for i, proposal in enumerate(asked)])
        done += asks[-1]
    return asks


def trials_of(searcher: Searcher, **settings: Any) -> list[Trial]:
    return list(chain.from_iterable(run(searcher, **settings)))


@pytest.fixture(params=sorted(SEARCHERS))
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def make(name: str, space: Space = PLAIN) -> Searcher:
    return make_searcher(name, space, GOALS, **CASES[name])


def archs(trials: Sequence[Trial | Proposal]) -> list[Arch]:
    return [trial.arch for trial in trials]


def evaluations(trials: Sequence[Trial | Proposal]) -> list[tuple[Arch, float | None]]:
    """What must not be repeated: an architecture comes again at another fidelity only."""
    return [(trial.arch, trial.fidelity) for trial in trials]


def test_every_searcher_has_a_row() -> None:
    assert set(CASES) == set(GOLDEN) == set(SEARCHERS)


def test_only_multi_fidelity_searchers_propose_a_fidelity(name: str) -> None:
    levels = {trial.fidelity for trial in trials_of(make(name), trials=30)}
    assert (len(levels) > 1 and None not in levels) if name in MULTI_FIDELITY else levels == {None}


@pytest.mark.parametrize("space", SPACES)
def test_proposals_lie_in_the_space_and_never_repeat(name: str, space: str) -> None:
    found = trials_of(make(name, SPACES[space]), trials=60)
    levels = {trial.fidelity for trial in found}
    assert len(set(evaluations(found))) == len(found)
    assert len(found) == min(60, SPACES[space].size) or len(levels) > 1
    assert len(found) >= 60 or set(archs(found)) == set(SPACES[space])
    assert all(trial.arch in SPACES[space] for trial in found)


def test_the_seed_decides(name: str) -> None:
    one, same, other = (archs(trials_of(make(name), trials=40, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert (one == other) == (name in DETERMINISTIC)


@pytest.mark.parametrize("n", [1, 7])
def test_resume_is_identity(name: str, n: int) -> None:
    """A fresh searcher on any prefix of the history continues as the one that made it; and so does one that has seen another history."""
    asks = run(make(name), trials=49, n=n, evaluate=sometimes)
    used = make(name)
    run(used, trials=20, n=n, seed=9)
    for cut, expected in enumerate(asks):
        past = list(chain.from_iterable(asks[:cut]))
        for searcher in (make(name), used):
            asked = searcher.ask(past, [], n, np.random.default_rng((0, len(past))))
            assert [(p.arch, dict(p.meta)) for p in asked] == [(t.arch, dict(t.meta)) for t in expected]


def test_a_changed_past_is_noticed(name: str) -> None:
    """The cache is by the whole prefix, not by its length or its end."""
    past = trials_of(make(name), trials=20)
    changed = [finish(0, Proposal(past[0].arch, meta=past[0].meta), hopeless), *past[1:]]
    used = make(name)
    used.ask(past, [], 4, np.random.default_rng(0))
    for history in (changed, past[:3], past):
        fresh = make(name).ask(history, [], 4, np.random.default_rng(0))
        assert used.ask(history, [], 4, np.random.default_rng(0)) == fresh


def test_ask_changes_nothing(name: str) -> None:
    searcher, past = make(name), trials_of(make(name), trials=19)
    copy = list(past)
    answers = [searcher.ask(past, [], 5, np.random.default_rng(3)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] and past == copy


@pytest.mark.parametrize("space", ["plain", "conditional"])
@pytest.mark.parametrize("n", [1, 7])
def test_pending_is_never_proposed_again(name: str, n: int, space: str) -> None:
    """Eight workers: proposals finish out of order, the searcher answers an empty list only while it waits or at the end."""
    searcher, rng = make(name, SPACES[space]), np.random.default_rng(5)
    done: list[Trial] = []
    pending: list[Proposal] = []
    seen: set[tuple[Arch, float | None]] = set()
    while len(done) < 60:
        if len(pending) < 8:
            asked = searcher.ask(done, list(pending), n, np.random.default_rng((0, len(seen))))
            assert not seen.intersection(evaluations(asked)) and len(set(evaluations(asked))) == len(asked)
            seen.update(evaluations(asked))
            pending += asked
            if not pending:
                break
        done.append(finish(len(done), pending.pop(int(rng.integers(len(pending)))), sometimes))
    assert len(done) == min(60, SPACES[space].size) or {fidelity for _, fidelity in seen} != {None}
    assert len(done) >= min(60, SPACES[space].size)


@pytest.mark.parametrize("outcome", [sometimes, hopeless, lambda arch: None, lambda arch: {}])
def test_failures_nan_and_infeasible_limits_do_not_stop_it(name: str, outcome: Evaluate) -> None:
    assert len(trials_of(make(name), trials=60, n=3, evaluate=outcome)) >= 60


@pytest.mark.parametrize("space", ["conditional", "lone", "single"])
@pytest.mark.parametrize("n", [1, 7])
def test_a_small_space_is_covered_exactly(name: str, n: int, space: str) -> None:
    whole = trials_of(make(name, SPACES[space]), trials=10_000, n=n, evaluate=sometimes)
    assert {SPACES[space].index(trial.arch) for trial in whole} == set(range(SPACES[space].size))
    assert len(set(evaluations(whole))) == len(whole)
    assert len(whole) == SPACES[space].size or len({trial.fidelity for trial in whole}) > 1


def test_meta_survives_json(name: str) -> None:
    past = trials_of(make(name), trials=20)
    for proposal in make(name).ask(past, [], 4, np.random.default_rng(0)):
        assert json.loads(json.dumps(dict(proposal.meta))) == dict(proposal.meta)


def test_golden_proposals(name: str) -> None:
    found = [list(arch.values()) for arch in archs(trials_of(make(name), trials=24))]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12] == GOLDEN[name], found
