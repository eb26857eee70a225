from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.goals import METRICS, STATISTICS, Goals, Limit, hinge, mnasnet_reward, parse_limit, penalty, soft_objectives, tightened
from sartor.trial import Trial


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency_ms<=2", Limit("latency_ms", 2.0)),
        ("latency=2ms", Limit("latency_ms", 2.0)),
        (" Latency <= 2 ms ", Limit("latency_ms", 2.0)),
        ("latency=0.002s", Limit("latency_ms", 2.0)),
        ("latency≤250µs", Limit("latency_ms", 0.25)),
        ("latency_p90=500us", Limit("latency_ms", 0.5, "p90")),
        ("latency_ms_p10<=1e-1", Limit("latency_ms", 0.1, "p10")),
        ("latency_p90_ms<=3", Limit("latency_ms", 3.0, "p90")),
        ("latency_p50=3", Limit("latency_ms", 3.0, "p50")),
        ("peak_bytes=256KB", Limit("peak_bytes", 256 * 1024)),
        ("peak=256KiB", Limit("peak_bytes", 256 * 1024)),
        ("ram<=1MB", Limit("peak_bytes", 1024**2)),
        ("file=300kb", Limit("file_bytes", 300 * 1024)),
        ("file_bytes<=300", Limit("file_bytes", 300)),
        ("accuracy>=0.9", Limit("accuracy", 0.9)),
        ("accuracy=90%", Limit("accuracy", 0.9)),
        ("top5>=100%", Limit("top5", 1.0)),
        ("throughput>=1000", Limit("throughput", 1000)),
        ("fps≥30fps", Limit("throughput", 30)),
        ("params<=1M", Limit("params", 1e6)),
        ("macs<=10m", Limit("macs", 1e7)),
        ("params=1.5k", Limit("params", 1500)),
        ("flash=1MB", Limit("flash_bytes", 1024**2)),
        ("flash_bytes<=640KB", Limit("flash_bytes", 640 * 1024)),
        ("quantisation_error<=1%", Limit("quantisation_error", 0.01)),
        ("energy=500uJ", Limit("energy_mj", 0.5)),
        ("energy_mj<=2J", Limit("energy_mj", 2000.0)),
        ("edp<=3mJ*ms", Limit("edp", 3.0)),
    ],
)
def test_friendly_forms(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("latncy=2", "did you mean 'latency_ms'?"),
        ("wattage=2", "known metrics: accuracy, top5, latency_ms"),
        ("latency", "METRIC<=NUMBER"),
        ("", "METRIC<=NUMBER"),
        ("2ms", "METRIC<=NUMBER"),
        ("latency=", "got nothing"),
        ("latency=fast", "got 'fast'"),
        ("latency=nan", "got 'nan'"),
        ("latency=inf", "got 'inf'"),
        ("latency=1,5", "got '1,5'"),
        ("latency=1 2", "got '1 2'"),
        ("latency=-1", "above zero, got -1"),
        ("latency=0", "above zero, got 0"),
        ("latency=1e999", "above zero, got inf"),
        ("latency=2kb", "no unit 'kb'; units: s, ms"),
        ("params=2ms", "no unit 'ms'; units: K, M"),
        ("peak=2m/s", "no unit 'm/s'"),
        ("accuracy<=0.9", "write accuracy>=NUMBER"),
        ("latency>=2", "write latency_ms<=NUMBER"),
        ("latency<2", "write latency_ms<=NUMBER"),
        ("latency==2", "write latency_ms<=NUMBER"),
        ("accuracy>=90", "write 0.9 or 90%"),
        ("accuracy>=101%", "fraction 0..1"),
        ("latency_p95=2", "unknown statistic 'p95'"),
        ("params_p90<=3", "latencies only"),
        ("energy=3W", "no unit 'W'; units: J, mJ, uJ"),
        ("quantisation_error<=2", "fraction 0..1"),
    ],
)
def test_bad_forms_say_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        parse_limit(text)
    assert says in str(error.value)


_PIECES = [
    "latency",
    "_ms",
    "_p90",
    "_p0",
    "params",
    "accuracy",
    "<=",
    ">=",
    "=",
    "≤",
    "2",
    ".5",
    "e",
    "-",
    "ms",
    "K",
    "%",
    " ",
    "nan",
    "ß",
    "µs",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=6).map("".join))
def test_any_text_is_a_limit_or_a_user_error(text: str) -> None:
    try:
        assert isinstance(parse_limit(text), Limit)
    except UserError as error:
        assert str(error)


@given(st.sampled_from(sorted(METRICS)), st.floats(1e-9, 1e15), st.sampled_from(STATISTICS))
def test_a_limit_reads_back_from_its_text(metric: str, bound: float, statistic: str) -> None:
    if METRICS[metric].unit == "fraction":
        bound = min(bound, 1.0)
    limit = Limit(metric, bound, statistic if metric == "latency_ms" else "p50")
    assert parse_limit(str(limit)) == limit


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limit("latency", 1.0),
        lambda: Limit("latency_ms", math.nan),
        lambda: Limit("latency_ms", 1.0, "mean"),
        lambda: Goals(()),
        lambda: Goals(("accuracy", "accuracy")),
        lambda: Goals(("latency",)),
        lambda: Goals.parse(["speed"]),
        lambda: Goals.parse(["accuracy"], ["latency=1", "latency_ms<=2"]),
    ],
)
def test_bad_goals_are_refused(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]


GOALS = Goals.parse(["accuracy", "latency"], ["latency=2ms", "latency_p90=4ms", "peak=1KB", "accuracy>=80%"])
KEPT = {"accuracy": 0.8, "latency_ms": 2.0, "latency_ms_p90": 4.0, "peak_bytes": 1024.0}


