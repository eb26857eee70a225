"""From nothing to a measured front: latency table, supernet, predictor, and the evolutionary search with real measurements."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sartor import pareto, run
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.evaluators.supernet import SupernetEvaluator
from sartor.goals import Goals
from sartor.hardware.device import cores
from sartor.hardware.graph import Op, OpGraph, trace
from sartor.hardware.table import LatencyTable
from sartor.job.context import OF_FILES, Job
from sartor.job.further import OWN, all_timings
from sartor.predictors.accuracy import Predictor, fit
from sartor.recipes.sandwich import SupernetResult, train_sandwich
from sartor.searchers import make_searcher
from sartor.store import Store
from sartor.trial import Trial

#: A space whose factors have more different ops than this is tabulated by what sampled architectures need.
_WHOLE = 6000
_SAMPLES = (24, 200)  # fewest and most architectures that the accuracy predictor learns from
_POPULATION = 20


# -- latency table ------------------------------------------------------------------------------------------------------


def build_table(job: Job) -> None:
    """Measure every op that the space can produce, then correct the sums by a few whole networks."""
    if "table" in job.state:
        return
    with job.state.timing("table"):
        job.progress("list the operations of the space", 0, 1)
        ops = _space_ops(job)
        tables = {OWN: job.table, **{device.name: device.table for device in job.further}}
        added = {name: table.ensure(ops, input_shapes=[job.data.input_shape], progress=job.progress) for name, table in tables.items()}
    with job.state.timing("calibration"):
        quality = _calibrate(job, {name: table for name, table in tables.items() if isinstance(table, LatencyTable)})
    job.refresh_prices()
    facts = {
        name: {"added": added[name], "entries": len(table.entries), "path": str(table.path), "quality": quality.get(name, {})}
        for name, table in tables.items()
    }
    job.state.put("table", {**facts.pop(OWN), **({"platforms": facts} if facts else {})})


def _space_ops(job: Job) -> list[Op]:
    found: dict[str, Op] = {}
    space = job.net.space
    combinations = sum(math.prod(len(space.allowed[name]) for name in factor.scope) for factor in job.factors)
    if combinations <= 50 * _WHOLE:
        for factor in job.factors:
            for indices in itertools.product(*(space.allowed[name] for name in factor.scope)):
                found.update((op.signature, op) for op in factor.at(indices))
    if not found or len(found) > _WHOLE:
        rng = job.rng(1)
        found = {op.signature: op for _ in range(300) for op in _ops(job, space.sample(rng))}
    return list(found.values())


def _ops(job: Job, arch: Mapping[str, int]) -> list[Op]:
    return [op for factor in job.factors for op in factor.at(tuple(arch[name] for name in factor.scope))]


def _calibrate(job: Job, tables: Mapping[str, LatencyTable]) -> dict[str, Any]:
    """Export and measure networks spread over the predicted latencies, on each device that is measured; weights do not matter for time.
    Returns the quality of each table, by the device's name."""
    if not tables:
        return {}
    rng = job.rng(2)
    pool = sorted(dict.fromkeys(job.net.space.sample(rng) for _ in range(200)), key=lambda a: job.predicted(a)["latency_ms"])
    count = int(np.clip(job.plan.calibrate / 2.5, 8, 30))
    picked = [pool[int(i)] for i in np.linspace(0, len(pool) - 1, min(count, len(pool)))]
    pairs: dict[str, list[tuple[OpGraph, float]]] = {name: [] for name in tables}
    with tempfile.TemporaryDirectory() as folder:
        for number, arch in enumerate(picked):
            job.progress("calibrate table", number, len(picked))
            module = job.net.extract(arch).eval()
            file = job.export(module, Path(folder), quick=True)
            graph, clocks = trace(module, job.data.input_shape), job.everywhere([file], 0.3)[0]
            for name, found in pairs.items():
                found.append((graph, clocks[name].quiet or clocks[name].p50))
        job.progress("calibrate table", len(picked), len(picked))
    if len(picked) < 4:
        return {}
    for name, table in tables.items():
        table.ensure(op for graph, _ in pairs[name] for op in graph.ops)
    return {name: table.calibrate(pairs[name]).to_json() for name, table in tables.items()}


