"""`sartor profile`: parses, calls, prints. Light until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sartor.errors import UserError
from sartor.options import Json, print_json, whole


def profile(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="An ONNX file, of any origin.", show_default=False)],
    runtime: Annotated[str, typer.Option(help="onnxruntime, openvino, executorch, litert or torch.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="Device, see `sartor devices`; one without an agent is modelled, not measured.")] = "host",
    precision: Annotated[str, typer.Option(help="What floats are computed in: fp32, bf16 or fp16.", show_default=False)] = "",
    threads: Annotated[int, typer.Option(parser=whole, metavar="N", help="Threads the model runs with.")] = 1,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Images at a time.")] = 1,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also measure other thread counts, free and pinned to cores.")] = False,
    limit: Annotated[
        str | None, typer.Option(help="A limit for the memory plot, such as peak_bytes=256KB.", show_default=False)
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Input as CxHxW, where the file does not tell it (.py).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Seed of everything drawn at random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for profile.html and its pictures.", show_default=False)] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Profile a network on a device: latency, layers, roofline, memory, what the device does not like, and how far to trust it."""
    from sartor.hardware.runtimes import RUNTIMES, Setup

    if runtime not in RUNTIMES:
        raise UserError(f"runtime: expected one of {', '.join(RUNTIMES)}, but got {runtime!r}.")
    if not file.is_file():
        raise UserError(f"There is no file {str(file)!r}: expected an ONNX file.")
    if file.suffix != RUNTIMES[runtime].suffix:
        what = "an ONNX file" if RUNTIMES[runtime].suffix == ".onnx" else f"a {RUNTIMES[runtime].suffix} file"
        raise UserError(f"FILE{RUNTIMES[runtime].suffix}: expected {what}, but got {str(file)!r}.")
    from sartor.report.profile_page import write_profile
    from sartor.report.profiling import profile as profiled
    from sartor.report.terminal import Progress

    setup = Setup(runtime, precision, threads, batch, input_shape=_shape(shape))
    with Progress(plain=True if as_json else None) as progress:  # hears of a board that does not answer
        found = profiled(file, setup=setup, device=device, seed=seed, sweep=sweep, limit_bytes=_limit(limit), progress=progress)
    written = [str(path) for path in write_profile(out, found)] if out is not None else []
    record = {**found.record, "files": written}
    if as_json:
        print_json(record)
    else:
        _show(record)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"shape: expected sizes such as 3x32x32, but got {text!r}.")
    return sizes


def _limit(text: str | None) -> float | None:
    if text is None:
        return None
    from sartor.goals import parse_limit

    limit = parse_limit(text)
    if limit.metric != "peak_bytes":
        raise UserError(f"limit: expected peak_bytes, but got {text!r}.")
    return float(limit.bound)


def _show(record: dict[str, Any]) -> None:
    from sartor.report import terminal
    from sartor.report.profile_page import sentences

    out = terminal.console()
    latency = record["latency"]
    if latency is not None and latency["runs"] > 0:
        terminal.print_profile(record, out)
        out.print()
    for sentence in [*sentences(record), *record["compatibility"], *record["notes"]]:
        terminal.say(out, sentence)
    if record.get("sweep"):
        rows = [
            [str(one["setup"]["threads"]), ", ".join(map(str, one["setup"]["cores"])) or "any", f"{one['latency']['p50']:.3f}"]
            for one in record["sweep"]
        ]
        out.print(terminal.table("Threads and cores, the fastest first", ("threads", "cores", "ms"), rows))
    for path in record["files"][:1]:
        terminal.say(out, f"Pictures: {path}")
