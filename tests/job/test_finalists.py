"""The candidates that may be delivered are compared on all validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sartor.arch import Arch
from sartor.evaluators.supernet import SupernetEvaluator
from sartor.job import explore, finalists
from sartor.job.context import Job
from sartor.request import SearchRequest
from sartor.trial import Trial


@pytest.fixture
def searched(request_for: Callable[..., SearchRequest]) -> tuple[Job, list[Trial], SupernetEvaluator]:
    """A job with an untrained supernet, and five candidates on a front of which the search saw twenty images."""
    request = request_for(models=1)
    job = Job(request, request.save().parent)
    rng = np.random.default_rng(0)
    accuracy = SupernetEvaluator(job.net, job.data, images=20)
    archs = [job.net.space.sample(rng) for _ in range(5)]
    trials = [
        Trial(n, arch, {**accuracy(arch), "accuracy": 0.5 + 0.1 * n, "latency_ms": 1.0 + n}, "complete") for n, arch in enumerate(archs)
    ]
    return job, trials, accuracy


def test_finalists_get_the_accuracy_on_all_images_once(
    searched: tuple[Job, list[Trial], SupernetEvaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, trials, accuracy = searched
    found = finalists.look_again(job, trials, accuracy)
    every = SupernetEvaluator(job.net, job.data, images=None)
    assert every.images == len(job.data.validation) > accuracy.images == 20
    assert 3 <= len(found) <= 5 and found[0].number == 4  # at least the delivered one and two to spare; the search's best comes first
    for trial in found:
        assert trial.metrics["accuracy"] == every(trial.arch)["accuracy"] != trials[trial.number].metrics["accuracy"]
        assert trial.metrics["latency_ms"] == trials[trial.number].metrics["latency_ms"]

    def unexpected(*arguments: object, **settings: object) -> None:
        raise AssertionError("looked at once more after a resume")

    monkeypatch.setattr(finalists, "SupernetEvaluator", unexpected)
    again = Job(job.request, job.folder)
    assert finalists.look_again(again, trials, accuracy) == found


def test_only_as_many_as_there_is_time_for(searched: tuple[Job, list[Trial], SupernetEvaluator]) -> None:
    job, trials, accuracy = searched
    job.__dict__["plan"] = replace(job.plan, screen=0.0)
    assert len(finalists.look_again(job, trials, accuracy)) == job.request.models + 2


def test_a_search_that_saw_all_images_is_left_alone(searched: tuple[Job, list[Trial], SupernetEvaluator]) -> None:
    job, trials, _ = searched
    assert finalists.look_again(job, trials, SupernetEvaluator(job.net, job.data)) == trials
    assert "finalists" not in job.state


def test_the_first_generation_holds_the_largest_network_that_the_limits_allow(
    request_for: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    def seeds(**asked: object) -> tuple[Job, list[Arch]]:
        job = Job(request_for(**asked), tmp_path / "run")
        rng = np.random.default_rng(0)
        job.__dict__["predicted"] = lambda arch: {**job.net.costs(arch), "latency_ms": job.net.costs(arch)["macs"] / 1e6}
        return job, explore._seeds(job, [job.net.space.sample(rng) for _ in range(40)])

    job, free = seeds()
    assert free[-1] == job.net.largest and len(free) == 20
    job, limited = seeds(limits=[f"params<={job.net.costs(job.net.largest)['params'] - 1}"])
    assert job.net.largest not in limited and len(limited) == 19
