"""`profile.html` and its pictures: what `sartor profile` found, for a browser and for documents. Offline, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.report.files import write_atomically
from sartor.report.hardware_plots import memory_png, roofline_png, scatter_png
from sartor.report.markup import Html, join, section, table, tag
from sartor.report.plots import layers_png
from sartor.report.profile_energy import energy_sentence
from sartor.report.profiling import Profile

MOST_OPS = 200  # rows of the table of ops


def write_profile(folder: Path | str, found: Profile) -> list[Path]:
    """Write `profile.html` and those of `roofline.png`, `layers.png`, `memory.png`, `predicted_vs_measured.png` that there is data for.

    A picture of an earlier profile that has no successor is removed. Returns the paths written, the page first. Raises UserError when the
    folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = pictures(found)
        written = []
        for name in ("roofline", "layers", "memory", "predicted_vs_measured"):
            path = folder / f"{name}.png"
            if name in drawn:
                write_atomically(path, drawn[name])
                written.append(path)
            else:
                path.unlink(missing_ok=True)
        page = folder / "profile.html"
        write_atomically(page, profile_page(found.record, list(drawn)).encode())
        return [page, *written]
    except OSError as error:
        raise UserError(f"cannot write the profile into {folder}: {error.strerror or error}; check that the folder is writable") from error


def pictures(found: Profile) -> dict[str, bytes]:
    """The pictures that there is data for, as PNG, by name."""
    record, drawn = found.record, dict[str, bytes]()
    name = Path(record["file"]).name
    if found.model is not None and any(one.flops for one in found.times):
        drawn["roofline"] = roofline_png(found.model, found.times, f"{name} on {record['device']['name']}, {found.model.precision}")
    bars = record["layers"] or [{"name": one.op.name, "latency_us": one.us} for one in found.times]
    if bars:
        told = "measured" if record["layers"] else "modelled"
        layers = layers_png({"name": f"{name}, {told}", "layers": bars})
        if layers is not None:
            drawn["layers"] = layers
    if found.moments:
        drawn["memory"] = memory_png(found.moments, record["memory"]["limit_bytes"], f"{name}: live activations of one image")
    pairs = [(op["measured_us"], op["us"]) for op in (record["roofline"] or {}).get("ops", []) if op["measured_us"]]
    if len(pairs) >= 3:
        measured, modelled = zip(*pairs, strict=True)
        drawn["predicted_vs_measured"] = scatter_png(measured, modelled, "time of an op (µs)", f"{name}: roofline against the runtime")
    return drawn


