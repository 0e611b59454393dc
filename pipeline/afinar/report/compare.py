"""Page and summary of `afinar compare`."""

from __future__ import annotations

import math
from typing import Any

from afinar.comparison.driver import CompareOutcome
from afinar.comparison.table import Row
from afinar.report.charts import COLOURS, Axis, Chart, axis, exact_axis
from afinar.report.rendering import template
from afinar.storage.open import open_store


def record_comparison(outcome: CompareOutcome) -> dict[str, Any]:
    """Write the page beside the table, and return the JSON summary."""
    store, name = open_store(outcome.runs), f"{outcome.folder}/report.html"
    store.put_if_absent(name, comparison_page(outcome).encode())
    published = outcome.published
    return {
        "dataset": outcome.dataset,
        "version": outcome.version,
        **outcome.table.as_dict(),
        "cells": outcome.cells,
        "computed": outcome.computed,
        "seconds": outcome.seconds,
        "table": store.uri(f"{outcome.folder}/table.parquet"),
        "report": store.uri(name),
        "published": f"{outcome.runs}@{published.id}" if published else None,
    }


def comparison_page(outcome: CompareOutcome) -> str:
    """Return the page of a comparison."""
    table = outcome.table
    rows = [row for row in table.rows if row.head != "knn"]
    return template("compare.html.j2").render(
        title="Comparison",
        outcome=outcome,
        table=table,
        curves=validation_charts(outcome.histories),
        cost=cost_chart(rows) if rows else None,
    )


def validation_charts(histories: dict[str, list[dict[str, Any]]]) -> list[Chart]:
    """Return loss and accuracy on validation by epoch, one line for each name."""
    rows = [row for history in histories.values() for row in history]
    if not rows:
        return []
    epochs = [row["epoch"] for row in rows]
    x = exact_axis("epoch", min(epochs), max(*epochs, min(epochs) + 1), integer=True)
    losses, shares = ([row[key] for row in rows] for key in ("loss", "top1"))
    lowest = math.floor(10 * min(shares)) * 10
    charts = [
        Chart(title="Validation loss by epoch", x=x, y=axis("loss", 0, max(losses))),
        Chart(title="Validation accuracy by epoch", x=x, y=axis("top-1", lowest, 100, unit=" %")),
    ]
    for number, (name, history) in enumerate(histories.items()):
        for chart, key, scale in zip(charts, ("loss", "top1"), (1, 100), strict=True):
            points = [(float(row["epoch"]), scale * row[key]) for row in history]
            chart.line(points, 1 + number % COLOURS, name=name)
    return charts


def cost_chart(rows: list[Row]) -> Chart:
    """Return accuracy on validation by pictures per second when labelling, on a log scale.

    The line joins the Pareto front.
    """
    rates = [math.log10(max(row.images_per_second, 0.1)) for row in rows]
    low, high = math.floor(min(rates)), math.ceil(max(rates))
    high = max(high, low + 1)
    ticks = [(float(power), f"{10**power:g}") for power in range(low, high + 1)]
    lowest = math.floor(10 * min(row.val for row in rows)) * 10
    chart = Chart(
        title="Accuracy on validation by pictures per second on one core",
        x=Axis("pictures/s", low, high, ticks),
        y=axis("top-1", lowest, 100, unit=" %"),
    )
    points = [
        (rate, 100 * row.val, f"row {row.number}: {row.val:.1%}, {row.images_per_second:.0f}/s")
        for rate, row in zip(rates, rows, strict=True)
    ]
    front = [point for point, row in zip(points, rows, strict=True) if row.pareto]
    others = [point for point, row in zip(points, rows, strict=True) if not row.pareto]
    chart.line(sorted((x, y) for x, y, _ in front), 1, dashed=True)
    chart.dots(front, 1, "Pareto front")
    chart.dots(others, 0, "other rows")
    return chart
