"""Axes hold what they show, curves stand where their values are, and long curves are thinned, not cut."""

import dataclasses
import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import evaluation, step

from longspan.report.charts import MOST_POINTS, Axis, Curve, fitted, line_chart, thinned
from longspan.report.curves import loss_by_position, training_charts
from longspan.report.lengths import length_chart

NUMBERS = st.floats(min_value=-1e9, max_value=1e9).map(lambda value: round(value, 6))


@given(st.lists(NUMBERS, min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_fitted_axis_holds_every_value_and_its_ticks(values: list[float]) -> None:
    axis = fitted("y", [*values, math.nan, math.inf])
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(values) <= max(values) <= axis.high + slack
    ticks = axis.ticks(6)
    assert 2 <= len(ticks) <= 12
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


def test_ticks_of_a_logarithmic_axis_are_powers_of_two() -> None:
    axis = Axis(label="", low=100, high=1_048_576, scale="log", unit="length")
    ticks = axis.ticks(8)
    assert ticks == [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0]
    assert [axis.words(tick) for tick in ticks] == ["256", "1K", "4K", "16K", "64K", "256K", "1M"]


def test_thinned_curve_keeps_its_mean_and_drops_only_what_is_not_finite() -> None:
    points = [(float(i), math.sin(i)) for i in range(6000)]
    few = thinned([*points, (1.0, math.nan)])
    assert len(few) == MOST_POINTS
    assert sum(y for _, y in few) / len(few) == pytest.approx(sum(y for _, y in points) / len(points))
    assert thinned(points[:5]) == tuple(points[:5])


def spots(chart: str) -> list[tuple[float, float]]:
    return [(float(c.get("cx")), float(c.get("cy"))) for c in ET.fromstring(chart).iter("circle")]


def test_points_stand_where_their_values_are() -> None:
    x, y = Axis(label="x", low=0, high=10), Axis(label="y", low=0, high=2)
    (x0, y0), (x1, y1), (x2, y2) = spots(
        line_chart("c", [Curve(style="a", points=((0, 0), (5, 1), (10, 2)))], x=x, y=y)
    )
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.01)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.01)
    assert x0 < x2
    assert y0 > y2  # larger values are higher on the page


def test_labels_of_curves_that_end_together_do_not_touch() -> None:
    x, y = Axis(label="x", low=0, high=1), Axis(label="y", low=0, high=1)
    curves = [Curve(style="a", label=name, points=((0, 0.5), (1, 0.5))) for name in ("one", "two", "three")]
    labels = [t for t in ET.fromstring(line_chart("c", curves, x=x, y=y)).iter("text") if "label" in t.get("class")]
    heights = sorted(float(t.get("y")) for t in labels)
    assert len(heights) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 14


def test_position_axis_is_logarithmic_and_marks_the_trained_length() -> None:
    chart = loss_by_position(
        (evaluation("before", hits=0, nll=7.0), evaluation("after", hits=9, nll=3.0)), trained_length=512
    )
    root = ET.fromstring(chart)
    ticks = {t.text: float(t.get("x")) for t in root.iter("text") if t.get("class") == "tick"}
    assert ticks["1K"] - ticks["512"] == pytest.approx(ticks["8K"] - ticks["4K"], abs=0.05)
    mark = next(line for line in root.iter("line") if line.get("class") == "mark")
    assert float(mark.get("x1")) == pytest.approx(ticks["512"], abs=0.05)
    assert "trained length, 512" in ticks


def test_nothing_measured_gives_no_chart() -> None:
    assert loss_by_position((), trained_length=512) is None
    assert training_charts(()) == []


def test_stages_are_bands_that_meet_at_their_borders() -> None:
    loss, norm, rate = (ET.fromstring(chart) for chart in training_charts([step(i) for i in range(1, 11)]))
    captions = [t.text for t in loss.iter("text") if (t.text or "").startswith("stage")]
    assert captions == ["stage 1 · 2K", "stage 2 · 8K"]
    band = next(r for r in loss.iter("rect") if r.get("class") == "band")
    ticks = {
        t.text: float(t.get("x"))
        for t in rate.iter("text")
        if t.get("class") == "tick" and t.get("text-anchor") == "middle"
    }
    per_token = (ticks["40k"] - ticks["0"]) / 40_000
    assert float(band.get("x")) == pytest.approx(ticks["0"] + 6 * 4096 * per_token, abs=0.1)
    assert float(band.get("width")) == pytest.approx(4 * 4096 * per_token, abs=0.1)
    assert len([p for p in norm.iter("path") if "curve" in p.get("class")]) == 2


def test_skipped_steps_are_marked_and_not_drawn() -> None:
    loss, *_ = training_charts([step(1), step(2), step(3, event="skipped", loss=math.nan), step(4)])
    assert len(spots(loss)) == 3
    assert sum(line.get("class") == "skip" for line in ET.fromstring(loss).iter("line")) == 1
    assert not re.search(r"\bnan\b|\binf\b", loss)


def test_words_asked_for_and_written_on_one_scale() -> None:
    first = dataclasses.replace(
        evaluation("before", hits=0, nll=1.0), facts={"writing_50_words_p50": 100.0, "writing_800_words_p50": 0.0}
    )
    second = dataclasses.replace(evaluation("after", hits=0, nll=1.0), facts={"writing_50_words_p50": 50.0, "other": 1})
    chart = str(length_chart([first, second]))
    assert "before, 50 words asked for: 100 written" in chart
    assert "before, 800 words asked for: 0 written" in chart
    assert "after, 50 words asked for: 50 written" in chart
    assert "as asked" in chart
    assert length_chart([second]) is None  # one length is no curve
    assert length_chart([]) is None
