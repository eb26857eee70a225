"""What the commands share: options of the same name and meaning, parsers of numbers that refuse in a sentence, JSON for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def whole(text: str) -> int:
    """An option's whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, but got {text!r}") from None


def number(text: str) -> float:
    """An option's number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, but got {text!r}") from None


def numbers(text: str) -> list[float]:
    """An option's numbers with commas between them."""
    return [number(part.strip()) for part in text.split(",")]


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Seed = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Seed of everything drawn at random (default: 0).")]
Threads = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Threads the model runs with (default: 1).")]
Run = Annotated[Path, typer.Argument(help="A run folder, as `sartor search` makes.", show_default=False)]
Data = Annotated[
    str, typer.Argument(help="digits, fashion-mnist, cifar10, an image folder, a .npz file or module:function.", show_default=False)
]
Minutes = Annotated[float | None, typer.Option(parser=number, metavar="X", help="Time for the whole run (default: 40).")]
Out = Annotated[str | None, typer.Option(help="Run folder (default: runs/DATA-TIME).")]
Precision = Annotated[str | None, typer.Option(help="int8 or fp32 (default: int8).")]
LimitTrain = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Most training images to use.")]
InputSize = Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Resize images to this height and width.")]
Validation = Annotated[
    float | None, typer.Option(parser=number, metavar="X", help="Fraction of the training images held out (default: 0.1).")
]
