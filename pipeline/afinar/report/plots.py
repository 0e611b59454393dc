"""Plots of the pages, as PNG bytes.

They have no class names: matplotlib draws only the characters of its own font. Names are text of
the page (`pieces.confusion_table`), for which a browser finds a font."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from afinar.evaluation.intervals import ConfidenceBin, wilson

if TYPE_CHECKING:
    from afinar.evaluation.comparison import EvaluatedRun

# Paul Tol's "bright" scheme, distinct for colour-blind readers too.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10.5,
}


@contextmanager
def _figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns, squeeze=False)[0]


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=144)
    return sink.getvalue()


def curves(runs: list[EvaluatedRun]) -> bytes:
    """Plot loss and accuracy by epoch in two panels; training dashed, validation solid."""
    with _figure(9.6, 3.4, 2) as (figure, (loss, accuracy)):
        for run, colour in zip(runs, _COLOURS, strict=False):
            epochs = [row["epoch"] for row in run.history]
            marker = "o" if len(epochs) < 15 else ""
            for axes, key, scale in ((loss, "loss", 1), (accuracy, "top1", 100)):
                for split, line in (("train", "--"), ("val", "-")):
                    values = [row[split][key] * scale for row in run.history]
                    label = f"{run.name}, {'training' if split == 'train' else 'validation'}"
                    axes.plot(
                        epochs, values, line, color=colour, marker=marker, markersize=3, label=label
                    )

        loss.set(title="Loss (cross-entropy)", xlabel="epoch", ylim=(0, None))
        accuracy.set(title="Accuracy (top-1, %)", xlabel="epoch", ylim=(None, 101))
        for axes in (loss, accuracy):
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
        figure.legend(
            *loss.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
        )
        return _png(figure)


def reliability_diagram(bins: list[ConfidenceBin]) -> bytes:
    """Plot accuracy by confidence with 95 % intervals, and a histogram of confidence."""
    confidence = np.array([entry.confidence for entry in bins])
    intervals = [wilson(entry.hits, entry.samples) for entry in bins]
    accuracy = np.array([interval.value for interval in intervals])
    ends = np.array([[interval.low, interval.high] for interval in intervals]).reshape(-1, 2).T
    spread = np.abs(ends - accuracy)

    with _figure(9.6, 3.6, 2) as (figure, (right, count)):
        right.plot([0, 1], [0, 1], "--", color="#999999", label="perfect calibration")
        right.errorbar(
            confidence,
            accuracy,
            spread,
            fmt="o",
            color=_COLOURS[0],
            markersize=4,
            capsize=2,
            label="test, 95 % interval",
        )
        right.set(
            title="Accuracy by confidence", xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.05)
        )
        right.legend(frameon=False, loc="upper left")
        count.bar(confidence, [entry.samples for entry in bins], width=0.03, color=_COLOURS[0])
        count.set(title="Test pictures by confidence", xlabel="confidence", xlim=(0, 1.02))
        count.yaxis.get_major_locator().set_params(integer=True)
        for axes in (right, count):
            axes.grid(alpha=0.25)
        return _png(figure)


def binary_curves(binary: dict[str, Any]) -> bytes:
    """Plot ROC and precision-recall curves of the test split, with the operating points on them.

    `binary` is what `training.operating_points.operating_points` returned.
    """
    curve = binary["curve"]
    marks = itertools.cycle(zip("os^Dv", _COLOURS[1:], strict=True))
    with _figure(9.6, 4.2, 2) as (figure, (roc, precision)):
        roc.plot([0, 1], [0, 1], "--", color="#999999", label="chance")
        roc.plot(
            [0, *curve["false_positive_rate"]],
            [0, *curve["recall"]],
            color=_COLOURS[0],
            label="test",
        )
        precision.plot(curve["recall"], curve["precision"], color=_COLOURS[0])
        for point, (shape, colour) in zip(binary["points"], marks, strict=False):
            test = point["test"]
            if test is None or test["precision"] is None:
                continue
            negatives = test["false_positives"] + test["true_negatives"]
            mark: Any = {"marker": shape, "color": colour, "linestyle": "none"}
            label = f"{point['measure']} {point['target']:g} on validation"
            roc.plot(test["false_positives"] / negatives, test["recall"], label=label, **mark)
            precision.plot(test["recall"], test["precision"], **mark)

        roc.set(title="ROC curve", xlabel="false positive rate", ylabel="true positive rate")
        precision.set(title="Precision and recall", xlabel="recall", ylabel="precision")
        for axes in (roc, precision):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
            axes.grid(alpha=0.25)
        figure.legend(
            *roc.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        return _png(figure)


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """Return a picture uint8 [height, width, 3] as JPEG bytes."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="JPEG", quality=85)
    return sink.getvalue()
