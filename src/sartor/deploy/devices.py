"""`sartor devices`: what can be measured or modelled, where its numbers come from, and how a board of one's own is added."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sartor.errors import UserError
from sartor.options import Json, print_json, whole

devices = typer.Typer(help="List the devices, with what identifies each; show, check, add and probe them.", invoke_without_command=True)

Folder = Annotated[
    Path | None,
    typer.Option("--devices-dir", help="Folder of your own device files (default: ~/.config/sartor/devices).", show_default=False),
]
Name = Annotated[str, typer.Argument(help="A device, see `sartor devices`.", show_default=False)]
Precision = Annotated[str, typer.Option(help="int8 or fp32; part of what identifies a measurement.", show_default=True)]


Threads = Annotated[int, typer.Option(parser=whole, metavar="N", help="Threads, the same.", show_default=True)]


@devices.callback()
def devices_command(
    context: typer.Context, precision: Precision = "int8", threads: Threads = 1, folder: Folder = None, as_json: Json = False
) -> None:
    """List the devices, with what identifies each; show, check, add and probe them."""
    use_folder(folder)
    if context.invoked_subcommand is None:
        _print_list(precision, threads, as_json)
        return
    for name, option in (("as_json", "--json"), ("precision", "--precision"), ("threads", "--threads")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            which = context.invoked_subcommand
            raise UserError(f"{option}: expected after `sartor devices {which}`, not before {which!r}, where only --devices-dir is read.")


@devices.command("list")
def list_command(precision: Precision = "int8", threads: Threads = 1, folder: Folder = None, as_json: Json = False) -> None:
    """List the devices: this machine, those with an agent, and those that are only described and never measured here."""
    use_folder(folder)
    _print_list(precision, threads, as_json)


@devices.command()
def show(name: Name, folder: Folder = None, as_json: Json = False) -> None:
    """Show every number of a device and the source of each."""
    from sartor.hardware.devices import find
    from sartor.report import terminal

    use_folder(folder)
    spec = find(name)
    if as_json:
        print_json(spec.to_json())
        return
    console = terminal.console()
    console.print(terminal.table(spec.title, ("quantity", "value", "source"), quantities(spec.to_json(), spec), left=3))
    if not can_measure(spec):
        console.print("Never measured: every latency and energy of this device comes from a model of it, and is marked so.")


@devices.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new name, with --url; or a device file (.toml).", show_default=False)],
    url: Annotated[
        str | None, typer.Option(help="Address of its `sartor agent`, such as http://pi.local:8421.", show_default=False)
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the agent's token.", show_default=False)] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file to trust, for https.", show_default=False)] = None,
    like: Annotated[str | None, typer.Option(help="A device of the same kind, for what the agent cannot tell.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a device of that name.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Add a board with an agent, or a device file of your own."""
    from sartor.hardware.devices import user_folder
    from sartor.hardware.devices.text import write
    from sartor.hardware.spec import read

    use_folder(folder)
    if url is None:
        if not name.endswith(".toml"):
            raise UserError(f"device: expected --url, the address of an agent, or a device file ending in .toml, got {name!r}")
        idle = {"--token-file": token_file, "--certificate": certificate, "--like": like}
        for option, value in idle.items():
            if value is not None:
                raise UserError(f"{option}: expected only with --url, the address of an agent; the device file {name!r} says it itself.")
        spec = read(name)
    else:
        _check_name(name)  # before the agent is asked, which may take a while
        spec = _from_agent(name, url, token_file, certificate, like)
    _check_name(spec.name)
    path = write(spec, user_folder(), replace=force)
    if as_json:
        print_json({"added": spec.name, "file": str(path)})
    else:
        print(f"{spec.name}: {spec.processor or spec.title}, in {path}; try: sartor search digits --device {spec.name}")


@devices.command()
def probe(name: Name = "host", folder: Folder = None, as_json: Json = False) -> None:
    """Measure a device's peaks, bandwidth and overhead, and keep them as its file."""
    from sartor.hardware.devices import find, user_folder
    from sartor.hardware.devices.text import write
    from sartor.hardware.probing import probe_by_measuring
    from sartor.hardware.target import open_device
    from sartor.report import terminal

    use_folder(folder)
    spec = find(name)
    with terminal.Progress(plain=True if as_json else None) as progress:
        device = open_device(name, progress=progress)
        if not device.measured:
            raise UserError(f"device: {name!r} is described, but has no agent that could measure; add one with `sartor devices add --url`")
        found = probe_by_measuring(device, spec, progress=progress)
    path = write(found, user_folder(), replace=True)
    if as_json:
        print_json({**found.to_json(), "file": str(path)})
        return
    shown = [row for row in quantities(found.to_json(), found) if row[2].startswith("measured")]
    terminal.console().print(terminal.table(f"{found.name}, kept in {path}", ("quantity", "value", "source"), shown, left=3))


