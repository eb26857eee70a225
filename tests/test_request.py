"""A request is read strictly and survives the way through its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.goals import Limit
from sartor.request import SearchRequest, check_data, unknown

FIELDS = st.fixed_dictionaries(
    {"data": st.just("digits"), "out": st.just("x")},
    optional={
        "precision": st.sampled_from(["int8", "fp32"]),
        "limits": st.lists(st.sampled_from(["latency=2ms", "latency_p90<=3", "peak=256KB", "accuracy>=90%"]), unique=True),
        "objectives": st.lists(st.sampled_from(["accuracy", "latency_ms", "params", "macs"]), min_size=1, unique=True),
        "strategy": st.sampled_from(["nsga2", "random"]),
        "minutes": st.floats(1e-3, 1e4),
        "seed": st.integers(0, 2**32 - 1),
        "models": st.integers(1, 100),
        "baselines": st.booleans(),
        "from_scratch": st.booleans(),
        "validation": st.floats(1e-6, 0.5),
        "limit_train": st.none() | st.integers(1, 10**9),
        "input_size": st.none() | st.integers(4, 4096),
    },
)


@given(fields=FIELDS)
def test_a_request_comes_back_from_its_file_unchanged(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    request = SearchRequest(**fields)
    for name, value in fields.items():
        assert getattr(request, name) == value
    folder = tmp_path_factory.mktemp("run")
    request.save(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"], "no temporary file is left"
    assert SearchRequest.load(folder) == request.model_copy(update={"out": str(folder)})


@given(
    name=st.sampled_from(["threads", "models", "seed", "limit_train", "input_size"]), value=st.sampled_from(["1", 1.5, True, [1], {}, "x"])
)
def test_whole_numbers_are_not_guessed_from_other_types(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}: expected .*, but got ") as raised:
        SearchRequest(data="digits", **{name: value})
    assert str(raised.value).count("\n") == 0


def test_goals_are_the_parsed_sentences() -> None:
    goals = SearchRequest(data="digits", objectives=["acc", "latency"], limits=["latency_p90=500us", "sram=256KB"]).goals()
    assert goals.objectives == ("accuracy", "latency_ms")
    assert goals.limits == (Limit("latency_ms", 0.5, "p90"), Limit("peak_bytes", 262144.0))


@pytest.mark.parametrize(
    ("data", "folder"), [("digits", "digits"), ("data/My Birds/", "my-birds"), ("a/x.npz", "x"), ("pkg.mod:make", "pkg-mod-make")]
)
def test_the_default_folder_is_named_after_the_data(data: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "My Birds").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "x.npz", images=np.zeros(1))
    out = SearchRequest(data=data).out
    assert out.startswith(f"runs/{folder}-20"), out
    assert not (tmp_path / "runs").exists()


def test_a_moved_run_resumes_where_it_lies(tmp_path: Path) -> None:
    SearchRequest(data="digits", out=str(tmp_path / "before"), seed=3).save()
    (tmp_path / "before").rename(tmp_path / "after")
    request = SearchRequest.load(tmp_path / "after")
    assert (request.seed, request.out) == (3, str(tmp_path / "after"))


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    request = SearchRequest(data="digits", out=str(tmp_path / "run"))
    before = json.loads(request.save().read_text())
    with pytest.raises(UserError, match="already holds a run"):
        SearchRequest(data="digits", out=str(tmp_path / "run"), seed=1).save()
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == before


def test_data_that_is_known_but_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SARTOR_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"cifar10 is not on this machine: .*\.cache/sartor/data/cifar10"):
        check_data("cifar10")


@given(st.lists(st.text("abcde", min_size=3, max_size=6), min_size=1, max_size=5, unique=True), st.data())
def test_the_suggestion_is_always_a_known_name(known: list[str], data: st.DataObject) -> None:
    name = data.draw(st.text("abcdefg", min_size=1, max_size=6).filter(lambda text: text not in known))
    sentence = unknown("field", name, known)
    assert sentence.startswith(f"field: expected one of {', '.join(known)}, but got {name!r}")
    if "did you mean" in sentence:
        assert any(sentence.endswith(f"did you mean {candidate!r}?") for candidate in known)
