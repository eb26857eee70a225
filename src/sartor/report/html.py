"""The interactive page of a run: ``report.html`` with ``plotly.min.js`` beside it. Offline, no network, works from ``file://``.

The text and tables are written here and need no JavaScript; ``assets/`` adds the charts, the filter and the choice of a network. The
page carries its data as JSON and a content security policy that allows only its own script and files beside it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.report import sections
from sartor.report.decisions import decisions
from sartor.report.explanation import explanation
from sartor.report.explorer import explorer, page_data
from sartor.report.files import write_atomically
from sartor.report.hardware_section import hardware, write_pictures
from sartor.report.markup import Html, finite, join, json_block, section, tag
from sartor.report.plots import write_plots
from sartor.report.trajectory import learning, write_picture

SCRIPTS = ("charts.js", "explore.js")


def write_report(run_dir: Path | str, result: Mapping[str, Any], trials: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Write ``report.html``, ``plotly.min.js`` and the pictures (:func:`sartor.report.plots.write_plots`) into the run folder.

    Args:
        run_dir: the run folder; created if absent. Only model files that already lie in it are linked, so write them first.
        result: the content of ``result.json`` (docs/architecture.md, "The run folder"); any field may be missing.
        trials: the history as mappings with the fields of :class:`sartor.trial.Trial`, in order; None or empty leaves the search out.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: `result` is not a mapping, or the folder cannot be written.
    """
    if not isinstance(result, Mapping):
        raise UserError(f"the report needs the result of a run as a mapping, got {type(result).__name__}; pass the parsed result.json")
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_plotly(folder)
        write_plots(folder, finite(result), trials)
        write_pictures(folder, finite(result))
        write_picture(folder)
        target = folder / "report.html"
        write_atomically(target, page(result, trials, folder).encode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error.strerror or error}; check that the folder is writable") from error
    return target


def page(result: Mapping[str, Any], trials: Sequence[Mapping[str, Any]] | None = None, run_dir: Path | str = ".") -> str:
    """The whole page as text; `run_dir` is only looked into for the files to link."""
    clean: dict[str, Any] = finite(result)
    choices = decisions(clean)
    parts = [
        sections.summary(clean, choices),
        explorer(clean, choices, Path(run_dir)),
        sections.against_ladder(clean),
        sections.predicted(clean),
        sections.trade_offs(clean),
        _search(trials),
        learning(Path(run_dir)),
        explanation(clean),
        sections.refused(clean),
        hardware(clean, Path(run_dir)),
        sections.how_measured(clean),
        sections.phases(clean),
        sections.notes(clean),
    ]
    name = str(clean.get("name") or "run")
    header = tag(
        "header",
        tag("h1", f"{name}: networks made to measure"),
        tag("p", _when(clean), class_="note"),
        sections.banner(clean),
        tag("nav", _contents(clean), aria_label="Contents"),
    )
    data = join([json_block("result", clean), json_block("page-data", page_data(clean, trials, choices, Path(run_dir)))])
    script = "\n".join(_asset(file) for file in SCRIPTS)
    body = tag("body", header, tag("main", *parts), data, Html('<script src="plotly.min.js"></script>'), Html(f"<script>{script}</script>"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} – sartor report"),
        Html(f"<style>{_asset('style.css')}</style>"),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def _write_plotly(folder: Path) -> None:
    """What plotly calls ``include_plotlyjs="directory"``: one copy of the library beside the page."""
    from plotly.offline import get_plotlyjs

    content = get_plotlyjs().encode("utf-8")
    target = folder / "plotly.min.js"
    # Skipped when it is there already: the page is rewritten often, these 4.8 MB never change.
    if not target.is_file() or target.stat().st_size != len(content):
        write_atomically(target, content)


def _asset(name: str) -> str:
    return resources.files("sartor.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Only this script (by its hash) and files beside the page may run; nothing may be fetched."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'self' file: 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src 'self' file: data: blob:; base-uri 'none'; form-action 'none'"
    )


def _contents(result: Mapping[str, Any]) -> Html:
    places = {
        "summary": "In short",
        "choose": "Choose",
        "network": "One network",
        "comparison": "Hand-designed",
        "predictions": "Predictions",
        "trade-offs": "Trade-offs",
        "search": "Search",
        **({"mattered": "What mattered"} if result.get("explanation") else {}),
        "refused": "Refused",
        "how": "How measured",
        "time": "Time",
        "notes": "Notes",
    }
    return tag("ul", *(tag("li", tag("a", words, href=f"#{key}")) for key, words in places.items()))


def _when(result: Mapping[str, Any]) -> str:
    device = result.get("device")
    where = f" on {device['name']}" if isinstance(device, Mapping) and device.get("name") else ""
    created = f"Run of {result['created']}" if result.get("created") else "Run of unknown date"
    return f"{created}{where}. Made by sartor; works offline."


def _search(trials: Sequence[Mapping[str, Any]] | None) -> Html:
    if not trials:
        return section("search", "How the search went", tag("p", "The history of the search was not given to this report."))
    failed = sum(t.get("status") == "failed" for t in trials)
    words = (
        f"{len(trials):,} candidates tried, {failed:,} of them failed. "
        "The curve is the hypervolume of the front so far, as a share of its last value."
    )
    note = (
        "Estimates made during the search, limits applied; the reference is the worst value seen. "
        "It says when the search stopped gaining, not how good it is."
    )
    chart = tag("div", class_="chart small", data_chart="search", role="img", aria_label="Hypervolume of the front over trials")
    return section("search", "How the search went", tag("p", words), chart, tag("p", note, class_="note"))
