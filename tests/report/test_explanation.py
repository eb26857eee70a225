"""What the report says about the choices is what the analysis found, and the analysis finds what made the difference."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Space
from sartor.explain import to_json
from sartor.report.explanation import TRUSTED, effects, explanation, leading, pairs, quality_words, range_words, share
from sartor.report.html import page
from sartor.report.terminal import console, print_result
from sartor.trial import Trial

SPACE = Space({"stage.width": [16, 24, 32], "stage.kernel": [3, 5], "<idle>": ["a", "b"]})


KEYS = ["importance", "pairs", "effects", "r2", "metric", "x"]


def found() -> list[dict[str, Any]]:
    """Accuracy grows by 2 points a width and 1 a kernel; latency doubles with the kernel."""
    trials = []
    for number, arch in enumerate(SPACE):
        metrics = {"accuracy": 0.9 + 0.02 * arch["stage.width"] + 0.01 * arch["stage.kernel"], "latency_ms": 1.0 + arch["stage.kernel"]}
        trials.append(Trial(number, arch, metrics))
    return to_json(SPACE, trials, ["accuracy", "latency_ms", "peak_bytes"])


FOUND = found()
RESULT: dict[str, Any] = {"schema": 1, "status": "complete", "name": "run", "objectives": ["accuracy", "latency_ms"], "explanation": FOUND}


def test_the_choices_that_made_the_difference_lead() -> None:
    accuracy, latency = FOUND
    assert [entry["metric"] for entry in FOUND] == ["accuracy", "latency_ms"]  # nothing is known of peak_bytes
    assert [name for name, _ in leading(accuracy)][:2] == ["stage.width", "stage.kernel"]
    assert leading(latency)[0][0] == "stage.kernel" and leading(latency)[0][1] > 0.95
    assert [option for option, _ in effects(accuracy, "stage.width")] == ["16", "24", "32"]
    assert np.allclose([mean for _, mean in effects(accuracy, "stage.width")], [0.905, 0.925, 0.945], atol=2e-3)
    assert range_words(latency, "stage.kernel").startswith("3: 1.0") and "to 5: 2.0" in range_words(latency, "stage.kernel")


def test_the_page_shows_it_escaped_and_only_where_there_is_any() -> None:
    text = page(RESULT)
    assert 'id="mattered"' in text and 'href="#mattered"' in text
    assert text.index("stage.width") < text.index("stage.kernel", text.index("For accuracy"))
    assert "&lt;idle&gt;" in text and "<idle>" not in text
    without = page({**RESULT, "explanation": []})
    assert 'id="mattered"' not in without and 'href="#mattered"' not in without


def test_the_terminal_shows_it() -> None:
    stream = io.StringIO()
    print_result(RESULT, "run", console(stream))
    said = stream.getvalue()
    assert "Which choices mattered for accuracy" in said and "Which choices mattered for latency_ms" in said
    assert said.index("stage.width") < said.index("stage.kernel")


def test_a_bad_model_is_called_bad() -> None:
    entry = {**FOUND[0], "r2": TRUSTED - 0.1}
    assert "badly" in quality_words(entry) and "badly" not in quality_words(FOUND[0])
    assert "unknown" not in share(0.3) and share(0.001) == "< 1 %" and share(0.3) == "30 %"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["importance", "pairs", "effects", "r2", "metric", "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_nothing_in_a_damaged_result_breaks_the_page(value: Any) -> None:
    result = json.loads(json.dumps({"explanation": [value, {"metric": "accuracy", "importance": value, "effects": value}]}))
    assert isinstance(explanation(result), str)
    for entry in result["explanation"]:
        if isinstance(entry, dict):
            leading(entry)
            pairs(entry)
