"""What a searcher and the history file cost per trial, at 100,000 trials: the time that no network is evaluated in.

    python benchmarks/searcher_overhead.py [--trials 100000] [--choices 30] [--strategy nsga2]

Cold is the first ask of a resumed run (the whole history is folded once); warm is an ask when the history has grown by one generation. The
same is measured at a hundredth of the trials: an ask that does not look through the history takes about as long there, and at most
the ratio of the logarithms longer where it must search in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from sartor.arch import Space
from sartor.goals import Goals
from sartor.searchers import SEARCHERS, make_searcher
from sartor.store import Store
from sartor.trial import Trial

GENERATION = 50
ROUNDS = 20


def make_history(space: Space, trials: int) -> list[Trial]:
    """Random architectures in generations of 50; every metric a noisy sum over choices, one trial in a hundred failed."""
    rng = np.random.default_rng(0)
    history = []
    for number in range(trials):
        arch = space.sample(rng)
        weight = sum(arch.values()) / len(arch)
        metrics = {"accuracy": weight / 6 + 0.1 * rng.random(), "latency_ms": 1 + weight**2 + rng.random()}
        meta = {"generation": number // GENERATION}
        failed = number % 100 == 99
        history.append(Trial(number, arch, {} if failed else metrics, "failed" if failed else "complete", meta=meta))
    return history


def time_asks(name: str, space: Space, goals: Goals, history: list[Trial]) -> tuple[float, list[float]]:
    """Seconds of the cold ask, and milliseconds of `ROUNDS` warm ones, each for a generation, the history growing by one in between.

    The history is of random architectures, none of which a controller or a search by stages proposed itself.
    """
    searcher = make_searcher(name, space, goals)
    known = len(history) - ROUNDS * GENERATION
    start = time.perf_counter()
    searcher.ask(history[:known], [], GENERATION, np.random.default_rng(0))
    cold = time.perf_counter() - start
    warm = []
    for i in range(1, ROUNDS + 1):
        past = history[: known + i * GENERATION]
        start = time.perf_counter()
        asked = searcher.ask(past, [], GENERATION, np.random.default_rng(i))
        warm.append(1e3 * (time.perf_counter() - start))
        assert len(asked) <= GENERATION  # fewer where a search by stages, or one that has ended, has no more to ask
    return cold, warm


def time_store(space: Space, history: list[Trial], folder: Path) -> None:
    """Append and read back; the first and the last tenth of the appends side by side show whether appending stays O(1)."""
    with Store(folder / "history.sqlite") as store:
        store.bind(space, 0)
        laps = []
        for trial in history:
            start = time.perf_counter()
            store.add(trial)
            laps.append(time.perf_counter() - start)
        tenth = max(1, len(laps) // 10)
        first, last = (1e6 * float(np.median(part)) for part in (laps[:tenth], laps[-tenth:]))
        start = time.perf_counter()
        count = sum(1 for _ in store.trials())
        seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(
        f"store: append {first:.0f} us (first tenth), {last:.0f} us (last tenth); read {count:,} trials in {seconds:.1f} s; {size:.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000, help="length of the history")
    parser.add_argument("--strategy", action="append", choices=SEARCHERS, help="repeatable (default: all)")
    parser.add_argument("--no-store", action="store_true", help="leave the history file out")
    parser.add_argument("--choices", type=int, default=30, help="choices of the space, five options each")
    arguments = parser.parse_args()
    space = Space({f"c{i}": list(range(5)) for i in range(arguments.choices)})
    goals = Goals.parse(["accuracy", "latency"], ["latency=5ms"])
    history = make_history(space, arguments.trials)
    few = max(2 * ROUNDS * GENERATION, arguments.trials // 100)
    for name in arguments.strategy or SEARCHERS:
        _, short = time_asks(name, space, goals, history[:few])
        cold, warm = time_asks(name, space, goals, history)
        print(
            f"{name}: ask of {GENERATION}: cold {cold:.2f} s, warm median {np.median(warm):.1f} ms, slowest {max(warm):.1f} ms; "
            f"at {few:,} trials warm median {np.median(short):.1f} ms",
            flush=True,
        )
    if arguments.no_store:
        return
    with tempfile.TemporaryDirectory() as folder:
        time_store(space, history, Path(folder))


if __name__ == "__main__":
    main()
