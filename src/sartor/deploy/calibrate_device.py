"""`sartor devices calibrate`: the roofline of a described device, fitted to latencies that its owner measured by means of his own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sartor.deploy.devices import Folder, Name, Threads, can_measure, use_folder
from sartor.deploy.pairs import Pair, precision_of_all, read_pairs
from sartor.errors import UserError
from sartor.options import Json, print_json

if TYPE_CHECKING:
    import numpy as np

    from sartor.hardware.spec import DeviceSpec

FEWEST, MOST = 4, 100  # networks in a file of pairs
_COVERAGE = 0.9  # of networks whose latency lies within what is said of it


def calibrate(
    name: Name,
    pairs: Annotated[
        Path,
        typer.Option(metavar="FILE.csv", help="Columns file (an ONNX file, seen from the CSV) and latency_ms; 4 to 100 rows."),
    ],
    precision: Annotated[str | None, typer.Option(help="What the files must be (default: what they are).", show_default=False)] = None,
    threads: Threads = 1,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Fit the model of a described device to latencies that you measured on it; profiles and searches then go by it."""
    from sartor.hardware.devices import check_threads, find

    use_folder(folder)
    spec = find(name)
    if can_measure(spec):
        how = "this machine" if spec.agent is None else "measured by its agent"
        raise UserError(f"device: expected one that is only described, but {name} is {how}: its latencies are measured, not calibrated.")
    check_threads(name, threads)
    found = calibrated(spec, read_pairs(pairs, FEWEST, MOST), precision, threads)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found["kept"] is None:
        raise typer.Exit(1)


def calibrated(spec: DeviceSpec, pairs: Sequence[Pair], precision: str | None = None, threads: int = 1) -> dict[str, Any]:
    """Fit the device's roofline to the pairs, judge it on each network by a fit without it, and keep it unless it is worse than before.

    The record has `device`, `precision`, `threads`, `networks`; `before` and `after` as `Judgement.to_json` (of the device file alone; of
    the calibrated roofline, each network left out); `verdict`, `within_factor` (90 % of networks are within it of what is predicted; None
    below nine), `parameters`, and `kept`, the path or None.

    Raises:
        UserError: for files that are no ONNX or of another precision, and a device whose file has not what a roofline needs.
    """
    import numpy as np

    from sartor.hardware.calibrate import quality
    from sartor.hardware.kept import save_roofline
    from sartor.hardware.onnx_graph import onnx_graph
    from sartor.hardware.roofline import Roofline
    from sartor.predictors.latency.judgement import judge

    graphs = [onnx_graph(pair.file) for pair in pairs]
    precision = precision_of_all(graphs, [pair.file for pair in pairs], precision)
    model = Roofline.of(spec, precision, threads)
    measured = np.array([pair.latency_ms for pair in pairs])
    known = list(zip(graphs, measured.tolist(), strict=True))
    left_out = model.left_out(known)
    fitted = replace(model.calibrate(known, leave_one_out=False), quality=quality(left_out, measured))
    before, after = judge([model.predict(graph) for graph in graphs], measured), judge(left_out, measured)
    path = save_roofline(fitted, spec.name, threads) if after.mape <= before.mape else None
    return {
        "device": spec.name, "precision": precision, "threads": threads, "networks": len(pairs),
        "before": before.to_json(), "after": after.to_json(),
        "verdict": after.sentence(), "within_factor": _factor(left_out, measured),
        "parameters": {"before": asdict(model.parameters), "after": asdict(fitted.parameters)}, "kept": None if path is None else str(path),
    }  # fmt: skip


def _factor(predicted: np.ndarray, measured: np.ndarray) -> float | None:
    """What nine of ten unseen networks stay within, by the errors of those left out (conformal, each network left out in turn)."""
    import numpy as np

    errors, rank = np.sort(np.abs(np.log(measured / predicted))), math.ceil(_COVERAGE * (len(measured) + 1))
    return math.exp(float(errors[rank - 1])) if rank <= len(errors) else None


def _show(found: Mapping[str, Any]) -> None:
    from sartor.report import terminal

    console = terminal.console()
    names = {"before": "its device file alone", "after": "calibrated, each network left out"}
    rows = [
        [words, f"{found[key]['within_10']:.0%}", f"{found[key]['mape']:.1%}", f"{found[key]['kendall_tau']:.2f}"]
        for key, words in names.items()
    ]
    title = f"{found['device']}, {found['precision']}, {found['threads']} thread(s), {found['networks']} networks"
    console.print(terminal.table(title, ("model", "within 10 %", "mean error", "Kendall τ"), rows))
    terminal.say(console, f"The calibrated roofline: {found['verdict']}.")
    if found["within_factor"] is not None:
        factor = found["within_factor"]
        terminal.say(console, f"Nine of ten networks like these take between 1/{factor:.2f} and {factor:.2f} times what it says.")
    if found["after"]["kendall_tau"] < found["before"]["kendall_tau"]:
        terminal.say(
            console, "The order of networks it tells less well than the device file alone: more of them, and more various ones, may help."
        )
    if found["kept"] is None:
        terminal.say(console, "It is not kept: on networks left out it errs more than the device file alone. Check latencies and unit.")
        return
    what = f"`sartor profile --device {found['device']}` and `sartor search --device {found['device']}`"
    terminal.say(console, f"Kept in {found['kept']}; {what} go by it, in {found['precision']} with {found['threads']} thread(s).")
