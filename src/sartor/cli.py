"""The command line: parses, calls, prints. Heavy modules are imported inside the commands, so that help answers at once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sartor import __version__
from sartor.errors import UserError

app = typer.Typer(
    name="sartor",
    help="Neural networks made to measure: searched, trained, exported and measured for your data, device and limits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def whole(text: str) -> int:
    """An option's whole number, refused in a sentence that names what came."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, but got {text!r}") from None


def number(text: str) -> float:
    """An option's number, refused in a sentence that names what came."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, but got {text!r}") from None


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Seed = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Seed of everything drawn at random. [0]")]
Threads = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Threads the model runs with. [1]")]
Run = Annotated[Path, typer.Argument(help="A run folder, as `sartor search` makes.", show_default=False)]
Data = Annotated[
    str, typer.Argument(help="digits, fashion-mnist, cifar10, an image folder, a .npz file or module:function.", show_default=False)
]
Minutes = Annotated[float | None, typer.Option(parser=number, metavar="X", help="Time for the whole run. [40]")]
Out = Annotated[str | None, typer.Option(help="Run folder. [runs/DATA-TIME]")]
Precision = Annotated[str | None, typer.Option(help="int8 or fp32. [int8]")]
LimitTrain = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Most training images to use.")]
InputSize = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Resize images to this height and width.")]
Validation = Annotated[float | None, typer.Option(parser=number, metavar="X", help="Fraction of the training images held out. [0.1]")]


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
) -> None:
    """Neural networks made to measure: searched, trained, exported and measured for your data, device and limits."""


@app.command()
def search(
    data: Data,
    limit: Annotated[
        list[str] | None, typer.Option(help="A limit to keep, such as latency_ms<=2, latency_p90=2ms, peak_bytes=256KB. Repeatable.")
    ] = None,
    objective: Annotated[list[str] | None, typer.Option(help="A metric to trade off. Repeatable. [accuracy, latency_ms]")] = None,
    minutes: Minutes = None,
    space: Annotated[str | None, typer.Option(help="Search space, see `sartor spaces`. [mobile]")] = None,
    strategy: Annotated[str | None, typer.Option(help="Search strategy; random is the control. [nsga2]")] = None,
    device: Annotated[str | None, typer.Option(help="Device, see `sartor devices`. [host]")] = None,
    precision: Precision = None,
    threads: Threads = None,
    models: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Most models to deliver. [8]")] = None,
    baselines: Annotated[
        bool | None, typer.Option("--baselines/--no-baselines", help="Train and measure hand-made reference nets too. [yes]")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A .safetensors file to start the supernet from.")] = None,
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
    given = {**locals(), "limits": limit, "objectives": objective}
    request = _request({name: value for name, value in given.items() if name not in {"limit", "objective", "as_json"}})
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
    _show_result(_result(run), run, as_json)


@app.command()
def export(
    run: Run,
    model: Annotated[str, typer.Argument(help="A model's name, as in `sartor report`.", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder, new or empty.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Copy everything of one model (ONNX int8 and fp32, Python source, weights, card) into a folder of its own."""
    files = export_model(run, model, destination)
    if as_json:
        _print_json({"model": model, "destination": str(destination), "files": files})
    else:
        print(f"{model}: {', '.join(files)} in {destination}")


