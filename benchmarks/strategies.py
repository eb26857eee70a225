"""How good the search strategies are on NAS-Bench-201, over many seeds: one command for each question.

    python benchmarks/strategies.py oracle       evaluations until the optimum, when the search sees the reported accuracy itself
    python benchmarks/strategies.py realistic    test accuracy of what was chosen by the validation accuracy of 12 epochs
    python benchmarks/strategies.py fronts       hypervolume gap of error and latency on six devices
    python benchmarks/strategies.py controllers  do reinforce and ppo learn? the last 100 of 500 proposals against all cells

Each is a comparison of `sartor bench` in a folder of its own, which a second call continues. What was finished is kept in
benchmarks/results, from which a call elsewhere goes on; rows that other code made are run anew. Where there is a target for the best
strategy, it stands beside the figure. Settings were chosen on CIFAR-10 (oracle) and on CIFAR-10 with raspi4 (fronts); the others are
untouched tests.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from sartor.bench import kept
from sartor.bench.cases import grid
from sartor.bench.figures import write_figures
from sartor.bench.results import Results
from sartor.bench.runner import run
from sartor.bench.show import print_summary
from sartor.bench.summary import Comparison, compare, summarise
from sartor.evaluators.tabular import TASKS
from sartor.report.terminal import Progress

QUESTIONS: dict[str, dict[str, Any]] = {
    "oracle": {"tasks": list(TASKS), "devices": [None], "budget": 400, "mode": "oracle"},
    "realistic": {"tasks": list(TASKS), "devices": [None], "budget": 100, "mode": "realistic"},
    "fronts": {
        "tasks": ["nb201-cifar10"],
        "devices": ["raspi4", "pixel3", "eyeriss", "fpga", "gold_6226", "1080ti_1"],
        "budget": 200,
        "mode": "oracle",
    },
    "controllers": {"tasks": ["nb201-cifar10"], "devices": [None], "budget": 500, "mode": "realistic"},
}
STRATEGIES = ["random", "local", "evolution", "nsga2:population=20", "bayes"]
CONTROLLERS = ["random", "reinforce", "ppo"]
RESULTS = Path(__file__).resolve().parent / "results"
MOST_EVALUATIONS = {"nb201-cifar10": 40, "nb201-cifar100": 35, "nb201-imagenet16": 70}  # targets, medians


def judge_oracle(summary: dict[str, Any]) -> None:
    """The best strategy's median number of evaluations until the optimum beside its target."""
    for group in summary["groups"]:
        medians = {name: found["optimum"]["median_evaluations"] for name, found in group["strategies"].items()}
        reached = {name: median for name, median in medians.items() if median is not None}
        best = min(reached, key=lambda name: reached[name], default=None)
        most = MOST_EVALUATIONS[group["task"]]
        if best is None:
            print(f"{group['task']}: no strategy's median reaches the optimum within {summary['budget']} evaluations; target {most}")
        else:
            verdict = "kept" if reached[best] <= most else "missed"
            print(f"{group['task']}: {best} needs {reached[best]:.0f} evaluations (median of {group['seeds']}); target {most}: {verdict}")


def judge_controllers(comparison: Comparison) -> None:
    """In how many seeds the mean validation accuracy of the last 100 proposals reaches the 90th percentile of all cells, with 20 distinct
    cells or more among them; asked: in 90 %. A disconnected cell counts with what it has, the accuracy of chance."""
    for group, by_strategy in comparison.rows.items():
        seen = group.tabular().seen
        bar = float(np.quantile(seen, 0.9))
        for strategy, rows in by_strategy.items():
            late = [np.asarray(row.rows)[-100:] for row in rows]
            learned = [float(seen[cells].mean()) >= bar and len(set(cells.tolist())) >= 20 for cells in late]
            means, distinct = [100 * float(seen[cells].mean()) for cells in late], [len(set(cells.tolist())) for cells in late]
            print(
                f"{group}: {strategy} in {sum(learned)} of {len(learned)} seeds; mean of the last 100 {np.median(means):.2f} % (bar "
                f"{100 * bar:.2f} %), {np.median(distinct):.0f} distinct (medians; fewest {min(distinct)}): "
                f"{'kept' if sum(learned) >= 0.9 * len(learned) else 'not kept'}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--strategy", action="append", help="as for `sartor bench`; repeatable")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--budget", type=int, help="evaluations of each run")
    parser.add_argument("--device", action="append", help="of the fronts; repeatable (default: all six)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this time; the next call goes on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="folder (default: runs/strategies/QUESTION)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows that are kept (default: benchmarks/results)")
    arguments = parser.parse_args()
    question = {**QUESTIONS[arguments.question], **({"budget": arguments.budget} if arguments.budget else {})}
    if arguments.device:
        question["devices"] = arguments.device
    folder = arguments.out or Path("runs/strategies") / arguments.question
    usual = CONTROLLERS if arguments.question == "controllers" else STRATEGIES
    cases = grid(arguments.strategy or usual, **question, seeds=arguments.seeds)
    with Results(folder / "results.sqlite") as results, Progress() as progress:
        kept.load(results, arguments.results, {case.strategy for case in cases})
        try:
            rows = run(cases, results, jobs=arguments.jobs, progress=progress, seconds=arguments.seconds)
        finally:
            kept.save(results, arguments.results, cases)
        errors = results.errors(cases)
    comparison = compare(cases, rows)
    summary = summarise(comparison)
    print_summary(summary)
    write_figures(folder, comparison)
    if arguments.question == "oracle":
        judge_oracle(summary)
    if arguments.question == "controllers":
        judge_controllers(comparison)
    for row in errors:
        print(f"{row.case.strategy} on {row.case.group}, seed {row.case.seed}, failed: {row.error}")


if __name__ == "__main__":
    main()
