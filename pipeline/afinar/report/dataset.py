"""Page and run folder of an ingest: what a version of a dataset contains. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.config.base import as_dict
from afinar.config.ingest import IngestConfig
from afinar.dataset.manifest import REPEATS
from afinar.dataset.reader import Dataset, open_dataset
from afinar.ingestion.driver import IngestOutcome
from afinar.logs import log_settings
from afinar.pictures.resize import Pixels, without_padding
from afinar.report.charts import Chart, axis, histogram
from afinar.report.classes import class_balance
from afinar.report.command import reproduce
from afinar.report.gallery import class_gallery, sampled_rows
from afinar.report.labelling import phase_rows
from afinar.report.leaks import leak_notes
from afinar.report.pieces import Tile, tiles
from afinar.report.rendering import template
from afinar.report.run_folder import record_run, report_uri
from afinar.storage.names import new_run
from afinar.units.progress import format_duration

_EXAMPLES: Final = 5  # rejects of each reason
_MEASURED: Final = 1_000  # pictures whose brightness and sharpness are measured: about 1 s
_EXTREMES: Final = 6  # pictures of each kind
_BINS: Final = 20
_NOTABLE: Final = 0.2  # share of the variance from which a measure is said to go with the class


def record_ingest(config: IngestConfig, outcome: IngestOutcome) -> dict[str, Any]:
    """Write the run folder of an ingest, and return its summary with the URI of the page.

    A run that published nothing leaves no folder, and its `report` is None.
    """
    summary: dict[str, Any] = {**asdict(outcome.summary), "report": None}
    if not outcome.published:
        return summary
    run = log_settings().run or new_run()
    summary["report"] = report_uri(config.dataset, run)
    dataset = open_dataset(config.dataset, version=outcome.summary.version)
    summary["notes"] = [*summary["notes"], *leak_notes(dataset)]
    page = dataset_page(dataset, summary, config)
    record_run(config.dataset, run, config, summary, page)
    return summary


def dataset_page(dataset: Dataset, summary: dict[str, Any], config: IngestConfig) -> str:
    """Return the page of a version; `summary` is that of the ingest that published it."""
    manifest = dataset.manifest
    gallery = class_gallery(dataset)
    measured = measure_pictures(dataset)
    return template("dataset.html.j2").render(
        title=f"Dataset {dataset.store.root}",
        manifest=manifest,
        summary=summary,
        numbers=_headline_numbers(dataset),
        balance=class_balance(dataset, gallery.targets),
        gallery=gallery,
        repeats=[(text, manifest.counts["repeats"].get(name, 0)) for name, text in REPEATS.items()],
        reasons=_reasons(dataset),
        measured=measured,
        unusual=_unusual(dataset, measured),
        time=format_duration(summary["seconds"]),
        phases=phase_rows(summary["stages"]),
        origin=[
            ("dataset", dataset.store.root),
            ("version", manifest.version),
            ("created", manifest.created),
            ("source", manifest.source["uri"]),
            ("fingerprint of the source", manifest.source["fingerprint"][:16]),
            ("shards", len(dataset.shards)),
        ],
        command=reproduce("ingest", IngestConfig, as_dict(config)),
    )


def _headline_numbers(dataset: Dataset) -> list[tuple[str, str]]:
    counts = dataset.manifest.counts
    numbers = [("samples", counts["samples"]), ("rejects", counts["rejects"])]
    numbers += [("classes", len(dataset.classes)), *counts["splits"].items()]
    texts = [(name, f"{number:,}") for name, number in numbers]
    return [*texts, ("in shards", _megabytes(sum(ref.bytes for ref in dataset.shards)))]


def _megabytes(number: int) -> str:
    if number < 10**6:
        return f"{number / 1e3:,.0f} kB"
    return f"{number / 1e6:,.0f} MB" if number < 10**10 else f"{number / 1e9:,.0f} GB"


def _reasons(dataset: Dataset) -> list[dict[str, Any]]:
    """Return a row for each reason, the most frequent first, with a few rejects."""
    rejects = dataset.rejects
    counts = dataset.manifest.counts["rejects_by_reason"]
    return [
        {
            "reason": reason,
            "count": count,
            "examples": rejects.filter(pc.equal(rejects.column("reason"), reason))
            .slice(0, _EXAMPLES)
            .to_pylist(),
        }
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Brightness and sharpness of some stored pictures, with their rows in the index.

    `widths` and `heights` are those of the originals in pixels. `notes` name the measures that
    differ between classes.
    """

    rows: NDArray[np.int64]
    brightness: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    charts: list[Chart]
    notes: list[str]


