"""The candidates that may be delivered are looked at once more, on all validation images.

The search compares hundreds of candidates on the same thousand images: the best of so many looks better than it is, and a net that is
really better is passed over (on Fashion-MNIST by up to one point). A few are worth the time to look closer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from sartor.evaluators.supernet import SupernetEvaluator
from sartor.job.context import Job
from sartor.job.finish import choose, margin
from sartor.trial import Trial

#: Candidates looked at again, at most; and beyond the delivered ones at least, however long it takes.
_MOST, _SPARE = 40, 2


def look_again(job: Job, trials: Sequence[Trial], accuracy: SupernetEvaluator) -> list[Trial]:
    """The most useful candidates, with the accuracy that their shared weights reach on all validation images; all of `trials` unchanged
    where the search has seen all images anyway. Spends at most half of the screening's time; goes on where it was interrupted."""
    if accuracy.images >= len(job.data.validation):
        return list(trials)
    finalists = choose(trials, job.goals, _MOST, margin=margin(job))[:_MOST]
    known: dict[str, dict[str, float]] = dict(job.state.facts.get("finalists", {}))
    if "finalists" not in job.state:
        closer = SupernetEvaluator(job.net, job.data, images=None, seed=job.request.seed)
        deadline, least = time.perf_counter() + job.plan.screen / 2, job.request.models + _SPARE
        with job.state.timing("finalists"):
            for number, trial in enumerate(finalists):
                if number >= least and time.perf_counter() > deadline:
                    break
                job.progress("look again", number, len(finalists))
                known[str(trial.number)] = {name: value for name, value in closer(trial.arch).items() if name in ("accuracy", "top5")}
        job.progress("look again", len(finalists), len(finalists))
        job.state.put("finalists", known)
    return [replace(t, metrics=job.derive({**t.metrics, **known[str(t.number)]})) for t in finalists if str(t.number) in known]