def use_folder(folder: Path | None) -> None:
    """Makes a folder that the user names that of his devices, for this process and the workers it starts."""
    if folder is not None:
        if folder.is_file():
            raise UserError(f"--devices-dir: expected a folder, but '{folder}' is a file: choose another.")
        os.environ["SARTOR_DEVICES"] = str(folder)


def _from_agent(name: str, url: str, token_file: Path | None, certificate: Path | None, like: str | None) -> Any:
    from pydantic import ValidationError

    from sartor.hardware.devices import find
    from sartor.hardware.probing import probe_agent
    from sartor.hardware.spec import AgentAddress, in_words

    files = {"token_file": token_file, "certificate": certificate}
    given = {key: str(path.expanduser().resolve()) for key, path in files.items() if path is not None}
    try:
        address = AgentAddress.model_validate({"url": url, **given})
    except ValidationError:
        raise UserError(f"url: expected an address such as http://pi.local:8421, got {url!r}") from None
    try:
        return probe_agent(name, address, find(like) if like else None)
    except ValidationError as error:
        raise UserError(in_words(error, f"what {url} tells of its device")) from None


def _check_name(name: str) -> None:
    """Refuses what cannot be the name of a device that is added."""
    from sartor.hardware.devices import HOST
    from sartor.hardware.spec import NAME

    if not re.fullmatch(NAME, name):
        raise UserError(f"device: expected a name of small letters, digits, dots and dashes, got {name!r}")
    if name == HOST:
        raise UserError("device: 'host' is this machine; `sartor devices probe host` measures it")


def listing(precision: str, threads: int) -> tuple[list[dict[str, Any]], list[str]]:
    """One record a device, and one sentence for each file that is no device file, which hides no other device. The host has its identity;
    others are described by their files alone, so that nothing need answer."""
    from sartor.hardware.device import describe
    from sartor.hardware.devices import HOST, find, names
    from sartor.hardware.probing import probe_host

    found, bad = [], []
    for name in names():
        try:
            spec = find(name)
        except UserError as error:
            bad.append(str(error))
            if name != HOST:
                continue
            spec = probe_host()
        record: dict[str, Any] = {
            "name": name, "title": spec.title, "kind": spec.kind, "cpu": spec.processor, "cores": spec.cores, "runtime": spec.runtime,
            "precisions": list(spec.precisions), "measured": can_measure(spec), "agent": spec.agent.url if spec.agent else None,
            "peak_ops_per_s": dict(spec.peak_ops_per_s), "sram_bytes": spec.sram_bytes, "flash_bytes": spec.flash_bytes,
        }  # fmt: skip
        found.append({**record, **describe(precision, threads)} if name == HOST else record)
    return found, bad


def can_measure(spec: Any) -> bool:
    """Whether figures of the device are measurements: it is this machine, or there is an agent on it."""
    return spec.name == "host" or spec.agent is not None


def figures(record: dict[str, Any]) -> str:
    """How the figures of a listed device come about, in a word or two."""
    if record["agent"]:
        return f"measured by its agent at {record['agent']}"
    return "measured here" if record["measured"] else "never measured: modelled"


def quantities(record: dict[str, Any], spec: Any, path: str = "") -> list[list[str]]:
    """(quantity, value, source) of every field of a spec, nested ones by their dotted path."""
    rows: list[list[str]] = []
    for key, value in record.items():
        place = f"{path}.{key}" if path else key
        if key in ("sources", "title", "notes") and not path:
            continue
        if isinstance(value, dict):
            rows += quantities(value, spec, place)
        else:
            rows.append([place, _text(value), spec.source(place) or ""])
    return [*rows, *([["note", note, ""] for note in spec.notes] if not path else [])]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(" ".join(f"{k}={_text(v)}" for k, v in one.items()) if isinstance(one, dict) else _text(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _print_list(precision: str, threads: int, as_json: bool) -> None:
    from sartor.report import terminal

    found, bad = listing(precision, threads)
    if as_json:
        print_json({"devices": found, "refused": bad})
        return
    columns = ("name", "device", "kind", "runtime", "precisions", "cores", "figures")
    rows: Sequence[Sequence[str]] = [
        [d["name"], d["cpu"] or d["title"], d["kind"], d["runtime"], " ".join(d["precisions"]), str(d["cores"]), figures(d)] for d in found
    ]
    console = terminal.console()
    console.print(terminal.table("Devices", columns, rows, left=7))
    host = found[0]
    console.print(
        f"Identity of host figures: {host['fingerprint']} ({host['runtime']} {host['version']}, {precision}, {threads} thread(s))."
    )
    for sentence in bad:
        terminal.say(console, f"Not listed: {sentence}")