@app.command()
def profile(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="An ONNX file, of any origin.", show_default=False)],
    threads: Threads = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Measure the latency of an ONNX file on this machine, as a whole and layer by layer."""
    if not file.is_file():
        raise UserError(f"There is no file {str(file)!r}: expected an ONNX file.")
    if file.suffix != ".onnx":
        raise UserError(f"FILE.onnx: expected an ONNX file, but got {str(file)!r}.")
    from sartor.hardware.measure import measure
    from sartor.hardware.profile import layer_latencies
    from sartor.report import terminal

    measurement = measure(file, threads=threads or 1, seed=seed or 0)
    layers = [{"name": name, "latency_us": round(us, 3)} for name, us in layer_latencies(file, threads=threads or 1)]
    found = {"file": str(file), "threads": threads or 1, "latency": measurement.to_json(), "layers": layers}
    if as_json:
        _print_json(found)
    else:
        terminal.print_profile(found, terminal.console())


@app.command()
def devices(precision: Precision = None, threads: Threads = None, as_json: Json = False) -> None:
    """List the devices models can be measured on, and what identifies each."""
    from sartor.hardware.device import describe
    from sartor.report import terminal

    found = [describe(precision or "int8", threads or 1)]
    if as_json:
        _print_json({"devices": found})
    else:
        terminal.console().print(terminal.devices_table(found), markup=False)


@app.command("data")
def data_command(
    name: Annotated[str | None, typer.Argument(help="Load this data too and show its sizes.", show_default=False)] = None,
    validation: Validation = None,
    limit_train: LimitTrain = None,
    input_size: InputSize = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """List the data sets known by name, or describe one of any kind."""
    from sartor.data import catalogue, load
    from sartor.report import terminal

    if name is None:
        entries = [vars(entry) for entry in catalogue()]
        found: dict[str, Any] = {"data": entries}
        rows = [[str(e["name"]), str(e["description"]), e["where"] if e["found"] else f"not here: {e['how']}"] for e in entries]
        shown = terminal.table("Data by name", ("name", "description", "where"), rows, left=3)
    else:
        dataset = load(name, seed=seed or 0, validation=validation or 0.1, limit=limit_train, size=input_size)
        found = dataset.summary()
        shown = terminal.table(dataset.name, ("", ""), [[key, str(value)] for key, value in found.items() if key != "name"], left=2)
    if as_json:
        _print_json(found)
    else:
        terminal.console().print(shown, markup=False)


def export_model(run: Path, model: str, destination: Path) -> list[str]:
    """Copy the files of `model` of a finished run into `destination`, a new or empty folder. Returns the names of the files.

    Raises :class:`UserError` if there is no such run or model, or the folder holds something.
    """
    from sartor.request import unknown

    names = [str(record["name"]) for record in _result(run).get("models", [])]
    source = run / "models" / model
    if model not in names:
        raise UserError(unknown("model", model, names) if names else f"The run in {str(run)!r} delivered no model to export.")
    if not source.is_dir():
        raise UserError(f"The files of {model!r} are gone: expected them in {str(source)!r}.")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(f"DEST: expected a new or empty folder, but {str(destination)!r} is in use: choose another.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as part:
        copied = Path(part) / "model"
        shutil.copytree(source, copied)
        os.replace(copied, destination)
    return sorted(str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file())


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
    except UserError:
        raise
    except KeyboardInterrupt:
        kept = (
            f"what was finished lies in {folder}; go on with: sartor resume {folder}"
            if (folder / "config.json").is_file()
            else "nothing was begun."
        )
        raise Ended(f"Stopped: {kept}", 130) from None
    except Exception:
        raise Ended(_store_traceback(folder), 1) from None


def _store_traceback(folder: Path | None) -> str:
    """Write the traceback of the current exception into the run folder (else a temporary file). Returns the sentence for the user."""
    error = sys.exc_info()[1]
    if folder is not None and folder.is_dir():
        path = folder / "error.txt"
        advice = f"; what was finished is kept, and `sartor resume {folder}` tries again"
    else:
        path, advice = Path(tempfile.mkdtemp(prefix="sartor-")) / "error.txt", ""
    path.write_text(traceback.format_exc(), encoding="utf-8")
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"Something went wrong inside sartor ({type(error).__name__}: {reason[:200]}): the details are in {path}{advice}."


def _result(run: Path) -> dict[str, Any]:
    from sartor.request import CONFIG, read_json

    missing = f"There is no run in {str(run)!r}: expected a folder with result.json, as `sartor search` makes."
    if (run / CONFIG).is_file():
        missing = f"The run in {str(run)!r} has no result yet: finish it with `sartor resume {run}`."
    return read_json(run / "result.json", missing)


def _show_result(result: dict[str, Any], folder: Path, as_json: bool) -> None:
    if as_json:
        _print_json(result)
        return
    from sartor.report import terminal

    terminal.print_result(result, folder, terminal.console())


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed inside, 2 a user's mistake, 130 interrupted."""
    # BadParameter's base is click's UsageError, wherever this version of typer keeps click.
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
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
    except Exception:
        return _say(_store_traceback(None), 1)


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
