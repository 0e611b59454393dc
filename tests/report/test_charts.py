"""Charts as SVG: axes, places, and the lines of a training."""

from __future__ import annotations

import re

import numpy as np
import pytest

from afinar.evaluation.intervals import ConfidenceBin
from afinar.report.charts import (
    Chart,
    axis,
    curves,
    exact_axis,
    histogram,
    rate_chart,
    reliability_charts,
    share_axis,
)
from tests.report.conftest import Compared


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (0, 0.83, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 7, [0, 2, 4, 6, 8]),
        (0, 0.0007, [0, 0.0002, 0.0004, 0.0006, 0.0008]),
        (0, 0, [0, 1e-12]),
    ],
)
def test_axis_has_round_ticks(low: float, high: float, numbers: list[float]) -> None:
    ticks = [number for number, _ in axis("", low, high).ticks]
    assert ticks[: len(numbers)] == pytest.approx(numbers)
    assert ticks[-1] >= high


def test_axis_of_integers_has_no_fractions() -> None:
    assert [text for _, text in axis("", 0, 2, integer=True).ticks] == ["0", "1", "2"]
    exact = exact_axis("", 1, 12, integer=True)
    assert (exact.low, exact.high) == (1, 12)
    assert [text for _, text in exact.ticks] == ["5", "10"]


def test_points_lie_within_the_chart() -> None:
    chart = Chart(title="t", x=share_axis("x"), y=share_axis("y"))
    chart.line([(0, 0), (1, 1), (2, -3)], 1, name="line")
    (curve,) = chart.curves
    numbers = [float(number) for number in re.findall(r"[\d.]+", curve.path)]
    assert numbers[:4] == [chart.left, chart.bottom, chart.right, chart.top]
    assert numbers[4:] == [chart.right, chart.bottom], "what is out of range is at its edge"
    assert chart.keys[0].name == "line"


def test_bars_are_as_high_as_their_counts() -> None:
    chart = histogram("t", "x", np.array([0.0, 1.0, 2.0]), np.array([10, 5]))
    first, second = chart.bars
    assert second.height == pytest.approx(first.height / 2)
    assert second.tip == "1 to 2: 5 pictures, 33.3%"


def test_curves_have_a_line_for_each_run_and_split(compared: Compared) -> None:
    loss, accuracy = curves(compared.runs)
    assert len(loss.curves) == len(accuracy.curves) == 4
    assert [key.name for key in loss.keys] == [
        "scratch, training",
        "scratch, validation",
        "full, training",
        "full, validation",
    ]
    assert [curve.is_dashed for curve in loss.curves] == [True, False] * 2
    of_one = curves(compared.runs[:1])[0]
    assert [key.name for key in of_one.keys] == ["training", "validation"]
    assert {curve.colour for curve in of_one.curves} == {1, 2}
    assert curves([]) == []


def test_reliability_diagram_has_an_interval_for_each_bin() -> None:
    bins = [
        ConfidenceBin(samples=4, confidence=0.6, hits=2),
        ConfidenceBin(samples=9, confidence=0.9, hits=9),
    ]
    diagram, counts = reliability_charts(bins)
    assert len(diagram.marks) == len(counts.bars) == 2
    mark = diagram.marks[0]
    assert mark.low is not None
    assert mark.high is not None
    assert mark.low > mark.y > mark.high, "the y of SVG grows downwards"
    assert "2 of 4 right, 50.0%" in mark.tip


def test_rate_of_one_step_is_drawn() -> None:
    assert rate_chart([(1.0, 0.01)]).curves
