"""The figures of docs/figures.md that rest on benchmarks/results, as its tables: nothing is run, nothing is typed by hand.

python benchmarks/kept_figures.py            print them
python benchmarks/kept_figures.py --write    put them between the marks in docs/figures.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from peers import SHARES, code_behind
from strategies import MOST_EVALUATIONS, QUESTIONS, RESULTS

from sartor.bench import kept
from sartor.bench.cases import Group
from sartor.bench.curves import chosen_accuracy, curve, evaluations_to_optimum
from sartor.bench.results import Row
from sartor.report.files import write_atomically

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "figures.md"
MARKS = "<!-- from here: python benchmarks/kept_figures.py --write -->", "<!-- to here -->"
STEPS = (50, 100, 200, 300, 800)


def strategies(folder: Path) -> list[str]:
    """Strategies that rows are kept of; the name of a file is the strategy but for the colon before its settings."""
    names = [path.name.removesuffix(".jsonl.gz") for path in sorted(folder.glob("*.jsonl.gz"))]
    return [name.replace("_", ":", 1) for name in names]


def _of(rows: Iterable[Row], group: Group, budget: int) -> list[Row]:
    """Rows of a group with at least `budget` evaluations, by seed."""
    found = [row for row in rows if row.case.group == group and row.case.budget >= budget]
    return sorted(found, key=lambda row: row.case.seed)


def _spread(values: Sequence[float]) -> str:
    """Median [quartiles] of gaps."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    spelled = [f"{value:.4f}".removeprefix("0") for value in (middle, low, high)]
    return f"{spelled[0]} [{spelled[1]}, {spelled[2]}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def oracle(kept_rows: dict[str, list[Row]]) -> list[str]:
    """Evaluations until the optimum."""
    lines = []
    for task in QUESTIONS["oracle"]["tasks"]:
        group = Group(task, None, "oracle")
        tabular, rows = group.tabular(), []
        for strategy, all_rows in kept_rows.items():
            found = [evaluations_to_optimum(row, tabular) for row in _of(all_rows, group, QUESTIONS["oracle"]["budget"])]
            if found:
                low, middle, high = np.quantile(found, [0.25, 0.5, 0.75], method="inverted_cdf")
                reached = 100 * float(np.isfinite(found).mean())
                spelled = [f"{value:.0f}" if np.isfinite(value) else "not reached" for value in (middle, low, high)]
                rows.append([task, strategy, f"{spelled[0]} [{spelled[1]}, {spelled[2]}]", f"{reached:.0f} %", f"{len(found)}"])
        lines += sorted(rows, key=lambda row: row[1])
    if not lines:
        return []
    targets = ", ".join(f"{task} {most}" for task, most in MOST_EVALUATIONS.items())
    text = f"Oracle mode: distinct evaluations until the optimum, median [quartiles] (targets for the best strategy: {targets})."
    return [text, "", *_table(["task", "strategy", "evaluations", "reached within 400", "seeds"], lines)]


def realistic(kept_rows: dict[str, list[Row]]) -> list[str]:
    """Test accuracy of what was chosen after 100 evaluations by the validation accuracy of 12 epochs."""
    lines = []
    budget = QUESTIONS["realistic"]["budget"]
    for task in QUESTIONS["realistic"]["tasks"]:
        group = Group(task, None, "realistic")
        tabular = group.tabular()
        for strategy, all_rows in kept_rows.items():
            found = [100 * float(chosen_accuracy(row, tabular)[:budget][-1]) for row in _of(all_rows, group, budget)]
            if len(found) > 1:
                lines.append([task, strategy, f"{np.mean(found):.2f} ± {np.std(found, ddof=1):.2f} %", f"{len(found)}"])
    if not lines:
        return []
    text = f"Realistic mode, {budget} evaluations: test accuracy, mean ± standard deviation over seeds."
    return [text, "", *_table(["task", "strategy", "test accuracy", "seeds"], lines)]


def fronts(kept_rows: dict[str, list[Row]]) -> list[str]:
    """Hypervolume gaps by device, and what they are beside the peers'."""
    lines: list[str] = []
    for device in QUESTIONS["fronts"]["devices"]:
        group = Group("nb201-cifar10", device, "oracle")
        tabular, cells, medians = group.tabular(), [], {}
        for strategy, all_rows in kept_rows.items():
            rows = _of(all_rows, group, QUESTIONS["fronts"]["budget"])
            if not rows:
                continue
            curves = {step: [float(curve(row, tabular, step)[-1]) for row in _of(rows, group, step)] for step in STEPS}
            medians[strategy] = {step: float(np.median(values)) for step, values in curves.items() if values}
            fewer = {step: f" ({len(found)} seeds)" if len(found) < len(rows) else "" for step, found in curves.items()}
            spans = [_spread(curves[step]) + fewer[step] if curves[step] else "-" for step in STEPS]
            seconds = float(np.median([row.seconds for row in rows]))
            cells.append([strategy, *spans, f"{len(rows)}", f"{seconds:.2g}"])
        if cells:
            cells.sort(key=lambda row: medians[row[0]][200])
            lines += [f"**{device}**", "", *_table(["strategy", *map(str, STEPS), "seeds", "seconds a run"], cells), *_verdict(medians)]
    if not lines:
        return []
    text = (
        "Two objectives (error and latency), oracle mode, CIFAR-10: hypervolume gap after so many distinct evaluations, median [quartiles]."
    )
    return [text, "Settings of `bayes` were chosen on raspi4.", "", *lines]


def _verdict(medians: dict[str, dict[int, float]]) -> list[str]:
    """`bayes` beside its targets, where it and a peer were run."""
    mine = medians.get("bayes")
    peers = {name: share for name in medians for part, share in SHARES.items() if name.startswith(part)}
    if mine is None or not peers:
        return []
    shares = [
        f"{mine[200] / medians[name][200]:.2f} of {name} ({'kept' if mine[200] <= share * medians[name][200] else 'missed'}: {share:.2f})"
        for name, share in peers.items()
    ]
    text = "`bayes` after 200: " + ", ".join(shares) + "."
    late = {name: medians[name][800] for name in peers if 800 in medians[name]}
    if 300 in mine and late:
        text += f" After 300 it has {mine[300]:.4f}, the best peer after 800 {min(late.values()):.4f}."
    return [text, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    names = strategies(arguments.results)
    rows = {name: kept.read(arguments.results, name, None) for name in names}
    stale = [name for name in names if rows[name] and not kept.read(arguments.results, name, code_behind(name))]
    lines = [*oracle(rows), *realistic(rows), *fronts(rows)]
    if stale:
        lines += [f"Made by earlier code: {', '.join(stale)}.", ""]
    text = "\n".join(lines)
    if not arguments.write:
        print(text)
        return
    before, rest = DOCUMENT.read_text().split(MARKS[0])
    _, after = rest.split(MARKS[1])
    write_atomically(DOCUMENT, f"{before}{MARKS[0]}\n\n{text}{MARKS[1]}{after}".encode())


if __name__ == "__main__":
    main()
