"""The page as a file: its structure, its data, what it refers to, and that nothing in a result can become markup."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.report.html import page, write_report
from sartor.report.markup import finite, json_block, tag

Result = dict[str, Any]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements, ids, text and scripts of a page; fails on elements closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.elements[-1][1].get("id") or "code"] = data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def ids(self) -> list[str]:
        return [i for _, attributes in self.elements if (i := attributes.get("id"))]

    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())


def poisoned(value: Any) -> Any:
    """`value` with every string, also every key of an architecture, made hostile; the words that select a meaning are kept."""
    if isinstance(value, dict):
        return {
            k: v if k in ("status", "origin", "metric", "statistic", "file") else poisoned(v) for k, v in value.items() if k != "objectives"
        }
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return EVIL + value if isinstance(value, str) else value


def test_the_embedded_data_is_the_result(result: Result, trials: list[dict[str, Any]]) -> None:
    parsed = Page(page(result, trials))
    assert json.loads(parsed.scripts["result"]) == result
    data = json.loads(parsed.scripts["page-data"])
    assert [net["name"] for net in data["nets"]] == [m["name"] for m in result["models"] + result["baselines"]]
    assert data["nets"][2]["values"]["latency_ms_p90"] == result["models"][2]["latency"]["p90"]
    assert data["limits"] == [{"metric": "latency_ms_p90", "bound": 0.31}, {"metric": "peak_bytes", "bound": 16384.0}]
    assert data["trials"]["total"] == len(data["trials"]["number"]) == 234  # 240 less the failed ones
    chosen = next(d for d in data["decisions"] if d["key"] == "balanced")["ranking"][0]["net"]
    assert next(net["name"] for net in data["nets"] if net["id"] == chosen) == "s02"


def test_structure(result: Result, trials: list[dict[str, Any]]) -> None:
    parsed = Page(page(result, trials))
    ids = parsed.ids()
    assert len(ids) == len(set(ids))
    targets = [a["href"] for name, a in parsed.elements if name == "a" and (a["href"] or "").startswith("#")]
    assert len(targets) >= 11
    assert {str(t)[1:] for t in targets} <= set(ids)
    labelled = {a["aria-labelledby"] for _, a in parsed.elements if a.get("aria-labelledby")} | {
        a["for"] for _, a in parsed.elements if a.get("for")
    }
    assert labelled <= set(ids)
    assert all(a.get("aria-label") for name, a in parsed.elements if a.get("role") in ("img", "region"))
    assert {f"filter-{k}" for k in ("accuracy", "latency_ms", "latency_ms_p90", "peak_bytes", "params")} <= set(ids)
    words = parsed.words()
    assert "The search won: its front covers 14.0 % more hypervolume" in words
    assert "int8 agrees with fp32 on 91 % of the images only" in words
    assert "123,456,789,012,345,678,901,234,567,890 architectures" in words
    assert "No measurement was flagged as noisy." in words


def test_nothing_is_fetched(result: Result) -> None:
    text = page(result)
    assert re.findall(r"(?:https?:)?//[a-z0-9]", re.sub(r"// [^\n]*", "", text), flags=re.I) == []
    parsed = Page(text)
    sources = [a[key] for _, a in parsed.elements for key in ("src", "href", "action", "data", "poster") if a.get(key)]
    assert [s for s in sources if not str(s).startswith(("#", "./"))] == ["plotly.min.js"]
    assert "@import" not in text
    assert "url(" not in text


def test_the_policy_admits_this_script_alone(result: Result) -> None:
    parsed = Page(page(result))
    policy = next(a["content"] for name, a in parsed.elements if name == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(parsed.scripts["code"].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert "unsafe-eval" not in str(policy)
    assert "script-src 'unsafe-inline'" not in str(policy)


def test_hostile_names_stay_text(result: Result, trials: list[dict[str, Any]]) -> None:
    plain, hostile = Page(page(result, trials)), Page(page(poisoned(result), trials))
    # As many elements of every kind, and no attribute that was not there: every hostile string became text.
    assert [name for name, _ in hostile.elements if name in ("script", "img")] == [
        name for name, _ in plain.elements if name in ("script", "img")
    ]
    assert not any(key.startswith("on") for _, attributes in hostile.elements for key in attributes)
    assert json.loads(hostile.scripts["result"]) == poisoned(result)
    assert "<script>alert(1)</script>" in hostile.words()


def test_links_only_to_files_inside_the_run_that_exist(result: Result, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "s00"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    (folder / "model.py").write_bytes(b"")
    (tmp_path.parent / "card.md").write_bytes(b"")
    result["models"][1]["file"] = "../model.onnx"
    odd = tmp_path / "javascript:alert(1)"
    odd.mkdir()
    (odd / "model.onnx").write_bytes(b"")
    result["models"][2]["file"] = "javascript:alert(1)/model.onnx"
    nets = json.loads(Page(page(result, None, tmp_path)).scripts["page-data"])["nets"]
    assert [link["href"] for link in nets[0]["links"]] == ["./models/s00/model.onnx", "./models/s00/model.py"]
    assert nets[1]["links"] == []
    assert [link["href"] for link in nets[2]["links"]] == ["./javascript%3Aalert%281%29/model.onnx"]


def test_a_run_cut_short_says_so(result: Result, trials: list[dict[str, Any]]) -> None:
    result.update(status="partial", models=result["models"][:1], baselines=[], comparison={}, phases=[], refused=[])
    for key in ("latency", "test", "predicted", "layers", "training"):
        del result["models"][0][key]
    words = Page(page(result, trials[:5])).words()
    assert "Status: partial. This run stopped before its end." in words
    assert "The comparison with hand-designed networks was not measured." in words
    assert "0 of 1 are known to keep the limits" in words
    assert "Accuracy of the exported file on validation data, not tested yet" in words
    assert "Phases: not measured." in words


@pytest.mark.parametrize("result", [{}, {"status": "infeasible", "models": None, "data": 3, "limits": "x", "device": []}])
def test_almost_nothing_still_makes_a_page(result: Result, tmp_path: Path) -> None:
    path = write_report(tmp_path / "new", result, [])
    assert path == tmp_path / "new" / "report.html"
    assert "not measured" in Page(path.read_text(encoding="utf-8")).words()


def test_noise_is_told(result: Result) -> None:
    result["models"][3]["latency"]["noisy"] = True
    words = Page(page(result)).words()
    assert "the machine was not quiet while s03 was measured" in words
    assert "Mind 1 of 11 latencies were measured on a machine that was not quiet" in words


holes = st.sampled_from([None, math.nan, math.inf, [], {}, "odd", 0, -1, True])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_field_may_be_missing_or_wrong(result: Result, trials: list[dict[str, Any]], data: st.DataObject) -> None:
    broken = copy.deepcopy(result)
    for _ in range(data.draw(st.integers(1, 4))):
        place: Any = broken
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
                break
            place = place[key]
        if isinstance(place, dict) and data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(holes)
        if not broken:
            break
    parsed = Page(page(broken, trials[:9]))
    assert json.loads(parsed.scripts["result"]) == finite(broken)


def test_written_once_and_whole(result: Result, tmp_path: Path) -> None:
    result["models"] = result["models"][:1]  # few pictures to draw
    write_report(tmp_path, result, None)
    library = tmp_path / "plotly.min.js"
    assert library.stat().st_size > 1_000_000
    stamp = library.stat().st_mtime_ns
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(tmp_path, result, None)
    assert library.stat().st_mtime_ns == stamp
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    assert not [p.name for p in tmp_path.rglob(".*")]
    assert (tmp_path / "plots" / "pareto.png").is_file()


def test_bad_input_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as a mapping, got list"):
        write_report(tmp_path, [])  # type: ignore[arg-type]  # the mistake under test
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(blocked / "run", {})


@given(st.text())
def test_markup_escapes_and_json_survives(text: str) -> None:
    if "\0" not in text and "\r" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        parsed = Page(tag("p", text, title=text))
        assert "".join(parsed.text) == text
        assert parsed.elements == [("p", {"title": text})]
    block = json_block("x", [text])
    assert block.count("<") == 2
    assert json.loads(block[block.index(">") + 1 : block.rindex("<")]) == [text]
