"""`sartor bench`: parses, calls, prints. Light until it runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sartor.errors import UserError
from sartor.options import Json, print_json, whole


def bench(
    strategy: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:SETTING=VALUE,SETTING=VALUE. Repeatable (default: all).", show_default=False)
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Repeatable, or all (default: nb201-cifar10).", show_default=False)] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Trade accuracy off against the latency on it. Repeatable (default: none, accuracy alone).", show_default=False),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Keep to it, such as latency_ms<=20, params<=500K; accuracy is then the only objective.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(parser=whole, metavar="N", help="Seeds 0 to N-1 of every strategy.")] = 10,
    budget: Annotated[int, typer.Option(parser=whole, metavar="N", help="Evaluations of each run.")] = 100,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Architectures that a strategy is asked for at a time.")] = 1,
    oracle: Annotated[bool, typer.Option("--oracle", help="Search the reported figure itself, to compare sample efficiency.")] = False,
    jobs: Annotated[
        int | None, typer.Option(parser=whole, metavar="N", help="Processes (default: one a core).", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; what is there is not run again.")] = Path("runs/bench"),
    show: Annotated[bool, typer.Option("--list", help="List strategies, tasks, devices, and where the tables come from.")] = False,
    as_json: Json = False,
) -> None:
    """Compare search strategies on tabular benchmarks: validation accuracy while searching, test accuracy in the report."""
    from sartor.bench import show as view

    if show:
        found = view.listing()
        print_json(found) if as_json else view.print_listing(found)
        return
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs: expected a whole number of at least 1, but got {jobs}.")
    summary = _compare(
        strategy or [],
        task or ["nb201-cifar10"],
        device or [],
        {"seeds": seeds, "budget": budget, "batch": batch, "mode": "oracle" if oracle else "realistic", "limits": limit or []},
        out,
        jobs or os.cpu_count() or 1,
        as_json,
    )
    if as_json:
        print_json(summary)
    else:
        view.print_summary(summary)
        print(f"Figures and summary.json are in {out}")
    for error in summary["errors"]:
        print(f"sartor: {error['strategy']} on {error['on']}, seed {error['seed']}, failed: {error['error']}", file=sys.stderr)
    if summary["errors"]:
        raise typer.Exit(1)


def _compare(
    strategies: list[str], tasks: list[str], devices: list[str], numbers: dict[str, Any], out: Path, jobs: int, as_json: bool
) -> dict[str, Any]:
    """Run what is missing, then write and return the summary."""
    from sartor.bench.cases import grid
    from sartor.bench.figures import write_figures
    from sartor.bench.results import Results
    from sartor.bench.runner import run
    from sartor.bench.summary import compare, summarise
    from sartor.evaluators.tabular import TASKS
    from sartor.report.files import write_atomically
    from sartor.report.terminal import Progress
    from sartor.searchers import SEARCHERS

    wanted = list(TASKS) if "all" in tasks else tasks
    on: list[str | None] = [None if name == "none" else name for name in devices] or [None]
    # Checked before the file is made, so that a mistake leaves nothing behind.
    path = out / "results.sqlite"
    known = set()
    if path.is_file():
        with Results(path) as results:
            known = set(results.strategies())
    cases = grid(strategies or list(SEARCHERS), wanted, on, known=known - set(SEARCHERS), **numbers)
    with Results(path) as results:
        try:
            with Progress(plain=True if as_json else None) as progress:
                rows = run(cases, results, jobs=jobs, progress=progress)
        except KeyboardInterrupt:
            print(f"sartor: Stopped: what was finished lies in {out}; the same command goes on from there.", file=sys.stderr)
            raise typer.Exit(130) from None
        errors = [
            {"strategy": row.case.strategy, "on": str(row.case.group), "seed": row.case.seed, "error": row.error}
            for row in results.errors(cases)
        ]
    comparison = compare(cases, rows)
    summary = {**summarise(comparison), "errors": errors}
    write_atomically(out / "summary.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    write_figures(out, comparison)
    return summary
