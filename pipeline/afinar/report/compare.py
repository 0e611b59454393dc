"""Page and summary of `afinar compare`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from afinar.comparison.cells import FOLDER
from afinar.comparison.driver import CompareOutcome
from afinar.comparison.table import Row, as_arrow
from afinar.config.base import fingerprint
from afinar.report.charts import COLOURS, Axis, Chart, axis, exact_axis
from afinar.report.rendering import template
from afinar.storage.arrow import to_parquet
from afinar.storage.open import open_store


def record_comparisons(outcomes: list[CompareOutcome]) -> dict[str, Any]:
    """Write the pages of all datasets, and of several also one page; return the JSON summary.

    The summary of one dataset has its rows and sentences. That of several has these by dataset
    under `datasets`, and the sentence on transfer for each.
    """
    summaries = [record_comparison(outcome) for outcome in outcomes]
    if len(outcomes) == 1:
        return summaries[0]

    store = open_store(outcomes[0].runs)
    folder = f"{FOLDER}/{fingerprint([outcome.folder for outcome in outcomes])[:16]}"
    tables = [
        as_arrow(outcome.table).add_column(0, "dataset", [[outcome.dataset] * _rows(outcome)])
        for outcome in outcomes
    ]
    store.put_if_absent(
        f"{folder}/table.parquet",
        to_parquet(pa.concat_tables(tables, promote_options="permissive")),
    )
    store.put_if_absent(f"{folder}/report.html", comparisons_page(outcomes).encode())
    return {
        "datasets": summaries,
        "transfer": {
            outcome.dataset: asdict(outcome.table.transfer) if outcome.table.transfer else None
            for outcome in outcomes
        },
        "cells": sum(outcome.cells for outcome in outcomes),
        "computed": sum(outcome.computed for outcome in outcomes),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "table": store.uri(f"{folder}/table.parquet"),
        "report": store.uri(f"{folder}/report.html"),
        "published": None,
    }


def _rows(outcome: CompareOutcome) -> int:
    return len(outcome.table.rows) + len(outcome.table.learning_curve)


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
        "published_report": store.uri(f"{published.lineage['run']}/report.html")
        if published
        else None,
    }


def comparison_page(outcome: CompareOutcome) -> str:
    """Return the page of a comparison on one dataset."""
    return template("compare.html.j2").render(
        title="Comparison", sections=[_section(outcome)], transfer=[]
    )


def comparisons_page(outcomes: list[CompareOutcome]) -> str:
    """Return the page of a comparison on several datasets: does transfer gain on each of them?"""
    return template("compare.html.j2").render(
        title=f"Comparison on {len(outcomes)} datasets",
        sections=[_section(outcome) for outcome in outcomes],
        transfer=[(_name(outcome), outcome.table) for outcome in outcomes],
    )


def _section(outcome: CompareOutcome) -> dict[str, Any]:
    rows = [row for row in outcome.table.rows if row.head != "knn"]
    return {
        "name": _name(outcome),
        "outcome": outcome,
        "table": outcome.table,
        "curves": validation_charts(outcome.histories),
        "cost": cost_chart(rows) if rows else None,
    }


def _name(outcome: CompareOutcome) -> str:
    return outcome.dataset.rstrip("/").rpartition("/")[2]


def validation_charts(histories: dict[str, list[dict[str, Any]]]) -> list[Chart]:
    """Return loss and accuracy on validation by epoch, one line for each name."""
    rows = [row for history in histories.values() for row in history]
    if not rows:
        return []
    epochs = [row["epoch"] for row in rows]
    x = exact_axis("epoch", min(epochs), max(*epochs, min(epochs) + 1), integer=True)
    losses, shares = ([row[key] for row in rows] for key in ("loss", "top1"))
    lowest = min(90, math.floor(10 * min(shares)) * 10)
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
    lowest = min(90, math.floor(10 * min(row.val for row in rows)) * 10)
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
