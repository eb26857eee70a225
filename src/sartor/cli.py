"""The command line: parses, calls, prints. Heavy modules are imported inside the commands, so that help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sartor import __version__
from sartor.bench.command import bench
from sartor.deploy.calibrate_device import calibrate
from sartor.deploy.check_device import check
from sartor.deploy.devices import Folder, devices, use_folder
from sartor.deploy.predict_command import predict
from sartor.deploy.train_cells import train
from sartor.errors import PLACE, Unusable, UserError, unusable
from sartor.options import (
    Data,
    InputSize,
    Json,
    LimitTrain,
    Minutes,
    Out,
    Precision,
    Run,
    Seed,
    Threads,
    Validation,
    numbers,
    print_json,
    whole,
)
from sartor.report.listings import describe_data, spaces
from sartor.report.profile_command import profile

app = typer.Typer(
    name="sartor",
    help="Neural networks made to measure: searched, trained, exported and measured for your data, device and limits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Ended(Exception):
    """A run ended before its time: the sentence for the user, and the exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sartor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
    folder: Folder = None,
) -> None:
    """Neural networks made to measure: searched, trained, exported and measured for your data, device and limits."""
    use_folder(folder)


@app.command()
def search(
    data: Data,
    limit: Annotated[
        list[str] | None, typer.Option(help="A limit to keep, such as latency_ms<=2, latency_p90=2ms, peak_bytes=256KB. Repeatable.")
    ] = None,
    objective: Annotated[list[str] | None, typer.Option(help="A metric to trade off. Repeatable (default: accuracy, latency_ms).")] = None,
    minutes: Minutes = None,
    space: Annotated[str | None, typer.Option(help="Search space, see `sartor spaces` (default: mobile).")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Search strategy, such as nsga2, pc-darts or ofa; random is the control (default: nsga2).")
    ] = None,
    guard: Annotated[bool | None, typer.Option("--guard", help="End a search by epochs when its doctor finds a collapse.")] = None,
    check_ranks: Annotated[
        int | None, typer.Option(parser=whole, metavar="N", help="Train N networks alone too, to check the method's ranking (default: 0).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device, see `sartor devices` (default: host).")] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="A further device, such as pixel-3 or pixel-3:weight=2,limit=30ms. Repeatable.", show_default=False),
    ] = None,
    composite: Annotated[
        Any, typer.Option(parser=numbers, metavar="A,B,C", help="Weights of composite_cost: FLOPs, moved bytes, latency (default: 1,1,1).")
    ] = None,
    merit: Annotated[
        Any, typer.Option(parser=numbers, metavar="A,B,C", help="Exponents of merit: accuracy, energy, latency (default: 1,1,1).")
    ] = None,
    precision: Precision = None,
    threads: Threads = None,
    models: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Most models to deliver (default: 8).")] = None,
    baselines: Annotated[
        bool | None, typer.Option("--baselines/--no-baselines", help="Train and measure hand-made reference nets too (default: yes).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A .safetensors file that the supernet, or a method's network, starts from.")] = None,
    from_scratch: Annotated[
        bool | None, typer.Option("--from-scratch", help="Also train the delivered nets from scratch; report both.")
    ] = None,
    validation: Validation = None,
    limit_train: LimitTrain = None,
    input_size: InputSize = None,
    seed: Seed = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Search the networks with the best trade-offs for DATA on a device, within limits."""
    given = {**locals(), "limits": limit, "objectives": objective, "platforms": platform}
    request = _request({name: value for name, value in given.items() if name not in {"limit", "objective", "platform", "as_json"}})
    _carry_out("search", request, as_json)


@app.command()
def resume(run: Run, as_json: Json = False) -> None:
    """Go on with an interrupted run, from where it stopped."""
    from sartor.request import SearchRequest

    SearchRequest.load(run)
    with _running(run), _progress(as_json) as progress:
        from sartor import job

        result = job.resume(run, progress=progress)
    _show_result(result, run, as_json)


@app.command()
def baseline(
    data: Data,
    minutes: Minutes = None,
    precision: Precision = None,
    threads: Threads = None,
    validation: Validation = None,
    limit_train: LimitTrain = None,
    input_size: InputSize = None,
    seed: Seed = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train and measure the hand-made reference nets alone, without a search."""
    given = locals()
    _carry_out("baseline", _request({name: value for name, value in given.items() if name != "as_json"}), as_json)


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Show the result of a run again: the models, the promises, and where the files lie."""
    from sartor.report.folder import read_result

    result = read_result(run)
    if not (run / "report.html").is_file():
        from sartor.report.html import write_report

        write_report(run, result)
    _show_result(result, run, as_json)


@app.command()
def export(
    run: Run,
    model: Annotated[str, typer.Argument(help="A model's name, as in `sartor report`.", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder, new or empty.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Copy everything of one model (ONNX int8 and fp32, Python source, weights, card) into a folder of its own."""
    from sartor.report.folder import export_model

    files = export_model(run, model, destination)
    if as_json:
        print_json({"model": model, "destination": str(destination), "files": files})
    else:
        print(f"{model}: {', '.join(files)} in {destination}")


