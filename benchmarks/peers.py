"""sartor's strategies beside those of optuna, pymoo and Syne Tune: the same tables, the same seeds, one run.

    python benchmarks/peers.py fronts       hypervolume gap of error and latency on six devices
    python benchmarks/peers.py oracle       evaluations until the optimum
    python benchmarks/peers.py realistic    test accuracy of what was chosen by the validation accuracy of 12 epochs

The first call makes an environment for the programs, peers-env beside the folder of results, from constraints/peers.txt. Every strategy,
task, device and seed is one row of results.sqlite, which benchmarks/strategies.py shares; a second call goes on, and so does one elsewhere
from the rows that are kept in benchmarks/results. An evaluation is that of
an architecture not evaluated before, for everyone (see peer_programs.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from strategies import QUESTIONS, RESULTS, STRATEGIES

from sartor.bench import kept
from sartor.bench.cases import Case, Group, grid, parse_strategy, spell_strategy
from sartor.bench.code import code_of
from sartor.bench.figures import write_figures
from sartor.bench.results import Results, Row
from sartor.bench.runner import run
from sartor.bench.show import print_summary
from sartor.bench.summary import Comparison, compare, summarise
from sartor.benchmarks import nasbench201
from sartor.errors import UserError
from sartor.report.files import write_atomically
from sartor.report.terminal import Progress

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent / "constraints" / "peers.txt"
# CQR of Syne Tune imports huggingface_hub, which its package does not ask for.
PROGRAMS = {"optuna": ["optuna"], "pymoo": ["pymoo"], "syne-tune": ["syne-tune", "huggingface_hub==2.4.0"]}
SINGLE = ["optuna-tpe", "pymoo-nsga2:population=20", "syne-tune-rea", "syne-tune-cqr"]
SEVERAL = ["optuna-tpe", "optuna-nsga2", "optuna-nsga2:population=20", "pymoo-nsga2", "pymoo-nsga2:population=20", "syne-tune-morea"]
OPTIONS = [len(options) for options in nasbench201.SPACE.choices.values()]


# -- the programs' environment ---------------------------------------------------------------------------------------------


def environment(folder: Path) -> tuple[Path, set[str]]:
    """Python of the environment, made where it is missing, and the programs that installed into it."""
    python, mark = folder / "bin" / "python", folder / "installed.json"
    digest = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()
    known = json.loads(mark.read_text()) if mark.is_file() else {}
    if known.get("constraints") != digest:
        known = {"constraints": digest, "programs": []}
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for program, packages in PROGRAMS.items():
        if program in known["programs"]:
            continue
        print(f"installing {program} into {folder}", file=sys.stderr)
        install = [python, "-m", "pip", "install", "-q", "--prefer-binary", "-c", CONSTRAINTS, *packages]
        if subprocess.run(install, check=False).returncode:
            print(f"{program} does not install here: its strategies are left out", file=sys.stderr)
            continue
        known["programs"].append(program)
        write_atomically(mark, json.dumps(known).encode())
    return python, set(known["programs"])


def program_of(peer: str) -> str:
    """The program that a strategy is of."""
    return next((program for program in PROGRAMS if peer.startswith(f"{program}-")), "")


def code_behind(strategy: str) -> str:
    """As :func:`code_of`; of a peer, the digest of its adapter and of the programs' versions."""
    if not program_of(strategy):
        return code_of(strategy)
    return hashlib.sha256((HERE / "peer_programs.py").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()[:12]


# -- running them ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _order() -> np.ndarray:
    """Benchmark index of every cell read in mixed radix."""
    numbers = np.ravel_multi_index(tuple(nasbench201.cells().T), tuple(OPTIONS))
    order = np.empty(len(numbers), dtype=int)
    order[numbers] = np.arange(len(numbers))
    return order


def write_table(group: Group, folder: Path) -> Path:
    """What a program may ask: the losses that the search sees, by cells in mixed radix."""
    tabular = group.tabular()
    losses = tabular.seen_points if group.front else 1 - tabular.seen[:, None]
    path = folder / "_".join(["table", group.task, group.device or "accuracy", group.mode])
    path = path.with_name(path.name + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, options=OPTIONS, losses=np.where(np.isfinite(losses), losses, np.nan)[_order()])
    return path


class Programs:
    """One process with the programs loaded, which answers one request after the other."""

    def __init__(self, python: Path, folder: Path) -> None:
        command = [str(python), str(HERE / "peer_programs.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._table = lru_cache(maxsize=None)(lambda group: write_table(group, folder))

    def run(self, case: Case) -> Row:
        name, settings = parse_strategy(case.strategy)
        request = {"peer": name, "settings": settings, "table": str(self._table(case.group)), "seed": case.seed, "budget": case.budget}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{name}: the process with the programs ended (status {self._process.wait()}) on seed {case.seed}")
        reply = json.loads(line)
        if "error" in reply:
            return Row(case, (), error=reply["error"])
        rows = tuple(int(row) for row in _order()[reply["rows"]])
        return Row(case, rows, (None,) * len(rows), reply["seconds"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def run_peers(cases: Sequence[Case], results: Results, start: Callable[[], Programs], progress: Progress, until: float) -> Iterator[Row]:
    """Rows of those cases that have none yet; none is begun after the clock shows `until`."""
    todo = [case for case in cases if results.find(case) is None]
    if not todo or time.monotonic() >= until:
        return
    programs = start()
    try:
        for done, case in enumerate(todo, start=len(cases) - len(todo)):
            if time.monotonic() >= until:
                return
            progress(f"peers: {case.strategy}, {case.group}, seed {case.seed}", done, len(cases))
            row = programs.run(case)
            results.add(row)
            yield row
    finally:
        programs.close()


# -- the verdict -------------------------------------------------------------------------------------------------------------


def judge_fronts(comparison: Comparison, ours: Sequence[str], at: int = 200) -> None:
    """The best own strategy after `at` evaluations beside its targets: a third of either NSGA-II, half of optuna's TPE."""
    for group, curves in comparison.curves.items():
        at = min(at, comparison.budget)
        medians = {name: float(np.median(curve[:, at - 1])) for name, curve in curves.items()}
        mine = min((name for name in ours if name in medians), key=medians.__getitem__, default=None)
        if mine is None:
            continue
        bars = {
            name: share * value for name, value in medians.items() for part, share in SHARES.items() if part in name and name not in ours
        }
        kept = all(medians[mine] <= bar for bar in bars.values())
        spelled = ", ".join(f"{name} {medians[name]:.4f} (bar {bar:.4f})" for name, bar in bars.items()) or "no peer was run"
        print(f"{group}: {mine} {medians[mine]:.4f} at {at}; {spelled}: {'kept' if kept and bars else 'not kept'}")


def judge_realistic(summary: dict[str, Any], ours: Sequence[str]) -> None:
    """The best own strategy's mean test accuracy beside the best peer's: not to be lower."""
    for group in summary["groups"]:
        means = {name: found["test_accuracy"]["mean"] for name, found in group["strategies"].items()}
        spread = {name: found["test_accuracy"]["sd"] for name, found in group["strategies"].items()}
        mine = max((name for name in means if name in ours), key=means.__getitem__, default=None)
        theirs = max((name for name in means if name not in ours), key=means.__getitem__, default=None)
        if mine is not None and theirs is not None:
            spelled = [f"{name} {means[name]:.2f} ± {spread[name]:.2f} %" for name in (mine, theirs)]
            print(f"{group['task']}: {' against '.join(spelled)}: {'kept' if means[mine] >= means[theirs] else 'not kept'}")


SHARES = {"pymoo-nsga2": 1 / 3, "optuna-nsga2": 1 / 3, "optuna-tpe": 1 / 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--strategy", action="append", help="of sartor, as for `sartor bench`; repeatable")
    parser.add_argument("--peer", action="append", help="such as optuna-tpe or pymoo-nsga2:population=20; repeatable")
    parser.add_argument("--device", action="append", help="of the fronts; repeatable (default: all six)")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--budget", type=int, help="evaluations of each of sartor's runs")
    parser.add_argument("--peer-budget", type=int, help="evaluations of each of the peers' runs (default: the same)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this time; the next call goes on")
    parser.add_argument("--jobs", type=int, default=1, help="processes for sartor's strategies")
    parser.add_argument("--out", type=Path, help="folder (default: runs/strategies/QUESTION)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows that are kept (default: benchmarks/results)")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = arguments.out or Path("runs/strategies") / arguments.question
    python, programs = environment(folder.parent / "peers-env")
    question = {**QUESTIONS[arguments.question], **({"budget": arguments.budget} if arguments.budget else {})}
    if arguments.device:
        question["devices"] = arguments.device
    asked = arguments.peer or (SEVERAL if question["devices"] != [None] else SINGLE)
    peers = [spell_strategy(*parse_strategy(peer)) for peer in asked if program_of(peer) in programs]
    ours = arguments.strategy or STRATEGIES
    mine = grid(ours, **question, seeds=arguments.seeds)
    peer_question = {**question, "budget": arguments.peer_budget or question["budget"]}
    theirs = grid(peers, **peer_question, seeds=arguments.seeds, known=peers) if peers else []
    until = began + arguments.seconds
    everyone = [*mine, *theirs]
    with Results(folder / "results.sqlite", code_behind) as results, Progress() as progress:
        kept.load(results, arguments.results, {case.strategy for case in everyone}, code_behind)
        try:
            for row in run_peers(theirs, results, lambda: Programs(python, folder), progress, until):
                if row.error:
                    print(f"{row.case.strategy}, seed {row.case.seed}: {row.error}", file=sys.stderr)
            run(mine, results, jobs=arguments.jobs, progress=progress, seconds=max(0.0, until - time.monotonic()))
        finally:
            kept.save(results, arguments.results, everyone, code_behind)
        comparison = compare(everyone, results.select(everyone))
    summary = summarise(comparison)
    print_summary(summary)
    if arguments.question == "fronts":
        judge_fronts(comparison, [spell_strategy(*parse_strategy(s)) for s in ours])
    if arguments.question == "realistic":
        judge_realistic(summary, [spell_strategy(*parse_strategy(s)) for s in ours])
    write_atomically(folder / "peers.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    write_figures(folder / "peers", comparison)


if __name__ == "__main__":
    main()
