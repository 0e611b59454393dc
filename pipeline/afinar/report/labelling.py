"""Page and run folder of a labelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.base import as_dict
from afinar.config.label import LabelConfig
from afinar.labelling.contact_sheet import PER_CLASS
from afinar.labelling.driver import LabelOutcome
from afinar.labelling.run_report import RunReport
from afinar.labelling.stats import BINS, LabelStats
from afinar.logs import log_settings
from afinar.report.charts import Chart, Key, axis, share_axis
from afinar.report.command import reproduce
from afinar.report.pieces import PICTURES, Tile, file_tiles
from afinar.report.rendering import template
from afinar.report.run_folder import record_run, report_uri
from afinar.storage.names import new_run
from afinar.units.progress import format_duration, limiting_phase

_SHEET_CLASSES: Final = PICTURES // 2  # each with at least one picture of both kinds


@dataclass(frozen=True, kw_only=True)
class ClassSheet:
    """Pictures of one predicted class: the most and the least certain ones."""

    target: str
    name: str
    count: int
    most: list[Tile]
    least: list[Tile]


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """One run: its name, its source, the partition that it wrote, its summary as JSON values.

    `config` has the fields of its configuration, `sheets` the pictures that the page shows.
    """

    run: str
    source: str
    partition: str
    summary: dict[str, Any]
    report: RunReport
    config: dict[str, Any] = field(default_factory=dict)
    sheets: list[ClassSheet] = field(default_factory=list)


def record_labelling(
    config: LabelConfig, outcome: LabelOutcome, summary: dict[str, Any]
) -> dict[str, Any]:
    """Write the run folder of a labelling, and return its summary with the URI of the page.

    A run that published nothing leaves no folder, and its `report` stays None.
    """
    if outcome.report is None:
        return summary
    run = log_settings().run or new_run()
    summary = {**summary, "report": report_uri(config.predictions, run)}
    stats = outcome.report.stats
    page = label_page(
        LabelRun(
            run=run,
            source=outcome.source,
            partition=outcome.partition,
            summary=summary,
            report=outcome.report,
            config=as_dict(config),
            sheets=contact_sheets(stats.sheet.table(), stats.labels),
        )
    )
    record_run(config.predictions, run, config, summary, page)

    return summary


def contact_sheets(rows: pa.Table, stats: LabelStats) -> list[ClassSheet]:
    """Return the pictures of a contact sheet by class, the most frequent class first.

    `rows` are those of `labelling.contact_sheet`. At most `PICTURES` pictures are read.
    """
    names = sorted(stats.labels, key=lambda name: (-stats.labels[name], name))[:_SHEET_CLASSES]
    half = max(1, min(PER_CLASS // 2, PICTURES // (2 * max(len(names), 1))))
    chosen: list[dict[str, Any]] = []
    sizes = []
    for name in names:
        of_class = rows.filter(pc.equal(rows.column("label"), name)).to_pylist()
        most = of_class[:half]
        least = of_class[max(half, len(of_class) - half) :][::-1]
        chosen += most + least
        sizes.append((len(most), len(least)))

    captions = [f"{row['score']:.1%}" for row in chosen]
    alts = [f"{row['label']}, {row['score']:.1%}" for row in chosen]
    pictures = iter(file_tiles(chosen, captions, alts))
    return [
        ClassSheet(
            target=f"sheet-{number}",
            name=name,
            count=stats.labels[name],
            most=[next(pictures) for _ in range(most_count)],
            least=[next(pictures) for _ in range(least_count)],
        )
        for number, (name, (most_count, least_count)) in enumerate(zip(names, sizes, strict=True))
    ]


def label_page(run: LabelRun) -> str:
    """Return the page of a run."""
    summary, stats, baseline = run.summary, run.report.stats.labels, run.report.baseline
    before = baseline.labels if baseline else None
    targets = {sheet.name: sheet.target for sheet in run.sheets}

    return template("labelling.html.j2").render(
        title=f"Labels of {run.source}",
        run=run.run,
        summary=summary,
        numbers=_headline_numbers(summary, stats),
        drift=run.report.drift(),
        before=baseline.name if baseline else None,
        classes=_classes(stats, before, targets),
        sheets=run.sheets,
        stats=stats,
        histogram=_histogram(stats, before, baseline.name if baseline else ""),
        reasons=_reasons(run),
        phases=phase_rows(summary["stages"]),
        limit=limiting_phase(summary["stages"]),
        time=format_duration(summary["seconds"]),
        folder=f"{summary['predictions']}/parts/model={run.partition}",
        snippets=_snippets(summary["predictions"], run.partition),
        command=reproduce("label", LabelConfig, run.config),
    )


def _headline_numbers(summary: dict[str, Any], stats: LabelStats) -> list[tuple[str, str]]:
    names = {"skipped": "labelled before"}
    counts = ("listed", "labelled", "rejected", "skipped")
    numbers = [(names.get(name, name), f"{summary[name]:,}") for name in counts]
    if stats.mean is not None:
        numbers.append(("mean confidence", f"{stats.mean:.1%}"))
    return [*numbers, ("pictures per second", f"{summary['images_per_second']:,.0f}")]


def _classes(
    now: LabelStats, before: LabelStats | None, targets: dict[str, str]
) -> list[dict[str, Any]]:
    """Return a row for each class, the most frequent first.

    `bar` (this run) and `mark` (the baseline) are lengths in per cent of the longest bar.
    """
    then = before if before and before.pictures else None
    names = {*now.labels, *(then.labels if then else ())}
    rows = [
        {
            "name": name,
            "count": now.labels.get(name, 0),
            "share": _share(now.labels.get(name, 0), now.pictures),
            "before": _share(then.labels.get(name, 0), then.pictures) if then else None,
            "target": targets.get(name, ""),
        }
        for name in names
    ]

    longest = max((max(row["share"], row["before"] or 0.0) for row in rows), default=0.0) or 1.0
    for row in rows:
        row["bar"] = 100 * row["share"] / longest
        row["mark"] = None if row["before"] is None else 100 * row["before"] / longest
    return sorted(rows, key=lambda row: (-row["count"], row["name"]))


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _shares(stats: LabelStats) -> list[float]:
    return [_share(count, stats.pictures) for count in stats.histogram]


def _histogram(now: LabelStats, before: LabelStats | None, name: str) -> Chart:
    """Return the share of pictures by confidence; the baseline is a line of steps."""
    shares = _shares(now)
    shares_before = _shares(before) if before and before.pictures else []
    chart = Chart(
        title="Pictures by confidence",
        x=share_axis("probability of the label"),
        y=axis("share of pictures", 0, 100 * max([*shares, *shares_before, 0.01]), unit=" %"),
    )
    for number, (share, count) in enumerate(zip(shares, now.histogram, strict=True)):
        start, end = number / BINS, (number + 1) / BINS
        tip = f"{start:.2f} to {end:.2f}: {count:,} pictures, {share:.1%}"
        chart.bar(start, end, 100 * share, tip)

    if shares_before:
        # Two points for each bin: its left and its right edge.
        points = [
            (edge / BINS, 100 * share)
            for number, share in enumerate(shares_before)
            for edge in (number, number + 1)
        ]
        chart.keys.append(Key("this run", 1, "box"))
        chart.line(points, 2, name=f"before: {name}")
    return chart


def _reasons(run: LabelRun) -> list[dict[str, Any]]:
    """Return a row for each reason, the most frequent first, with a few rejects of this run."""
    counts: dict[str, int] = run.summary["rejects_by_reason"]
    examples = run.report.stats.examples
    rows = [
        {"reason": reason, "count": count, "examples": examples.get(reason, [])}
        for reason, count in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["count"])


def phase_rows(seconds_by_phase: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each phase of a job, the longest first."""
    total = sum(seconds_by_phase.values()) or 1.0
    rows = [
        {"name": name, "seconds": seconds, "share": seconds / total}
        for name, seconds in seconds_by_phase.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


def _snippets(predictions: str, partition: str) -> list[tuple[str, str]]:
    """Return titles and code that reads the predictions: the published rows, each picture once."""
    opened = (
        f"import afinar\n\nlabels = afinar.open_predictions({predictions!r}, {partition!r}).table"
    )
    return [
        ("Python", opened),
        ("pandas", f"{opened}.to_pandas()"),
        (
            "DuckDB",
            f"import duckdb\n{opened}\n"
            'duckdb.sql("SELECT label, count(*) AS pictures, avg(score) FROM labels GROUP BY ALL")',
        ),
    ]