app.command()(profile)
app.command()(predict)


devices.command()(check)
devices.command()(calibrate)
app.add_typer(devices, name="devices")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def agent(context: typer.Context) -> None:
    """Measure models on this machine for others: the board's side of `sartor devices add`."""
    from sartor.agent import main as serve

    try:
        serve(context.args)
    except SystemExit as done:  # its own --help
        raise typer.Exit(int(done.code or 0)) from None


app.command("data")(describe_data)
app.command()(spaces)
app.command()(bench)
app.command()(train)


def _request(given: dict[str, Any]) -> Any:
    """The checked request from the options that were given; the others keep the defaults of SearchRequest."""
    from sartor.request import SearchRequest

    return SearchRequest(**{name: value for name, value in given.items() if value is not None})


def _carry_out(task: str, request: Any, as_json: bool) -> None:
    """Run the job function named `task` on the request and show its result."""
    from sartor.request import check_new_folder

    folder = Path(request.out)
    check_new_folder(folder)
    with _running(folder), _progress(as_json) as progress:
        from sartor import job

        result = getattr(job, task)(request, progress=progress)
    _show_result(result, folder, as_json)


def _progress(as_json: bool) -> Any:
    from sartor.report.terminal import Progress

    return Progress(plain=True if as_json else None)


@contextmanager
def _running(folder: Path) -> Iterator[None]:
    """Turn what can end a run before its time into a sentence that says where things lie and what to do."""
    try:
        yield
    except Unusable as error:
        if (folder / "config.json").is_file() and "sartor resume" not in str(error):  # from a place that knows of no run
            go_on = f"make room or mend the rights, then go on with `sartor resume {folder}`"
            raise Unusable(f"{error}. What was finished is kept: {go_on}.") from None
        raise
    except UserError:
        raise
    except KeyboardInterrupt:
        kept = (
            f"what was finished lies in {folder}; go on with: sartor resume {folder}"
            if (folder / "config.json").is_file()
            else "nothing was begun."
        )
        raise Ended(f"Stopped: {kept}", 130) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PLACE:
            raise Unusable(unusable(error, folder)) from None
        raise Ended(_failed(error, folder), 1) from None


def _failed(error: Exception, folder: Path | None) -> str:
    """Store the traceback; the sentence for the user."""
    from sartor.report.folder import store_traceback

    path = store_traceback(error, folder)
    reason = " ".join(str(error).split())[:200]
    what = type(error).__name__ + (f": {reason}" if reason else "")
    kept = f"; what was finished is kept, and `sartor resume {folder}` tries again" if folder is not None and path.parent == folder else ""
    return f"Something went wrong inside sartor ({what}): the details are in {path}{kept}."


def _show_result(result: dict[str, Any], folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from sartor.report import terminal

    terminal.print_result(result, folder, terminal.console())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed inside, 2 a user's mistake, 130 interrupted."""
    # BadParameter's base is click's UsageError, wherever this version of typer keeps click.
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    # Idle OpenMP threads that spin take the core from the thread that works, wherever cores are shared: several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return int(app(args=arguments, prog_name="sartor", standalone_mode=False) or 0)
    except UserError as error:
        return _say(str(error), 2)
    except usage_error as error:
        return _say_usage(error)
    except Ended as error:
        return _say(str(error), error.code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("Stopped", 130)
    except BrokenPipeError:
        # The reader (such as `head`) has gone; without this, Python complains once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PLACE:
            return _say(unusable(error, None), 2)
        return _say(_failed(error, None), 1)


def _say_usage(error: Any) -> int:
    """Say what is wrong with the arguments; nothing when the help was shown in their place. Returns the exit code."""
    command = error.ctx.command_path if error.ctx is not None else "sartor"
    text = str(error.format_message()).rstrip(".?")
    return _say(f"{text} (see `{command} --help`)", 2) if text and "[OPTIONS]" not in text else 2


def _say(sentence: str, code: int) -> int:
    """Print one sentence on standard error and return the exit code."""
    print(f"sartor: {sentence}" + ("" if sentence.endswith((".", "?")) else "."), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
