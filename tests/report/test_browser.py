"""The page in a real browser, from ``file://``: charts, filter, choices, layers, keyboard, dark mode, hostile names, no request outside."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sartor.report.html import write_report

BROWSER = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or importlib.util.find_spec("playwright") is None,
        reason="no browser installed: the page's script is only tested with the program chromium and the Python package playwright",
    ),
]
Result = dict[str, Any]
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2><b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open a page and, at the end, demand that it made no error and asked for nothing but files beside it."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")

    def opened(path: Path) -> Any:
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else faults.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield opened
    context.close()
    assert faults == []


def shown(page: Any) -> list[str]:
    return list(page.locator("tr[data-net]:visible button.pick").all_inner_texts())


def drawn(page: Any, kind: str) -> list[str]:
    """Names of the networks (of trials: the hover text) of a kind in the chart as plotly holds it."""
    trace = page.evaluate("kind => document.getElementById('front').data.find(t => t.name === kind) || {text: []}", kind)
    return [text.removeprefix("<b>").split("</b>")[0] for text in trace.get("hovertext") or trace["text"]]


def test_choose_filter_and_look_inside(result: Result, trials: list[dict[str, Any]], tmp_path: Path, visit: Any) -> None:
    (tmp_path / "models" / "s05").mkdir(parents=True)
    (tmp_path / "models" / "s05" / "model.onnx").write_bytes(b"")
    page = visit(write_report(tmp_path, result, trials))
    # The knee is chosen at the start, and everything is drawn.
    assert page.locator("#details h3").inner_text() == "s02 (searched)"
    assert drawn(page, "searched") == [f"s0{i}" for i in range(6)]
    assert len(drawn(page, "hand-designed")) == 4
    assert len(drawn(page, "candidates tried (estimates)")) == 234
    stairs = page.evaluate("document.getElementById('front').data.find(t => t.line && t.line.dash === 'solid')")
    assert stairs["line"]["shape"] == "hv"
    assert stairs["x"] == [0.041, 0.048, 0.061, 0.092, 0.15, 0.27]
    bars = page.evaluate("document.getElementById('front').data.find(t => t.name === 'searched').error_x")
    assert bars["array"][0] == pytest.approx(0.041 * 0.02)
    assert bars["arrayminus"][0] == pytest.approx(0.041 * 0.015)
    # A preset chooses and says why.
    page.get_by_role("button", name="Quality").click()
    assert page.locator("#details h3").inner_text() == "s05 (searched)"
    assert "highest accuracy" in page.locator("#why").inner_text()
    assert page.locator("#details a").get_attribute("href") == "./models/s05/model.onnx"
    assert page.locator("#details td:nth-child(12)").all_inner_texts() == ["10.1", "60.8", "91.1", "50.6", "10.1", "20.3"]
    lengths = page.evaluate("document.querySelector('#details .chart').data[0].x")
    assert lengths == [layer["latency_us"] for layer in result["models"][5]["layers"]]
    # The filter hides networks in the chart and the table, and the presets choose among the rest.
    page.locator("#filter > summary").click()
    page.fill("#filter-latency_ms", "0.1")
    assert shown(page) == ["s00", "s01", "ladder-tiny", "s02", "ladder-small", "s03"]
    assert drawn(page, "searched") == ["s00", "s01", "s02", "s03"]
    assert "6 of 11" in page.locator("#filter-count").inner_text()
    assert "The filter hides this network." in page.locator("#details").inner_text()
    page.get_by_role("button", name="Quality").click()
    assert page.locator("#details h3").inner_text() == "s03 (searched)"
    assert "hides the 2 before it" in page.locator("#why").inner_text()
    page.fill("#filter-accuracy", "99.9")
    assert shown(page) == []
    page.get_by_role("button", name="Real-time").click()
    assert "hides every network" in page.locator("#why").inner_text()
    page.get_by_role("button", name="Show all").click()
    assert len(shown(page)) == 11
    page.get_by_role("button", name="Set to the limits of this run").click()
    assert "ladder-large" not in shown(page)
    assert len(shown(page)) == 10


def test_slider_axes_sort_and_click(result: Result, trials: list[dict[str, Any]], tmp_path: Path, visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit(write_report(tmp_path, result, trials))
    page.locator("#filter > summary").click()
    # One step of a slider is one network: a step down from "any" hides the worst.
    page.locator("#slide-latency_ms").press("ArrowLeft")
    assert page.input_value("#filter-latency_ms") == "0.27"
    assert "ladder-large" not in shown(page)
    page.locator("#slide-accuracy").press("ArrowLeft")
    assert page.input_value("#filter-accuracy") == "94.17"
    assert "ladder-tiny" not in shown(page)
    page.get_by_role("button", name="Show all").click()
    # Axes: where more is better across, the front falls to the right of its best.
    page.select_option("#across-axis", "peak_bytes")
    page.select_option("#up-axis", "params")
    stairs = page.evaluate("document.getElementById('front').data.find(t => t.line && t.line.dash === 'solid').x")
    assert stairs == [pytest.approx(9369 / 1024)]  # s00 is best in both
    page.select_option("#across-axis", "accuracy")
    stairs = page.evaluate("document.getElementById('front').data.find(t => t.line && t.line.dash === 'solid').x")
    assert stairs == pytest.approx([98.33, 98.06, 97.78, 97.22, 95.83, 94.17])
    # Sorting, by keyboard.
    page.locator('[data-sort="accuracy"]').focus()
    page.keyboard.press("Enter")
    assert shown(page)[0] == "ladder-tiny"
    assert page.locator('th[aria-sort="ascending"] button').inner_text() == "Accuracy"
    page.keyboard.press("Enter")
    assert shown(page)[0] == "s05"
    # A click on a point of the chart.
    page.select_option("#across-axis", "latency_ms")
    page.select_option("#up-axis", "accuracy")
    page.locator("#front").scroll_into_view_if_needed()
    x, y = page.evaluate(
        "(() => { const g = document.getElementById('front'), b = g.getBoundingClientRect(), l = g._fullLayout;"
        " return [b.left + l.xaxis._offset + l.xaxis.d2p(0.27), b.top + l.yaxis._offset + l.yaxis.d2p(98.33)]; })()"
    )
    page.mouse.move(x, y)
    page.wait_for_selector("#front .hoverlayer .hovertext")
    assert "test sample" in (page.locator("#front .hoverlayer").text_content() or "")
    page.mouse.click(x, y)
    expect(page.locator("#details h3")).to_have_text("s05 (searched)")


def test_dark_and_narrow(result: Result, tmp_path: Path, visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit(write_report(tmp_path, result, None))

    def line() -> str:
        return str(page.evaluate("document.getElementById('front').data.find(t => t.name === 'searched').marker.color"))

    assert line() == "#0072b2"
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#front .scatterlayer .trace").last.locator(".point").first).to_have_css(
        "stroke", "rgb(230, 237, 243)"
    )  # the chosen one
    assert line() == "#56b4e9"
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_alone_the_page_still_tells_everything(result: Result, tmp_path: Path, browser: Any) -> None:
    path = write_report(tmp_path, result, None)
    (tmp_path / "plotly.min.js").unlink()
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert "needs the file plotly.min.js" in page.locator("#front").inner_text()
    page.get_by_role("button", name="Quality").click()
    assert page.locator("#details tbody tr").count() >= 6
    page.close()


def test_hostile_names_do_not_run(result: Result, trials: list[dict[str, Any]], tmp_path: Path, visit: Any) -> None:
    result["data"]["classes"][0] = result["name"] = result["notes"][0] = result["refused"][0]["reason"] = EVIL
    for model in result["models"] + result["baselines"]:
        model["name"] += EVIL
        model["arch"] = {EVIL: EVIL}
        for layer in model["layers"]:
            layer["name"] = layer["kind"] = layer["act"] = EVIL
            layer["in"] = [EVIL]
    page = visit(write_report(tmp_path, result, trials))
    page.get_by_role("button", name="Quality").click()
    page.locator("#details summary").click()
    page.wait_for_selector("#details .chart .bars")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("b").count() == 0
    assert EVIL in page.locator("#details h3").inner_text()


@pytest.mark.parametrize(
    "result", [{}, {"status": "partial", "models": [{"name": "s0", "metrics": {"accuracy": 0.5}, "layers": [{"name": "a"}]}]}]
)
def test_pieces_of_a_run(result: Result, tmp_path: Path, visit: Any) -> None:
    page = visit(write_report(tmp_path, result, [{"number": 0, "metrics": {}, "status": "failed"}]))
    assert "not measured" in page.locator("main").inner_text()