def measure_pictures(dataset: Dataset) -> Measured:
    """Measure at most `_MEASURED` pictures of few shards."""
    rows = sampled_rows(dataset)[:_MEASURED]
    values = np.array([_measure(image) for image in _contents(dataset, rows)], np.float64)
    values = values.reshape(-1, 2)
    brightness, sharpness = values[:, 0], values[:, 1]

    labels = dataset.index.column("label").take(pa.array(rows))
    codes = pc.index_in(labels, pa.array(dataset.classes, labels.type)).fill_null(-1).to_numpy()
    notes = [
        f"The class explains {share:.0%} of the differences in {name}: a network can tell the "
        f"classes apart by the {name} alone. Look whether that is real or comes from how the "
        "pictures were taken."
        for name, values in (("brightness", brightness), ("sharpness", sharpness))
        if (share := explained_by_class(values, codes)) >= _NOTABLE
    ]
    return Measured(
        rows=rows,
        brightness=brightness,
        sharpness=sharpness,
        charts=_charts(dataset, rows, brightness) if len(rows) else [],
        notes=notes,
    )


def _contents(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[Pixels]:
    """Yield stored pictures without their padding, which would count as bright and blurred."""
    for row, original in zip(rows.tolist(), dataset.original_sizes(rows), strict=True):
        image = dataset.read([row])[0]
        if dataset.view.fit == "pad" and original.width and original.height:
            image = without_padding(image, original.width, original.height)
        yield image


def _charts(
    dataset: Dataset, rows: NDArray[np.int64], brightness: NDArray[np.float64]
) -> list[Chart]:
    """Return histograms of the originals' shorter sides and of brightness."""
    edges = np.linspace(0, 255, _BINS + 1)
    counts, _ = np.histogram(brightness, edges)
    charts = [histogram("Pictures by mean brightness", "brightness, 0 to 255", edges, counts)]

    sides = [
        min(size.width, size.height)
        for size in dataset.original_sizes(rows)
        if size.width is not None and size.height is not None
    ]
    if sides:
        longest = axis("", 0, max(sides)).high
        edges = np.linspace(0, longest, _BINS + 1)
        counts, _ = np.histogram(sides, edges)
        title = "Original pictures by their shorter side"
        charts.insert(0, histogram(title, "pixels", edges, counts))
    return charts


def _measure(image: Pixels) -> tuple[float, float]:
    """Return mean brightness, and as sharpness the logarithm of the variance of the Laplacian.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. The Laplacian
    is that of the green channel, which most of the brightness is in.
    """
    green = image[..., 1].astype(np.float32)
    inner = green[1:-1, 1:-1]
    edges = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:] - 4 * inner
    variance = float(edges.var()) if edges.size else 0.0
    return float(image.mean()), float(np.log1p(variance))


def explained_by_class(values: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Return the share of the variance of `values` between classes, corrected for chance.

    Epsilon squared (Kelley 1935): of values that do not depend on the class it is 0 on average.
    Values with a negative class count for nothing. Example: [0, 0, 9, 9] of classes [0, 0, 1, 1]
    gives 1.
    """
    values, classes = values[classes >= 0], classes[classes >= 0]
    groups, members = np.unique(classes, return_inverse=True)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    spare = len(values) - len(groups)
    if spare <= 0 or len(groups) < 2 or not total:
        return 0.0
    means = np.bincount(members, values) / np.bincount(members)
    within = float(((values - means[members]) ** 2).sum())
    return max(0.0, 1 - (within / spare) / (total / (len(values) - 1)))


def _unusual(dataset: Dataset, measured: Measured) -> list[tuple[str, list[Tile]]]:
    """Return titles and the darkest, the brightest and the most blurred pictures."""
    labels = dataset.index.column("label")
    found = []
    for title, values, text in (
        ("Darkest", measured.brightness, "brightness {:.0f}"),
        ("Brightest", -measured.brightness, "brightness {:.0f}"),
        ("Most blurred", measured.sharpness, "sharpness {:.1f}"),
    ):
        order = np.argsort(values, kind="stable")[:_EXTREMES]
        rows = measured.rows[order].tolist()
        captions = [
            f"{labels[row].as_py() or 'no label'}, {text.format(abs(value))}"
            for row, value in zip(rows, values[order].tolist(), strict=True)
        ]
        found.append((title, tiles(dataset, rows, captions)))
    return found