# -- supernet -----------------------------------------------------------------------------------------------------------


def train_supernet(job: Job) -> None:
    """Sandwich training (BigNAS), resumable; the finished weights lie in checkpoints/supernet.safetensors."""
    weights = job.folder / "checkpoints" / "supernet.safetensors"
    if "supernet" not in job.state:
        with job.state.timing("supernet"):
            torch.set_num_threads(job.state["sizing"]["threads"])
            try:
                result = _sandwich(job)
            except RuntimeError:
                if job.state["sizing"].get("arithmetic", "fp32") == "fp32":
                    raise
                # An option that no net of the sizing had, in a user's own layers, need not take bf16: from the start in fp32.
                job.state.put("sizing", {**job.state["sizing"], "arithmetic": "fp32"})
                for part in job.folder.glob("checkpoints/training.*"):
                    part.unlink()
                torch.manual_seed(job.request.seed)
                job.net.load_state_dict(job.build_net().state_dict())
                result = _sandwich(job)
        save_weights(job.net, weights)
        job.state.put("supernet", {"steps": result.steps, "epochs": result.epochs})
    else:
        load_weights(job.net, weights)
    torch.set_num_threads(cores())
    job.net.eval()


def _sandwich(job: Job) -> SupernetResult:
    return train_sandwich(
        job.net,
        job.data,
        seconds=job.plan.supernet,
        batch=batch_size(job),
        augment=job.policy,
        initial=job.request.weights,
        drop_path=0.0,
        arithmetic=job.state["sizing"].get("arithmetic", "fp32"),
        workers=job.state["sizing"].get("workers", 1),
        seed=job.request.seed,
        checkpoint=job.folder / "checkpoints" / "training.safetensors",
        progress=job.progress,
    )


def batch_size(job: Job) -> int:
    """64 images, fewer for small sets, so that an epoch has at least a dozen steps: in a short time, steps count more than their size."""
    return int(np.clip(2 ** int(math.log2(max(1, len(job.data.train) / 12))), 16, 64))


def save_weights(module: Any, path: Path) -> None:
    """Write a module's weights as safetensors, atomically."""
    from safetensors.torch import save

    from sartor.export.files import write_atomic

    # clone: safetensors refuses memory shared between entries, as of a layer that stands in two places
    write_atomic(path, save({k: v.contiguous().clone() for k, v in module.state_dict().items()}))


