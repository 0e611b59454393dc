"""Charts of the pages as SVG: geometry is computed here, `pieces.html.j2` draws it.

Colours are CSS variables of the page, so that a chart is readable in light and in dark mode. A
chart scales with the page. It has no class names but in its legend, which is text of the page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from afinar.evaluation.intervals import ConfidenceBin, wilson

if TYPE_CHECKING:
    from afinar.evaluation.comparison import EvaluatedRun

WIDTH: Final = 400
"""Width of a chart in its own units: about the pixels of a phone, so that its text is readable."""
HEIGHT: Final = 232
COLOURS: Final = 6
"""Number of colours of series: `--c1` to `--c6` in `base.html.j2`."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 38
_MARKS: Final = 40  # a longer line has no marks
_TICKS: Final = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A number at an axis: its place in the chart and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """The path of a line, in the syntax of SVG."""

    path: str
    colour: int
    is_dashed: bool


@dataclass(frozen=True)
class Mark:
    """A point with the text that is shown when it is pointed at, and the ends of its interval."""

    x: float
    y: float
    tip: str
    colour: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bar:
    """A rectangle with the text that is shown when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    tip: str


@dataclass(frozen=True)
class Key:
    """An entry of the legend; `shape` is "line", "dashed", "dot" or "box"."""

    name: str
    colour: int
    shape: str


@dataclass(frozen=True)
class Axis:
    """Range and label of an axis; `ticks` are numbers with their text."""

    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]


@dataclass(kw_only=True)
class Chart:
    """A chart that is filled with lines, marks and bars, in the coordinates of its axes."""

    title: str
    x: Axis
    y: Axis
    curves: list[Curve] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)

    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    left: ClassVar[int] = _LEFT
    right: ClassVar[int] = WIDTH - _RIGHT
    top: ClassVar[int] = _TOP
    bottom: ClassVar[int] = HEIGHT - _BOTTOM

    @property
    def x_ticks(self) -> list[Tick]:
        return [Tick(self._x(number), text) for number, text in self.x.ticks]

    @property
    def y_ticks(self) -> list[Tick]:
        return [Tick(self._y(number), text) for number, text in self.y.ticks]

    def line(
        self, points: Sequence[Point], colour: int, *, dashed: bool = False, name: str = ""
    ) -> None:
        """Draw a line through points, and name it in the legend if it has a name."""
        if points:
            path = "M" + "L".join(f"{self._x(x)} {self._y(y)}" for x, y in points)
            self.curves.append(Curve(path, colour, dashed))
        if name:
            self.keys.append(Key(name, colour, "dashed" if dashed else "line"))

    def dots(self, points: Iterable[tuple[float, float, str]], colour: int, name: str = "") -> None:
        """Draw points (x, y, text)."""
        self.marks += [Mark(self._x(x), self._y(y), tip, colour) for x, y, tip in points]
        if name:
            self.keys.append(Key(name, colour, "dot"))

    def interval(self, x: float, ends: tuple[float, float, float], tip: str, colour: int) -> None:
        """Draw a point with its interval: value, low and high."""
        value, low, high = (self._y(end) for end in ends)
        self.marks.append(Mark(self._x(x), value, tip, colour, low, high))

    def bar(self, start: float, end: float, height: float, tip: str) -> None:
        """Draw a bar from `start` to `end`, one unit of the chart apart from its neighbours."""
        left, right = self._x(start), self._x(end)
        top = self._y(height)
        width = max(right - left - 1, 0.5)
        bar = Bar(left + 0.5, top, round(width, 2), round(self.bottom - top, 2), tip)
        self.bars.append(bar)

    def _x(self, number: float) -> float:
        return self._place(number, self.x, self.left, self.right)

    def _y(self, number: float) -> float:
        return self._place(number, self.y, self.bottom, self.top)

    @staticmethod
    def _place(number: float, axis: Axis, start: float, end: float) -> float:
        span = (axis.high - axis.low) or 1.0
        share = min(max((number - axis.low) / span, 0.0), 1.0)
        return round(start + share * (end - start), 2)


def exact_axis(label: str, low: float, high: float, *, integer: bool = False) -> Axis:
    """Return an axis from `low` to `high` with the round ticks between them."""
    rounded = axis(label, low, high, integer=integer)
    return Axis(label, low, high, [tick for tick in rounded.ticks if low <= tick[0] <= high])


def axis(label: str, low: float, high: float, *, integer: bool = False, unit: str = "") -> Axis:
    """Return an axis between round numbers below `low` and above `high`, with round ticks.

    Steps are 1, 2 or 5 times a power of ten (Heckbert, "Nice numbers for graph labels", Graphics
    Gems, 1990). Example: 0 to 0.83 has the ticks 0, 0.2, 0.4, 0.6, 0.8 and 1.
    """
    rough = max((high - low) / _TICKS, 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if integer:
        step = max(1.0, step)

    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    numbers = [number * step for number in range(first, max(last, first + 1) + 1)]
    return Axis(label, numbers[0], numbers[-1], [(n, f"{n:.6g}{unit}") for n in numbers])


def share_axis(label: str) -> Axis:
    """Return an axis from 0 to 1."""
    return Axis(label, 0.0, 1.0, [(tick / 5, f"{tick / 5:g}") for tick in range(6)])


def curves(runs: list[EvaluatedRun]) -> list[Chart]:
    """Return loss and accuracy by epoch; training is dashed, validation solid."""
    histories = [run.history for run in runs if run.history]
    if not histories:
        return []
    epochs = [row["epoch"] for history in histories for row in history]
    losses = [
        row[split]["loss"] for rows in histories for row in rows for split in ("train", "val")
    ]
    accuracies = [row[split]["top1"] for h in histories for row in h for split in ("train", "val")]
    # One epoch has no line: its axis has a neighbour to either side.
    x = exact_axis("epoch", min(epochs), max(*epochs, min(epochs) + 1), integer=True)
    loss = Chart(title="Loss (cross-entropy) by epoch", x=x, y=axis("loss", 0, max(losses)))
    lowest = math.floor(10 * min(accuracies)) * 10
    accuracy = Chart(
        title="Accuracy (top-1) by epoch", x=x, y=axis("accuracy", lowest, 100, unit=" %")
    )

    for number, run in enumerate(runs):
        for chart, key, scale in ((loss, "loss", 1), (accuracy, "top1", 100)):
            _add_curves(chart, run, key, scale, 1 + number % COLOURS, len(runs) > 1)
    return [loss, accuracy]


def _add_curves(
    chart: Chart, run: EvaluatedRun, key: str, scale: int, colour: int, with_name: bool
) -> None:
    for number, (split, name) in enumerate((("train", "training"), ("val", "validation"))):
        if not with_name:
            colour = 2 - number
        points = [(float(row["epoch"]), scale * row[split][key]) for row in run.history]
        label = f"{run.name}, {name}" if with_name else name
        chart.line(points, colour, dashed=split == "train", name=label)
        if len(points) <= _MARKS:
            unit = "" if key == "loss" else " %"
            texts = [f"epoch {x:g}, {label}: {y:.4g}{unit}" for x, y in points]
            chart.dots(((x, y, tip) for (x, y), tip in zip(points, texts, strict=True)), colour)


def rate_chart(points: list[Point]) -> Chart:
    """Return the learning rate by epoch."""
    epochs, rates = zip(*points, strict=True)
    chart = Chart(
        title="Learning rate by epoch",
        x=exact_axis("epoch", 0, max(1.0, *epochs), integer=True),
        y=axis("learning rate", 0, max(rates)),
    )
    chart.line(points, 1)
    return chart


def reliability_charts(bins: list[ConfidenceBin]) -> list[Chart]:
    """Return accuracy by confidence with 95 % intervals, and the number of pictures."""
    diagram = Chart(
        title="Accuracy by confidence (reliability diagram)",
        x=share_axis("confidence"),
        y=share_axis("accuracy"),
    )
    diagram.line([(0, 0), (1, 1)], 0, dashed=True, name="perfect calibration")
    for entry in bins:
        hits = wilson(entry.hits, entry.samples)
        diagram.interval(
            entry.confidence,
            (hits.value, hits.low, hits.high),
            f"confidence {entry.confidence:.1%}: {entry.hits:,} of {entry.samples:,} right, "
            f"{hits.value:.1%} (95 % interval {hits.low:.1%} to {hits.high:.1%})",
            1,
        )
    diagram.keys.append(Key("test, 95 % interval", 1, "dot"))

    highest = max(entry.samples for entry in bins)
    counts = Chart(
        title="Test pictures by confidence",
        x=share_axis("confidence"),
        y=axis("pictures", 0, highest, integer=True),
    )
    for entry in bins:
        tip = f"confidence about {entry.confidence:.1%}: {entry.samples:,} pictures"
        counts.bar(entry.confidence - 0.02, entry.confidence + 0.02, entry.samples, tip)
    return [diagram, counts]


def binary_charts(binary: dict[str, Any]) -> list[Chart]:
    """Return ROC and precision-recall curves of the test split, with the operating points.

    `binary` is what `training.operating_points.operating_points` returned.
    """
    curve = binary["curve"]
    roc = Chart(
        title="ROC curve", x=share_axis("false positive rate"), y=share_axis("true positive rate")
    )
    roc.line([(0, 0), (1, 1)], 0, dashed=True, name="chance")
    rates = zip([0, *curve["false_positive_rate"]], [0, *curve["recall"]], strict=True)
    roc.line(list(rates), 1, name="test")
    precision = Chart(
        title="Precision by recall", x=share_axis("recall"), y=share_axis("precision")
    )
    pairs = list(zip(curve["recall"], curve["precision"], strict=True))
    precision.line(pairs, 1, name="test")

    colours = itertools.cycle(range(2, COLOURS + 1))
    for point, colour in zip(binary["points"], colours, strict=False):
        test = point["test"]
        if test is None or test["precision"] is None:
            continue
        negatives = test["false_positives"] + test["true_negatives"]
        name = f"{point['measure']} {point['target']:g} on validation"
        roc.dots([(test["false_positives"] / negatives, test["recall"], name)], colour, name)
        precision.dots([(test["recall"], test["precision"], name)], colour, name)
    return [roc, precision]


def histogram(
    title: str, label: str, edges: NDArray[np.float64], counts: NDArray[np.int64]
) -> Chart:
    """Return a histogram of pictures: counts [n] between edges [n + 1]."""
    total = int(counts.sum()) or 1
    chart = Chart(
        title=title,
        x=exact_axis(label, float(edges[0]), float(edges[-1])),
        y=axis("pictures", 0, max(int(counts.max()), 1), integer=True),
    )
    ends = itertools.pairwise(edges.tolist())
    for (start, end), count in zip(ends, counts.tolist(), strict=True):
        tip = f"{start:.4g} to {end:.4g}: {count:,} pictures, {count / total:.1%}"
        chart.bar(start, end, count, tip)
    return chart
