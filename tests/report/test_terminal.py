"""Progress and tables on the terminal."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sartor.report.terminal import Progress, console, models_table, print_profile, print_result, promises_table
from sartor.report.values import show


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def text(*parts: Any) -> str:
    stream = io.StringIO()
    out = console(stream)
    for part in parts:
        out.print(part)
    return stream.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def model(name: str, p50: float, p90: float, **metrics: float) -> dict[str, Any]:
    latency = {"p10": p50, "p50": p50, "p90": p90, "low": p50 * 0.99, "high": p50 * 1.01, "runs": 100, "noisy": False}
    return {"name": name, "origin": "search", "metrics": {"accuracy": 0.9, "latency_ms": p50, **metrics}, "latency": latency, "front": True}


RESULT: dict[str, Any] = {
    "schema": 1,
    "status": "complete",
    "seconds": 125.0,
    "data": {"name": "digits", "classes": ["0", "1"], "input_shape": [1, 8, 8]},
    "device": {"name": "host", "cpu": "A CPU", "runtime": "onnxruntime", "version": "1.0", "precision": "int8", "threads": 1},
    "objectives": ["accuracy", "latency_ms"],
    "limits": [{"metric": "latency_ms", "bound": 1.0, "statistic": "p90"}, {"metric": "peak_bytes", "bound": 4096, "statistic": "p50"}],
    "models": [model("slow", 0.9, 1.2, peak_bytes=4000), model("fast[x]", 0.1, 0.2, peak_bytes=2048)],
    "baselines": [model("plain", 0.5, 0.6)],
    "refused": [{"name": "huge", "reason": "peak memory over the limit"}],
    "comparison": {"hypervolume": {"search": 0.3, "ladder": 0.2}, "ratio": 1.5, "speedup_at_ladder_best": 2.25},
    "notes": ["the machine was busy"],
}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 4)), max_size=60))
def test_plain_progress_is_quiet(steps: list[tuple[str, float]]) -> None:
    clock, stream = Clock(), io.StringIO()
    said: dict[str, list[float]] = {"a": [], "b": []}
    done = {"a": 0, "b": 0}
    with Progress(plain=True, stream=stream, clock=clock) as progress:
        for phase, pause in steps:
            clock.now += pause
            done[phase] += 1
            before = stream.tell()
            progress(f"{phase}: loss {pause}", done[phase], 1000)
            if stream.tell() > before:
                said[phase].append(clock.now)
    for phase, times in said.items():
        assert bool(times) == (done[phase] > 0), "a phase that began is named at once"
        assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(times))


def test_plain_progress_tells_the_time_left_and_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(plain=True, stream=stream, clock=clock) as progress:
        for done in range(101):
            progress("training", done, 100)
            clock.now += 2
        progress("training", 0, 50)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[0.0 s] training: 0/100"
    # 30 of 100 steps took 60 s: 140 s are left
    assert "[1 min 00 s] training: 30/100, about 2 min 20 s left" in lines
    assert lines[-2] == "[3 min 20 s] training: done in 3 min 20 s"
    assert lines[-1] == "[3 min 22 s] training: 0/50", "the next phase of the same name starts afresh"


def test_a_terminal_gets_bars_with_elapsed_and_remaining_time() -> None:
    stream = Terminal()
    with Progress(stream=stream) as progress:
        for done in (1, 2, 3):
            progress("table", done, 3)
        progress("training", 5, 10)
        progress("training", 1, 10)
        progress("counting", 7, 0)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for phase in (r"table .* 3/3 +0:00:0\d", r"training .* 1/10 +0:00:0\d +left", r"counting .* 7/\?"):
        assert re.search(phase, shown), shown


def test_models_come_in_order_of_latency_with_their_names_untouched() -> None:
    shown = text(models_table(RESULT["models"], "Models"))
    assert shown.index("fast[x]") < shown.index("slow")
    row = next(line for line in shown.splitlines() if "slow" in line)
    accuracy, memory = (show(metric, value).split() for metric, value in (("accuracy", 0.9), ("peak_bytes", 4000)))
    assert row.split() == ["slow", *accuracy, "0.900", "0.891–0.909", "1.20", *memory, "yes"]


def test_promises_are_judged_on_the_statistic_they_name() -> None:
    rows = text(promises_table(RESULT)).splitlines()
    latency, peak = (next(row for row in rows if word in row) for word in ("p90", "eak memory"))
    assert "1 of 2" in latency and "1.20 ms (slow)" in latency.replace("1.200", "1.20") and "broken" in latency
    assert "2 of 2" in peak and "(slow)" in peak and "broken" not in peak


def test_a_result_says_everything(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    stream = io.StringIO()
    print_result(RESULT, tmp_path, console(stream))
    shown = stream.getvalue()
    for word in ("digits", "A CPU onnxruntime 1.0", "2 min 05 s", "plain", "huge", "over the limit", "0.3", "ratio 1.500", "2.25 times"):
        assert word in shown, shown
    assert "Note: the machine was busy" in shown and f"Report: {tmp_path / 'report.html'}\n" in shown
    assert "resume" not in shown and f"{tmp_path / 'models'}" not in shown


@given(st.sets(st.sampled_from(sorted(RESULT))), st.sampled_from(["complete", "partial", "infeasible"]))
def test_a_result_with_holes_is_still_shown(missing: set[str], status: str) -> None:
    stream = io.StringIO()
    print_result({**{key: value for key, value in RESULT.items() if key not in missing}, "status": status}, "some/run", console(stream))
    assert ("sartor resume some/run" in stream.getvalue()) == (status == "partial")


def test_a_profile_gives_shares_of_the_layers() -> None:
    latency = {"p50": 0.4, "p90": 0.5, "low": 0.39, "high": 0.41, "runs": 100, "noisy": True}
    layers = [{"name": "conv", "latency_us": 300.0}, {"name": "fc", "latency_us": 100.0}]
    stream = io.StringIO()
    print_profile({"file": "m.onnx", "threads": 1, "latency": latency, "layers": layers}, console(stream))
    shown = stream.getvalue()
    assert "m.onnx: 0.400 ms (95 % interval 0.390–0.410, p90 0.500)" in shown and "noisy" in shown
    assert re.search(r"conv +300\.0 +75\.0 %", shown) and re.search(r"fc +100\.0 +25\.0 %", shown)
    stream = io.StringIO()
    print_profile({"file": "m.onnx", "threads": 1, "latency": latency, "layers": []}, console(stream))
    assert "0.400 ms" in stream.getvalue() and "Layers" not in stream.getvalue()  # an agent tells none
