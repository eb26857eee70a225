"""The main job: data + device + limits -> a measured Pareto set of exported models, with the hand-designed ladder beside it.

:func:`search` and :func:`resume` are what the command line calls. Every phase leaves its product in the run folder and is skipped when
that is there, so a run goes on after Ctrl-C or kill -9 from where it was.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from sartor.errors import Unusable, UserError
from sartor.job.context import Job, Progress, silent
from sartor.job.state import State, held
from sartor.request import SearchRequest

__all__ = ["Job", "baseline", "resume", "search"]


_CHEAP = {"data", "only_ladder", "attainable", "checked", "restriction"}  # facts that cost next to nothing to find again


def search(request: SearchRequest, *, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out a request in a new run folder; returns the content of result.json.

    Raises:
        UserError: for unfit data, an unattainable limit, or a folder that holds something else.
        Unusable: for a place that cannot be written; the run goes on with :func:`resume`.
        KeyboardInterrupt: after what exists so far was written as a partial result.
    """
    return _begin(request, progress or silent)


def resume(run_dir: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Go on with the run in `run_dir`; a finished one is only reported again.

    Raises:
        UserError: if there is no run, or its data changed.
    """
    request = SearchRequest.load(run_dir)
    return _carry_out(Job(request, Path(run_dir), progress or silent))


def baseline(request: SearchRequest, *, progress: Progress | None = None) -> dict[str, Any]:
    """Only the hand-designed ladder: train, export and measure it for the request's data and device."""
    return _begin(request, progress or silent, only_ladder=True)


def _begin(request: SearchRequest, progress: Progress, *, only_ladder: bool = False) -> dict[str, Any]:
    """A new run. What is refused before anything was found out leaves no folder, so that the same command can be given again, mended."""
    folder = request.save().parent
    try:
        job = Job(request, folder, progress)
        if only_ladder:
            job.state.put("only_ladder")
        return _carry_out(job)
    except Unusable:
        raise  # and says that `resume` goes on
    except UserError:
        facts = State(folder / "checkpoints" / "state.json").facts
        if set(facts) <= _CHEAP and not (folder / "result.json").exists():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            for file in ("config.json", "history.sqlite"):
                (folder / file).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def _carry_out(job: Job) -> dict[str, Any]:
    try:
        with held(job.folder):
            return _carried_out(job)
    finally:
        job.close()


def _carried_out(job: Job) -> dict[str, Any]:
    """All phases; where they are interrupted or refused, what exists so far is written as a partial result."""
    import torch

    from sartor.hardware.device import cores
    from sartor.job.conclude import partial
    from sartor.job.finish import salvage
    from sartor.job.limits import Unattainable

    torch.set_num_threads(cores())
    try:
        return _phases(job)
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt, UserError):  # pressed again: at once
            salvage(job)
        partial(job)
        raise
    except Unattainable as error:
        partial(job, status="infeasible", note=str(error))
        raise


def _phases(job: Job) -> dict[str, Any]:
    from sartor.evaluators.supernet import SupernetEvaluator
    from sartor.extract import Net, check
    from sartor.job import by_method, explore, finish, ladder, limits
    from sartor.job.conclude import conclude, partial
    from sartor.job.device_space import fit_device
    from sartor.job.finalists import look_again
    from sartor.job.first import first_model
    from sartor.job.method_settings import refuse_unfit
    from sartor.job.sizing import fit_space
    from sartor.methods import METHODS
    from sartor.recipes.checkpoint import load_weights

    if "finished" in job.state:
        return conclude(job, job.state["finished"]["models"], job.state["finished"]["baselines"], job.state["finished"]["refused"])
    if "only_ladder" in job.state:
        return conclude(job, [], ladder.climb(job), [])
    if job.request.weights and "supernet" not in job.state:
        load_weights(job.net, job.request.weights)  # unfit weights are refused before anything is measured
    if ":" in job.request.space and "checked" not in job.state and isinstance(job.net, Net):
        job.progress("look at the network", 0, 1)
        check(job.net, archs=4, effects=False)
        job.state.put("checked")
    fit_device(job)
    refuse_unfit(job)
    if "attainable" not in job.state:
        limits.check_attainable(job)
        job.state.put("attainable")
    fit_space(job, explore.batch_size(job))
    explore.build_table(job)
    first_model(job)
    if job.request.strategy in METHODS:
        trials = by_method.search(job)
    else:
        explore.train_supernet(job)
        accuracy = SupernetEvaluator(job.net, job.data, seed=job.request.seed)
        front = explore.screen(job, accuracy) if job.request.strategy != "random" else []
        trials = look_again(job, explore.explore(job, accuracy, front), accuracy)
    with job.state.timing("finish"):
        models, refused = finish.deliver(job, trials)
    partial(job)
    baselines = ladder.climb(job) if job.request.baselines else []
    return conclude(job, models, baselines, refused)