def profile_page(record: Mapping[str, Any], drawn: Sequence[str]) -> str:
    """The whole page as text; `drawn` names the pictures beside it."""
    name = Path(record["file"]).name
    parts = [_latency(record), _pictures(drawn), _ops(record), _memory(record), _compatibility(record), _sweep(record), _notes(record)]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file:; base-uri 'none'; form-action 'none'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} – sartor profile"),
        Html(f"<style>{resources.files('sartor.report').joinpath('assets', 'style.css').read_text(encoding='utf-8')}</style>"),
    )  # fmt: skip
    where = record["device"]["name"] + ("" if record["device"]["measured"] else ", which was not measured: its figures are modelled")
    header = tag("header", tag("h1", f"{name}: profile"), tag("p", f"On {where}. Made by sartor; works offline.", class_="note"))
    return f'<!doctype html>\n<html lang="en">{head}{tag("body", header, tag("main", *filter(None, parts)))}</html>\n'


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What a person should know first, for the page and the terminal."""
    said = []
    if record["latency"] is None and record["roofline"] is not None:
        said.append(f"Modelled latency {record['roofline']['latency_ms']:.3f} ms; nothing was measured on {record['device']['name']}.")
    graph, memory = record["graph"], record["memory"]
    if graph is not None:
        foreign = f"; operators without a kind of their own: {', '.join(graph['foreign'])}" if graph["foreign"] else ""
        said.append(f"{graph['ops']} ops, {graph['macs']:,} MACs, {graph['params']:,} parameters, {graph['precision']}{foreign}.")
    if memory is not None:
        order = "" if memory["best_order_bytes"] == memory["peak_bytes"] else f", {memory['best_order_bytes']:,} in the best order"
        limit = memory["limit_bytes"]
        verdict = "" if limit is None else f"; {'within' if memory['best_order_bytes'] <= limit else 'over'} the limit of {limit:,.0f}"
        said.append(f"Peak of live activations {memory['peak_bytes']:,} bytes{order}{verdict}.")
    roof = record["roofline"]
    if roof is not None and roof["ops"]:
        total = sum(op["us"] for op in roof["ops"])
        shares = {bound: sum(op["us"] for op in roof["ops"] if op["bound"] == bound) / total for bound in ("compute", "memory", "overhead")}
        said.append("By the roofline " + ", ".join(f"{share:.0%} of the time is {name} bound" for name, share in shares.items()) + ".")
    if record["energy"] is not None:
        said.append(energy_sentence(record["energy"]))
    if record["table"] is not None:
        owner = "this machine" if record["device"]["name"] == "host" else record["device"]["name"]
        said.append(f"The latency table of {owner} says {record['table']['latency_ms']:.3f} ms; its quality: {record['table']['verdict']}.")
    return said


def _latency(record: Mapping[str, Any]) -> Html:
    found = record["latency"]
    measured = found is not None and found["runs"] > 0
    words = []
    if measured:
        words.append(
            f"{found['p50']:.3f} ms (95 % interval {found['low']:.3f} to {found['high']:.3f}), "
            f"p10 {found['p10']:.3f}, p90 {found['p90']:.3f}, "
            f"{record['runtime']}, {record['threads']} thread(s), batch {record['batch']}, {found['runs']} runs"
            + (", noisy: the machine was busy." if found["noisy"] else ".")
        )
        told = found.get("conditions") or {}
        state = [f"{told[key]:.0f} {unit}" for key, unit in (("temperature_c", "°C"), ("frequency_mhz", "MHz"), ("power_w", "W"))
                 if told.get(key) is not None]  # fmt: skip
        if state:
            words.append(f"Meanwhile: {', '.join(state)}.")
    return section("latency", "In short", *(tag("p", sentence) for sentence in [*words, *sentences(record)]))


def _pictures(drawn: Sequence[str]) -> Html:
    about = {
        "roofline": "Work per byte against work per second; the area of a mark is its share of the time. Under the roof there is room.",
        "layers": "Time of each layer, as the runtime splits and names them.",
        "memory": "Bytes of live activations while each op runs; the largest decides whether the network fits.",
        "predicted_vs_measured": "What the roofline says of each op against the runtime's own profile.",
    }
    shown = [tag("figure", tag("img", src=f"{name}.png", alt=about[name], class_="still"), tag("figcaption", about[name], class_="note"))
             for name in about if name in drawn]  # fmt: skip
    return section("pictures", "Pictures", *shown) if shown else Html("")


def _ops(record: Mapping[str, Any]) -> Html:
    roof = record["roofline"]
    if roof is None or not roof["ops"]:
        return Html("")
    rows = [
        (op["name"] or op["kind"], op["kind"], f"{op['us']:.2f}", "" if op["measured_us"] is None else f"{op['measured_us']:.2f}",
         op["bound"], f"{op['flops'] / 1e6:,.3f}", f"{op['bytes'] / 1e3:,.1f}")
        for op in roof["ops"][:MOST_OPS]
    ]  # fmt: skip
    headers = ("op", "kind", "modelled µs", "measured µs", "bound by", "MFLOPs", "KB moved")
    caption = f"The ops that {roof['model']['runtime']} runs" + ("" if len(roof["ops"]) <= MOST_OPS else f", the first {MOST_OPS}")
    return section("ops", "Op by op", table(caption, headers, rows, numeric=(2, 3, 5, 6)))


def _memory(record: Mapping[str, Any]) -> Html:
    if record["memory"] is None:
        return Html("")
    largest = sorted(record["memory"]["timeline"], key=lambda moment: -moment["bytes"])[:10]
    rows = [(moment["name"], f"{moment['bytes']:,}") for moment in largest]
    return section("memory", "Memory", table("The ops that need most", ("op", "bytes"), rows, numeric=(1,)))


def _compatibility(record: Mapping[str, Any]) -> Html:
    if not record["compatibility"]:
        return Html("")
    return section("compatibility", "What the device does not like", tag("ul", *(tag("li", text) for text in record["compatibility"])))


def _sweep(record: Mapping[str, Any]) -> Html:
    if not record.get("sweep"):
        return Html("")
    rows = [
        (one["setup"]["threads"], ", ".join(map(str, one["setup"]["cores"])) or "any", f"{one['latency']['p50']:.3f}",
         f"{one['latency']['low']:.3f} to {one['latency']['high']:.3f}", "yes" if one["latency"]["noisy"] else "")
        for one in record["sweep"]
    ]  # fmt: skip
    headers = ("threads", "cores", "ms", "95 % interval", "noisy")
    return section("sweep", "Threads and cores", table("One interleaved run, the fastest first", headers, rows, numeric=(0, 2)))


def _notes(record: Mapping[str, Any]) -> Html:
    notes = join([tag("li", note) for note in record["notes"]])
    return section("notes", "Notes", tag("ul", notes)) if record["notes"] else Html("")
