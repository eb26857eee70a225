"""Other programs' search strategies on a table, run by benchmarks/peers.py in an environment that has those programs and not sartor.

Requests come on standard input, one JSON object a line, and each is answered by one line on standard output:

    {"peer": "optuna-tpe", "settings": {}, "table": "table.npz", "seed": 0, "budget": 200}
    {"rows": [cells in the order of their first evaluation], "proposals": 231, "seconds": 3.1}     or     {"error": "..."}

The table is an .npz of `options` `(choices,)`, the number of options of each choice, and `losses` `(cells, objectives)`, minimised, NaN
where an evaluation fails; a cell's number is its options read in mixed radix, the first choice being the most significant.

An evaluation is counted when a cell is evaluated for the first time. A program that proposes a cell again is told the same figures at no
cost, as sartor's strategies never propose one twice; what proposes nothing new for long ends early.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

REPEATS = 20  # proposals for each evaluation of the budget, on average, after which a program is stuck


class Table:
    """Answers proposals and counts them. `done` when the budget of distinct cells is spent, or the program is stuck."""

    def __init__(self, path: str, budget: int) -> None:
        with np.load(path, allow_pickle=False) as found:
            self.options, self.losses = found["options"], found["losses"]
        self.budget = budget
        self.seen: dict[int, None] = {}
        self.proposals = 0

    @property
    def choices(self) -> list[str]:
        return [f"c{i}" for i in range(len(self.options))]

    @property
    def objectives(self) -> int:
        return self.losses.shape[1]

    @property
    def done(self) -> bool:
        return len(self.seen) >= self.budget or self.proposals >= REPEATS * self.budget

    def __call__(self, picks: Any) -> np.ndarray:
        """Losses `(objectives,)` of options, one for each choice; all NaN for a failure."""
        number = int(np.ravel_multi_index(tuple(int(p) for p in picks), tuple(self.options)))
        self.proposals += 1
        if not self.done or number in self.seen:
            self.seen[number] = None
        return np.where(np.isnan(self.losses[number]).any(), np.nan, self.losses[number])

    def worst(self) -> np.ndarray:
        """Twice the largest losses seen: what a program without failures is told of one."""
        known = self.losses[list(self.seen)]
        return 2 * np.nanmax(np.vstack([known, np.full((1, self.objectives), 0.5)]), axis=0)


def optuna(table: Table, sampler: Any) -> None:
    from optuna import create_study
    from optuna.trial import TrialState

    study = create_study(directions=["minimize"] * table.objectives, sampler=sampler)
    while not table.done:
        trial = study.ask()
        picks = [trial.suggest_categorical(name, range(n)) for name, n in zip(table.choices, table.options.tolist(), strict=True)]
        losses = table(picks)
        if np.isnan(losses).any():
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, losses.tolist())


def optuna_tpe(table: Table, seed: int, multivariate: bool = True, **settings: Any) -> None:
    """Tree-structured Parzen estimator; with several objectives the one that optuna called MOTPE."""
    from optuna.samplers import TPESampler

    optuna(table, TPESampler(seed=seed, multivariate=multivariate, **settings))


def optuna_nsga2(table: Table, seed: int, population: int = 50, **settings: Any) -> None:
    from optuna.samplers import NSGAIISampler

    optuna(table, NSGAIISampler(seed=seed, population_size=population, **settings))


def pymoo_nsga2(table: Table, seed: int, population: int = 100) -> None:
    """With its operators for choices (`pymoo.core.mixed`). A failure violates a constraint."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableMating, MixedVariableSampling
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.core.variable import Choice

    class Cells(ElementwiseProblem):
        def __init__(self) -> None:
            variables = {name: Choice(options=list(range(n))) for name, n in zip(table.choices, table.options.tolist(), strict=True)}
            super().__init__(vars=variables, n_obj=table.objectives, n_ieq_constr=1)

        def _evaluate(self, x: Any, out: Any, *arguments: Any, **more: Any) -> None:
            losses = table([x[name] for name in table.choices])
            failed = bool(np.isnan(losses).any())
            out["F"] = table.worst() if failed else losses
            out["G"] = [1.0 if failed else -1.0]

    unique = MixedVariableDuplicateElimination()
    mating = MixedVariableMating(eliminate_duplicates=unique)
    algorithm = NSGA2(pop_size=population, sampling=MixedVariableSampling(), mating=mating, eliminate_duplicates=unique)
    algorithm.setup(Cells(), termination=("n_gen", 10**9), seed=seed, verbose=False)
    while not table.done and algorithm.has_next():
        algorithm.next()


def syne_tune(table: Table, scheduler: Any, metrics: list[str]) -> None:
    from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler

    loop = AskTellScheduler(base_scheduler=scheduler)
    while not table.done:
        trial = loop.ask()
        losses = table([trial.config[name] for name in table.choices])
        told = table.worst() if np.isnan(losses).any() else losses
        loop.tell(trial, dict(zip(metrics, told.tolist(), strict=True)))


def syne_tune_space(table: Table) -> dict[str, Any]:
    from syne_tune.config_space import choice

    return {name: choice(list(range(n))) for name, n in zip(table.choices, table.options.tolist(), strict=True)}


def syne_tune_single(name: str) -> Callable[..., None]:
    """A scheduler of `syne_tune.optimizer.baselines`, for one objective."""

    def run(table: Table, seed: int, **settings: Any) -> None:
        from syne_tune.optimizer import baselines

        if table.objectives != 1:
            raise ValueError(f"Syne Tune's {name} has one objective")
        syne_tune(table, getattr(baselines, name)(syne_tune_space(table), metric="loss0", random_seed=seed, **settings), ["loss0"])

    return run


def syne_tune_morea(table: Table, seed: int, **settings: Any) -> None:
    """Multi-objective regularised evolution."""
    from syne_tune.optimizer.schedulers.multiobjective import MultiObjectiveRegularizedEvolution
    from syne_tune.optimizer.schedulers.single_fidelity_scheduler import SingleFidelityScheduler

    metrics = [f"loss{i}" for i in range(table.objectives)]
    space = syne_tune_space(table)
    searcher = MultiObjectiveRegularizedEvolution(space, random_seed=seed, **settings)
    syne_tune(table, SingleFidelityScheduler(space, metrics=metrics, searcher=searcher, random_seed=seed), metrics)


PEERS: dict[str, Callable[..., None]] = {
    "optuna-tpe": optuna_tpe,
    "optuna-nsga2": optuna_nsga2,
    "pymoo-nsga2": pymoo_nsga2,
    "syne-tune-rea": syne_tune_single("REA"),
    "syne-tune-tpe": syne_tune_single("TPE"),
    "syne-tune-cqr": syne_tune_single("CQR"),
    "syne-tune-morea": syne_tune_morea,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    table = Table(request["table"], request["budget"])
    # Some of Syne Tune's samplers draw from the global generators.
    random.seed(request["seed"])
    np.random.seed(request["seed"])  # noqa: NPY002
    start = time.process_time()
    PEERS[request["peer"]](table, request["seed"], **request["settings"])
    return {"rows": list(table.seen), "proposals": table.proposals, "seconds": time.process_time() - start}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    replies, sys.stdout = sys.stdout, sys.stderr  # what the programs print is no answer
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
