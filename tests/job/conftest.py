"""A request on the embedded digits, and a latency table of its own, so that tests never touch the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sartor.request import SearchRequest


@pytest.fixture(scope="session")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def request_for(tmp_path: Path, table_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SearchRequest]:
    monkeypatch.setenv("SARTOR_CACHE", str(table_folder))

    def make(**fields: Any) -> SearchRequest:
        return SearchRequest(**{"data": "digits", "minutes": 0.3, "models": 2, "out": str(tmp_path / "run"), "limit_train": 400, **fields})

    return make