def test_values_are_minimised_and_violations_relative() -> None:
    assert GOALS.values(KEPT).tolist() == [-0.8, 2.0]
    assert GOALS.violation(KEPT) == 0.0 and GOALS.feasible(KEPT)
    broken = {**KEPT, "latency_ms": 3.0, "accuracy": 0.6, "peak_bytes": 100.0}
    assert GOALS.violation(broken) == pytest.approx(0.5 + 0.25)
    assert not GOALS.feasible(broken)


def test_each_limit_reads_its_own_statistic() -> None:
    assert GOALS.violation({**KEPT, "latency_ms_p90": 8.0}) == 1.0
    assert GOALS.violation({**KEPT, "latency_ms_p10": 8.0}) == 0.0


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["accuracy", "latency_ms", "latency_ms_p90"])
def test_a_metric_that_is_not_there_is_the_worst(name: str, value: float | None) -> None:
    metrics = {k: v for k, v in KEPT.items() if k != name} | ({} if value is None else {name: value})
    assert GOALS.missing(metrics) == (name,)
    assert GOALS.violation(metrics) == math.inf and not GOALS.feasible(metrics)
    if name in GOALS.objectives:
        assert GOALS.values(metrics)[GOALS.objectives.index(name)] == math.inf


def test_a_missing_objective_is_infeasible_without_any_limit() -> None:
    goals = Goals(("accuracy", "latency_ms"))
    assert goals.violation({"accuracy": 0.5}) == math.inf and goals.violation({"accuracy": 0.5, "latency_ms": 1.0}) == 0.0


def test_table_of_trials() -> None:
    trials = [Trial(0, Arch({}), KEPT), Trial(1, Arch({}), {}, status="failed", error="x")]
    values, violations = GOALS.table(trials)
    assert values.tolist() == [[-0.8, 2.0], [math.inf, math.inf]]
    assert violations.tolist() == [0.0, math.inf]
    assert GOALS.table([])[0].shape == (0, 2)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_violation_is_zero_exactly_where_the_bound_holds(value: float, bound: float) -> None:
    assert Goals(("macs",), (Limit("macs", bound),)).feasible({"macs": value}) == (value <= bound)
    assert Goals(("throughput",), (Limit("throughput", bound),)).feasible({"throughput": value}) == (value >= bound)


def test_soft_forms() -> None:
    assert penalty(1.0, [0.5, -3.0, 2.0], weight=10.0) == pytest.approx(1.0 + 10 * (0.25 + 4.0))
    assert hinge(1.0, [0.5, -3.0, 2.0], weight=10.0) == pytest.approx(1.0 + 10 * 2.5)
    assert soft_objectives(np.array([[1.0]]), np.array([[-2.0, 3.0]])).tolist() == [[1.0, 0.0, 3.0]]


def test_progressive_tightening() -> None:
    assert tightened(10.0, 2.0, 0, tau=5) == 10.0
    assert tightened(10.0, 2.0, 5, tau=5) == pytest.approx(2 + 8 / math.e)
    assert tightened(10.0, 2.0, 1e6, tau=5) == 2.0
    with pytest.raises(UserError):
        tightened(10.0, 2.0, 1, tau=0)


def test_mnasnet_reward_of_the_paper() -> None:
    # Section 3.1: doubling latency is to weigh as much as 5 % relative accuracy, which is where 0.07 comes from.
    assert mnasnet_reward(0.5, 100.0, 50.0) / mnasnet_reward(0.5 * 1.05, 200.0, 50.0) == pytest.approx(1.0, abs=2e-3)
    assert mnasnet_reward(0.7, 40.0, 80.0, hard=True) == 0.7
    assert mnasnet_reward(0.7, 160.0, 80.0, hard=True) == pytest.approx(0.35)
    with pytest.raises(UserError):
        mnasnet_reward(0.7, 0.0, 80.0)


@given(st.floats(0.01, 1), st.floats(0.1, 100), st.floats(1.01, 10), st.booleans())
def test_mnasnet_reward_makes_slow_nets_worse(accuracy: float, latency: float, factor: float, hard: bool) -> None:
    fast, slow = (mnasnet_reward(accuracy, x, 10.0, hard=hard) for x in (latency, latency * factor))
    assert slow <= fast
    if latency * factor > 10.0:
        assert slow < fast


@given(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True), st.sampled_from(STATISTICS), st.floats(1e-9, 1e9))
def test_a_latency_on_a_further_device_is_a_metric_of_its_own(device: str, statistic: str, bound: float) -> None:
    limit = Limit(f"latency_ms@{device}", bound, statistic)
    assert parse_limit(str(limit)) == limit and limit.upper
    metrics = {"latency_ms": 0.0, "latency_ms_p10": 0.0, "latency_ms_p90": 0.0, limit.key: 2 * bound}
    assert limit.excess(metrics) == pytest.approx(1.0) and limit.excess({"latency_ms": 0.0}) == math.inf
    goals = Goals.parse(["accuracy", f"latency@{device}"])
    found = {"accuracy": 0.5, f"latency_ms@{device}": 3.0, f"latency_ms_quiet@{device}": 2.0}
    assert goals.values(found).tolist() == [-0.5, 2.0]


def test_of_a_further_device_there_is_only_a_latency() -> None:
    assert parse_limit("latency_p90@pi=500us") == Limit("latency_ms@pi", 0.5, "p90")
    for text in ("peak@pi=1KB", "latency@=1", "accuracy@pi>=0.5", "weighted_latency_ms_p90=2"):
        with pytest.raises(UserError):
            parse_limit(text)