def load_weights(module: Any, path: Path) -> None:
    """Read what :func:`save_weights` wrote.

    Raises:
        UserError: if the file is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: expected the weights of this run's network, but {str(error).splitlines()[0]}; start a new run.") from None


# -- screening: a predictor looks at 10,000 architectures ----------------------------------------------------------------

_BREEDINGS = 5  # generations that half of the screened architectures come from
_TRIAL = 20  # architectures that are priced to see how long it takes
_PATIENCE = 30.0  # seconds that screening may take at least, however short the run: most spaces need two for all 10,000


def screen(job: Job, accuracy: SupernetEvaluator) -> list[Arch]:
    """The documents' first stage: learn accuracy from some sub-nets, predict it for 10,000, keep the 100 on or next to the front. A space
    that is not larger than those is handed on whole.

    Half of the 10,000 are drawn at random, the others bred from the best so far: draws are dense where most architectures are, and few
    lie near a tight limit or at the ends of the front. Where the costs of one take so long that the time does not reach, fewer are seen.
    """
    if "screen" in job.state:
        return [job.canonical(arch) for arch in job.state["screen"]["front"]]
    if job.net.space.size <= job.plan.front:
        return list(job.net.space)
    predictor = _learn(job, accuracy)
    with job.state.timing("screen"):
        space, rng, most = job.net.space, job.rng(4), _affordable(job)
        draws = (space.sample(rng) for _ in range(most // 2))
        news = list(dict.fromkeys([job.net.largest, job.net.smallest, *draws]))  # no set: its order changes from process to process
        guesses = _guesses(job, predictor, news, 0, most)
        front = _survivors(job, guesses)
        for _ in range(_BREEDINGS):
            news = _children(space, front, guesses, most // (2 * _BREEDINGS), rng)
            if news:
                guesses.update(_guesses(job, predictor, news, len(guesses), most))
                front = _survivors(job, {arch: guesses[arch] for arch in (*front, *news)})
        job.progress("screen", most, most)
    quality = {k: v for k, v in predictor.quality.items() if isinstance(v, int | float | str)}
    job.state.put("screen", {"front": [dict(a) for a in front], "predictor": quality})
    return front


def _affordable(job: Job) -> int:
    """How many architectures there is time to price; a resumed run screens as many as it would have."""
    if "screened" not in job.state:
        rng = job.rng(6)
        for _ in range(2):  # what is made once, such as prices of ops, is made in the first turn
            start = time.perf_counter()
            for _trial in range(_TRIAL):
                job.predicted(job.net.space.sample(rng))
            each = (time.perf_counter() - start) / _TRIAL
        most = int(max(job.plan.screen, _PATIENCE) / each)
        job.state.put("screened", min(job.plan.screened, max(5 * job.plan.front, most)))
    return int(job.state["screened"])


def _guesses(job: Job, predictor: Predictor, archs: list[Arch], done: int, most: int) -> dict[Arch, dict[str, float]]:
    """What is predicted of new architectures, after `done` of `most` others."""
    found = {}
    means, _ = predictor.predict(job.net.space.encode(archs))
    for number, (arch, mean) in enumerate(zip(archs, means, strict=True)):
        guess = {**job.predicted(arch), "accuracy": float(mean), "top5": float(mean), **dict.fromkeys(OF_FILES, 0.0)}
        found[arch] = job.derive(guess)
        if number % 500 == 0:
            job.progress("screen", done + number, most)
    return found


def _survivors(job: Job, guesses: Mapping[Arch, dict[str, float]]) -> list[Arch]:
    """The most promising, as NSGA-II chooses its parents."""
    goals, archs = _without_file(job.goals), list(guesses)
    values = np.array([goals.values(guess) for guess in guesses.values()])
    violations = np.array([goals.violation(guess) for guess in guesses.values()])
    return [archs[int(i)] for i in pareto.survivors(values, min(job.plan.front, len(archs)), violations)]


def _children(space: Space, parents: Sequence[Arch], known: Mapping[Arch, Any], count: int, rng: np.random.Generator) -> list[Arch]:
    """`count` new architectures by crossover and mutation; fewer where four times as many tries do not find them."""
    found: dict[Arch, None] = {}
    for _ in range(4 * count):
        a, b = (parents[int(i)] for i in rng.integers(0, len(parents), 2))
        child = space.mutate(space.crossover(a, b, rng), rng)
        if child not in known:
            found[child] = None
        if len(found) == count:
            break
    return list(found)


def _without_file(goals: Goals) -> Goals:
    """What is known only of files is left by screening to the measured stage."""
    objectives = tuple(o for o in goals.objectives if o not in OF_FILES) or ("accuracy",)
    return Goals(objectives, tuple(limit for limit in goals.limits if limit.metric not in OF_FILES))


def _learn(job: Job, accuracy: SupernetEvaluator) -> Predictor:
    def evaluate(arch: Arch) -> dict[str, float]:
        return job.derive({**accuracy(arch), **job.predicted(arch)})

    with Store(job.folder / "screening.sqlite") as store:
        searcher = make_searcher("random", job.net.space, job.goals)
        trials = for_seconds(job, "sample", searcher, evaluate, store, job.plan.screen * 0.8, _SAMPLES, 8)
    good = [t for t in trials if t.status == "complete" and np.isfinite(t.metrics["accuracy"])]
    if len(good) < 4:
        reason = next((t.error for t in trials if t.error), "no accuracy was finite")
        raise UserError(f"the supernet's sub-nets could not be evaluated: {reason}")
    with job.state.timing("screen"):
        return fit(job.net.space.encode([t.arch for t in good]), [t.metrics["accuracy"] for t in good], seed=job.request.seed)


def for_seconds(
    job: Job,
    what: str,
    searcher: Any,
    evaluate: Callable[[Arch], dict[str, float]],
    store: Store,
    seconds: float,
    least_most: tuple[int, int],
    batch: int,
) -> list[Trial]:
    """Run a search in slices until its time is spent, within a least and a most number of trials; time before an interruption counts."""
    least, most = least_most
    deadline = time.perf_counter() + max(0.0, seconds - job.state.seconds.get(what, 0.0))
    budget = min(least, most)
    with job.state.timing(what):
        while True:
            result = run.search(
                searcher, evaluate, goals=job.goals, space=job.net.space, budget=budget, batch=batch, store=store, seed=job.request.seed,
                on_trial=lambda trial, done, total: job.progress(what, done, most),
            )  # fmt: skip
            if result.status == "interrupted":
                raise KeyboardInterrupt
            if len(result.trials) < budget or budget >= most or time.perf_counter() > deadline:
                job.progress(what, most, most)
                return list(result.trials)
            budget = min(most, budget + batch)


# -- the search itself --------------------------------------------------------------------------------------------------


def candidate(job: Job, accuracy: Callable[[Arch], dict[str, float]]) -> Callable[[Arch], dict[str, float]]:
    """The evaluation of one candidate: its accuracy, and the latency of its exported file on each device of the run.

    Where all devices are only modelled there is nothing to measure: files are exported only where a goal is a figure of files.
    """
    files = job.measuring or _without_file(job.goals) != job.goals

    def evaluate(arch: Arch) -> dict[str, float]:
        found = accuracy(arch)
        if not files:
            return job.derive({**found, **job.predicted(arch)})
        module = job.net.extract(arch).eval()
        with tempfile.TemporaryDirectory() as folder:
            file = job.export(module, Path(folder), quick=True)
            clocks = job.everywhere([file], 0.25)[0]
            figures = job.file_figures(file)
        costs = {k: v for k, v in job.predicted(arch).items() if k in ("params", "macs", "peak_bytes", "flash_bytes", "moved_bytes")}
        energies = job.energies(job.dynamic_mj(arch), clocks[OWN].p50)
        return job.derive({**found, **costs, **all_timings(clocks), **energies, **figures})

    return evaluate


def explore(job: Job, accuracy: SupernetEvaluator, initial: list[Arch]) -> list[Trial]:
    """The second stage: every candidate's accuracy with shared weights and latency as a file, NSGA-II from the screened front."""
    space, goals, strategy = job.net.space, job.goals, job.request.strategy
    settings: dict[str, Any] = {}
    if strategy == "nsga2":
        settings = {"population": _POPULATION, "initial": _seeds(job, initial)}
    searcher = make_searcher(strategy, space, goals, **settings)
    most = _POPULATION * (job.plan.generations + 1)
    with Store(job.folder / "history.sqlite") as store:
        return for_seconds(job, "explore", searcher, candidate(job, accuracy), store, job.plan.explore, (_POPULATION, most), _POPULATION)


def _seeds(job: Job, front: list[Arch]) -> list[Arch]:
    """The screened architectures that the first generation has time for, spread over the predicted latencies, and the largest network of
    the space where the limits allow it."""
    ordered = sorted(front, key=lambda a: job.predicted(a)["latency_ms"])
    count = min(len(ordered), _POPULATION - 1)
    picked = [ordered[int(i)] for i in np.unique(np.linspace(0, len(ordered) - 1, count).round())]
    largest = job.canonical(job.net.largest)
    costs = job.derive({**job.predicted(largest), "accuracy": 1.0, "top5": 1.0, **dict.fromkeys(OF_FILES, 0.0)})
    return [*picked, largest] if largest not in picked and job.goals.feasible(costs) else picked
