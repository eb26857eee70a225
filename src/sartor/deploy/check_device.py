"""`sartor devices check`: what of a search space a device does not support or does badly, and what a search would leave out for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sartor.deploy.devices import Folder, Name, Precision, can_measure, use_folder
from sartor.errors import UserError
from sartor.options import Json, print_json, whole

if TYPE_CHECKING:
    from sartor.hardware.compatibility import Option
    from sartor.hardware.spec import DeviceSpec
    from sartor.spaces import MobileNet

_DRAWN = 200  # networks that are asked for what they need of a microcontroller's memory
_FEW = 4  # options of one finding that a table names


def check(
    name: Name,
    space: Annotated[
        str | None, typer.Option(help="Search space, see `sartor spaces` (default: mobile; mcu for a microcontroller).", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data whose images the space is built for.", show_default=False)] = None,
    given: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="In place of data: the size of images, such as 1x28x28.")
    ] = None,
    classes: Annotated[int, typer.Option(parser=whole, metavar="N", help="Number of classes, with --input.", show_default=True)] = 10,
    precision: Precision = "int8",
    runtime: Annotated[
        str | None, typer.Option(help="Also ask this runtime, as it is installed here (of host, always: onnxruntime).", show_default=False)
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """List the options of a search space that a device does not support or does badly, with the reason, before anything is trained."""
    from sartor.hardware.devices import HOST, find
    from sartor.report import terminal

    use_folder(folder)
    spec = find(name)
    shape, count = _images(data, given, classes)
    found = examine(
        spec,
        space or ("mcu" if spec.kind == "mcu" else "mobile"),
        shape,
        count,
        precision,
        runtime or ("onnxruntime" if name == HOST else None),
    )
    if as_json:
        print_json(found)
        return
    console = terminal.console()
    if found["findings"]:
        title = f"Options of space {found['space']} that {spec.title} has not, or does badly ({precision})"
        console.print(terminal.table(title, ("verdict", "options", "reason", "says"), _rows(found["findings"]), left=4))
    else:
        terminal.say(console, _clear(spec, found["space"], precision))
    for sentence in found["notes"]:
        terminal.say(console, sentence)


def examine(
    spec: DeviceSpec, space: str, input_shape: tuple[int, int, int], classes: int, precision: str = "int8", runtime: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """What is said against the options of a space, by the device's file and by a runtime that is here.

    `findings`: choices (empty: the op is in every network), op, level ("unsupported", "unfriendly"), reason, source; `left_out`: what a
    search for the device leaves out, [choice, option, reason]; `notes`: sentences; `refused`: why a search could not begin, or None.
    Raises UserError for an unknown space or runtime, one that is not installed, and a precision that the device has not.
    """
    import torch

    from sartor.hardware.compatibility import check_space
    from sartor.hardware.devices import HOST
    from sartor.spaces import MobileNet, build

    if precision not in spec.precisions or precision not in ("int8", "fp32"):
        raise UserError(f"precision: expected int8 or fp32, one that {spec.name} has ({', '.join(spec.precisions)}), got {precision!r}")
    with torch.device("meta"):  # no weights are needed
        net = build(space, input_shape, classes)
    factors, choices = list(net.factors()), net.space.choices
    findings = [] if spec.name == HOST else _told(check_space(factors, choices, spec), f"file of {spec.name}")
    notes, left_out, refused = _search_leaves_out(net, spec, precision)
    if spec.sram_bytes and spec.flash_bytes and isinstance(net, MobileNet):
        notes.append(_room(net, spec.sram_bytes, spec.flash_bytes, precision))
        if space == "mcu":
            notes.append("That is the space at its full width: a search chooses width and picture size so that enough networks fit.")
    if runtime is not None:
        asked, said = _asked(factors, choices, runtime, precision)
        findings += asked
        notes.append(said)
    if spec.agent is not None:
        notes.append(
            f"The runtime on the board was not asked: an agent measures whole networks. `sartor search --device {spec.name}` will."
        )
    elif not can_measure(spec) and runtime is None:
        notes.append("No runtime was asked: the device is described, not here. --runtime asks one that is installed on this machine.")
    return {
        "device": spec.name, "space": space, "input_shape": list(input_shape), "classes": classes, "precision": precision,
        "architectures": str(net.space.size), "findings": findings, "left_out": left_out, "refused": refused, "notes": notes,
    }  # fmt: skip


def _search_leaves_out(net: Any, spec: DeviceSpec, precision: str) -> tuple[list[str], list[list[Any]], str | None]:
    """The restriction that a search for the device begins with: sentences, what it removes, and why there is none, if so."""
    from sartor.hardware.devices import HOST
    from sartor.spaces.restrict import conform, summary

    if spec.name == HOST:  # measured, not described: a search finds out by the clock
        return ["A search for this machine leaves nothing out: it measures what is slow."], [], None
    try:
        (left, removed, kept), given_up = conform(net, spec, precision)
    except UserError as error:
        return [f"A search for {spec.name} in this space is refused: {error}."], [], str(error)
    notes = summary(removed, given_up, spec, kept)
    if removed:
        notes.append(f"A search for {spec.name} has {left.size:,} of {net.space.size:,} architectures left.")
    return notes, [list(one) for one in removed], None


def _clear(spec: DeviceSpec, space: str, precision: str) -> str:
    """That nothing is against the space, and what was looked for."""
    known = ", ".join([*spec.unsupported, *spec.unfriendly])
    why = f": no network of it has what the device's file objects to, which is {known}" if known else ""
    return f"Nothing is known against any option of space {space} on {spec.title} ({precision}){why}."


def _room(net: MobileNet, sram: int, most: int, precision: str) -> str:
    """How many networks of a space a microcontroller has room for, which decides more there than what runs well."""
    import numpy as np

    from sartor.hardware.cost import CostModel
    from sartor.hardware.memory import op_weight_bytes

    size = 1 if precision == "int8" else 4
    weights, rng = CostModel(net.factors(), lambda op: float(op_weight_bytes(op, size))), np.random.default_rng(0)
    drawn = [net.space.sample(rng) for _ in range(_DRAWN)]
    peaks, flash = [size * net.costs(arch)["peak_bytes"] for arch in drawn], [float(weights(arch)) for arch in drawn]
    fit = sum(peak <= sram and held <= most for peak, held in zip(peaks, flash, strict=True))
    return (
        f"Of {_DRAWN} networks drawn from the space {fit} fit into {sram:,} bytes of SRAM and {most:,} of flash; they need "
        f"{min(peaks):,.0f} to {max(peaks):,.0f} bytes for activations and {min(flash):,.0f} to {max(flash):,.0f} for weights."
    )


def _asked(factors: list[Any], choices: Mapping[str, Any], runtime: str, precision: str) -> tuple[list[dict[str, Any]], str]:
    """What a runtime on this machine says of the space, and a sentence about how it was asked."""
    from sartor.export.quantize import quantize
    from sartor.hardware.compatibility import Answers, check_space
    from sartor.hardware.cost import all_ops
    from sartor.hardware.runtimes import installed

    ops = all_ops(factors, {name: len(options) for name, options in choices.items()})
    answers = Answers(ops, runtime, precision, partial(quantize, method="minmax"))
    source = f"{runtime} {installed(runtime)}"
    said = f"{source} was asked: it loaded and ran one op of each of {answers.asked} kinds, for the {len(ops):,} ops of the space."
    return _told(check_space(factors, choices, answers), source), said


def _told(options: Iterable[Option], source: str) -> list[dict[str, Any]]:
    return [
        {"choices": dict(one.choices), "op": one.finding.op.signature, "level": one.finding.level, "reason": one.finding.reason,
         "source": source}
        for one in options
    ]  # fmt: skip


def _rows(findings: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """One row a reason: the first options that it holds for, and how many more."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        words = " and ".join(f"{choice} = {label}" for choice, label in one["choices"].items()) or "every network"
        groups.setdefault((one["level"], one["reason"], one["source"]), []).append(words)
    rows = []
    for (level, reason, source), options in groups.items():
        shown = list(dict.fromkeys(options))
        more = f" and {len(shown) - _FEW} more (--json lists them)" if len(shown) > _FEW else ""
        rows.append([level, "; ".join(shown[:_FEW]) + more, reason, source])
    return rows


def _images(data: str | None, given: str | None, classes: int) -> tuple[tuple[int, int, int], int]:
    """Shape (C, H, W) of the images, and the number of classes: of data, or as given."""
    if (data is None) == (given is None):
        raise UserError("expected --data, such as digits, or --input, such as 1x28x28, and not both")
    if data is not None:
        from sartor.data import load

        loaded = load(data)
        return loaded.input_shape, len(loaded.classes)
    sizes = re.fullmatch(r"(\d{1,4})x(\d{1,4})x(\d{1,4})", given or "")
    if sizes is None or min(shape := tuple(int(size) for size in sizes.groups())) < 1:
        raise UserError(f"--input: expected channels x height x width, such as 1x28x28, got {given!r}")
    if classes < 2:
        raise UserError(f"--classes: expected at least 2, got {classes}")
    return (shape[0], shape[1], shape[2]), classes
