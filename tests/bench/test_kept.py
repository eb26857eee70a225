"""Rows that are kept beside the sources, and the digest of the code that made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sartor.bench import code as digests
from sartor.bench import kept
from sartor.bench.cases import Case, Group
from sartor.bench.code import code_of
from sartor.bench.results import Results, Row
from sartor.errors import UserError

CASE = Case("nsga2:population=5", Group("nb201-cifar10", "raspi4", "oracle", ("params<=1000000",)), 3, 5)
ROW = Row(CASE, (5, 1, 9, 7, 2), (None, 0.5, None, 1.0, None), 2.0)
OTHER = Row(replace(CASE, seed=4), (1, 2, 3, 4, 5), (None,) * 5, 1.5)


def store(folder: Path, rows: list[Row], name: str = "results.sqlite") -> Results:
    results = Results(folder / name)
    for row in rows:
        results.add(row)
    return results


def test_a_later_comparison_goes_on_from_kept_rows(tmp_path: Path) -> None:
    cases = [CASE, OTHER.case, replace(CASE, seed=5)]
    with store(tmp_path, [ROW, OTHER]) as results:
        kept.save(results, tmp_path / "kept", cases)
    with Results(tmp_path / "another.sqlite") as results:
        assert kept.load(results, tmp_path / "kept", {CASE.strategy, "random"}) == 2
        assert results.select(cases) == [ROW, OTHER]
        assert kept.load(results, tmp_path / "kept", {CASE.strategy}) == 0


def test_saving_adds_to_what_is_kept_and_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    path = kept.path_of(tmp_path / "kept", CASE.strategy)
    with (
        store(tmp_path, [ROW]) as results,
        store(tmp_path, [OTHER], "b.sqlite") as second,
        store(tmp_path, [OTHER, ROW], "c.sqlite") as both,
    ):
        kept.save(results, path.parent, [CASE])
        kept.save(second, path.parent, [OTHER.case])
        one_by_one = path.read_bytes()
        path.unlink()
        kept.save(both, path.parent, [OTHER.case, CASE])
        assert path.read_bytes() == one_by_one


def test_the_longest_run_is_kept_whole(tmp_path: Path) -> None:
    """A comparison over fewer evaluations neither cuts it nor puts a shorter run in its place."""
    short = replace(ROW, case=replace(CASE, budget=2), rows=(5, 1), fidelities=(None, None))
    with store(tmp_path, [ROW]) as results:
        kept.save(results, tmp_path, [short.case])
    with store(tmp_path, [short], "short.sqlite") as results:
        kept.save(results, tmp_path, [short.case])
    assert kept.read(tmp_path, CASE.strategy, None) == [ROW]


def test_rows_of_other_code_are_run_anew(tmp_path: Path) -> None:
    with store(tmp_path, [ROW]) as results:
        kept.save(results, tmp_path, [CASE])
    assert kept.read(tmp_path, CASE.strategy, code_of(CASE.strategy)) == kept.read(tmp_path, CASE.strategy, None) == [ROW]
    with Results(tmp_path / "new.sqlite", lambda strategy: "changed") as results:
        assert kept.load(results, tmp_path, {CASE.strategy}, lambda strategy: "changed") == 0
        results.add(OTHER)
        kept.save(results, tmp_path, [CASE, OTHER.case], lambda strategy: "changed")
    assert kept.read(tmp_path, CASE.strategy, "changed") == [OTHER]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bnot gzip", b"rows\n"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    kept.path_of(tmp_path, "random").write_bytes(content)
    with pytest.raises(UserError, match=r"random\.jsonl\.gz' does not hold the benchmark rows of 'random'"):
        kept.read(tmp_path, "random", None)


def test_the_digest_is_of_what_a_strategy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: code_of(name) for name in ("bayes", "random", "nsga2")}
    assert len(set(before.values())) == 3 and all(len(found) == 12 for found in before.values())
    assert code_of("bayes:scale=log") == before["bayes"] and code_of("optuna-tpe") == ""
    meaning = digests._meaning
    monkeypatch.setattr(digests, "_meaning", lambda module: "changed" if module == "sartor.searchers.gp" else meaning(module))
    digests._digest.cache_clear()
    try:
        after = {name: code_of(name) for name in before}
    finally:
        digests._digest.cache_clear()
    assert {name for name in before if before[name] != after[name]} == {"bayes"}


def test_words_do_not_change_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "plain": "def f(x):\n    return x + 1\n",
        "told": '"""About it."""\n\n\ndef f(x):  # why\n    """What."""\n    return (x\n        + 1)\n',
        "other": "def f(x):\n    return x + 2\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(digests, "_ROOT", tmp_path)
    plain, told, other = (digests._meaning(f"sartor.{name}") for name in texts)
    assert plain == told != other
