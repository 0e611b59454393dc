"""The review queue: the least certain predictions, and forms that people edit."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from afinar import open_dataset, open_predictions
from afinar.cli.label import describe
from afinar.predictions.columns import OptionalColumns
from afinar.predictions.review_queue import least_certain
from afinar.predictions.schema import PREDICTIONS
from afinar.report.review import review_page
from afinar.storage.arrow import from_parquet
from afinar.storage.open import open_store
from tests.archives import ingest, label
from tests.conftest import Trained, jpeg
from tests.predictions.folders import BELOW, COUNT, current_partition, names_in


def test_some_scores_are_below_the_threshold_the_queue_has_the_least_certain_first(
    scans: Path, location: str, trained: Trained
) -> None:
    summary = label(scans, location, trained, render_page=review_page, abstain_below=BELOW)
    store = open_store(location)
    partition_name, partition = current_partition(location)
    folder = f"review/model={partition_name}/{partition.list_digest}"
    assert summary.review == store.uri(folder)
    assert names_in(store, "review") == [
        f"{folder}/{file}" for file in ("corrections.csv", "index.html", "queue.parquet")
    ]

    queue = from_parquet(store.get(f"{folder}/queue.parquet"))
    rows = open_predictions(location).table.to_pylist()
    expected = sorted(
        (row for row in rows if row["score"] < BELOW), key=lambda row: (row["score"], row["uri"])
    )
    assert queue.column_names == PREDICTIONS.names
    assert [row["uri"] for row in queue.to_pylist()] == [row["uri"] for row in expected]
    assert 0 < summary.abstained == len(queue) < summary.labelled == COUNT
    form = list(csv.DictReader(io.StringIO(store.get(f"{folder}/corrections.csv").decode())))
    assert [(row["uri"], row["label"], row["predicted"]) for row in form] == [
        (row["uri"], "", row["label"]) for row in expected
    ]
    assert [float(row["score"]) for row in form] == [round(row["score"], 4) for row in expected]
    text = " ".join(describe(vars(summary)).split())  # long lines are broken
    assert f"{summary.abstained} pictures: {summary.review}/index.html" in text


def test_form_is_edited_ingest_takes_its_labels(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    summary = label(scans, tmp_path / "out", trained, abstain_below=BELOW)
    path = Path(summary.review) / "corrections.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    changed = {row["uri"]: "lichen, or paint" for row in rows[::2]} | {rows[1]["uri"]: "moss"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": changed.get(row["uri"], row["label"])} for row in rows)

    dataset = str(tmp_path / "dataset")
    ingest(scans, dataset, labels=str(path), max_reject_rate=1.0)
    labels = {row["uri"]: row["label"] for row in open_dataset(dataset).index.to_pylist()}
    assert len(labels) == COUNT
    for uri, ingested in labels.items():
        assert ingested == changed.get(uri), "a prediction that nobody confirmed is no label"
    assert list(labels.values()).count("lichen, or paint") == len(rows[::2]) > 0


def test_rows_change_the_queue_is_replaced_and_edited_forms_are_kept(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    options: dict[str, Any] = {"render_page": review_page, "abstain_below": BELOW}
    first = label(scans, out, trained, **options)
    (scans / "000.jpg").unlink()
    (scans / "new.jpg").write_bytes(jpeg(1, tint=(115, 110, 55)))
    second = label(scans, out, trained, **options)
    assert second.review != first.review
    assert not list(Path(first.review).glob("*")), "its form was not edited"

    form = Path(second.review) / "corrections.csv"
    form.write_text(form.read_text().replace("moss", "lichen"))
    (Path(second.review) / "notes.txt").write_text("of a reviewer")
    (scans / "newer.jpg").write_bytes(jpeg(2, tint=(115, 110, 55)))
    third = label(scans, out, trained, **options)
    files = sorted(path.name for path in Path(second.review).iterdir())
    assert files == ["corrections.csv", "notes.txt"]
    assert any(str(form) in note for note in third.notes)
    assert (Path(third.review) / "index.html").exists()

    fourth = label(scans, out, trained, **options)
    assert (fourth.review, fourth.abstained, fourth.units_run) == (third.review, third.abstained, 0)
    assert "lichen" in form.read_text()


def test_queue_is_full_it_has_the_least_certain_and_counts_all() -> None:
    rng = np.random.default_rng(3)
    abstained: list[dict[str, Any]] = []

    def tables() -> Iterator[pa.Table]:
        texts = dict.fromkeys(("sample_id", "etag", "label", "model_version"), "x")
        for part in range(20):
            rows = [
                {
                    **texts,
                    "uri": f"/{part}/{row}",
                    # A NaN is the least certain of all.
                    "score": math.nan if (part, row) == (19, 8) else float(rng.random()),
                    "top_labels": ["x"],
                    "top_scores": [1.0],
                    "abstained": row % 3 > 0,
                }
                for row in range(9)
            ]
            abstained.extend(row for row in rows if row["abstained"])
            yield pa.Table.from_pylist(rows, schema=OptionalColumns(abstain_below=0.5).schema)

    table, below = least_certain(tables(), 7)
    assert below == len(abstained) == 120
    scored = (row for row in abstained if not math.isnan(row["score"]))
    lowest = [abstained[-1], *sorted(scored, key=lambda row: float(row["score"]))[:6]]
    assert table.column("uri").to_pylist() == [row["uri"] for row in lowest]


def test_no_picture_is_labelled_the_page_has_nothing_to_review(
    tmp_path: Path, trained: Trained
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "empty.jpg").write_bytes(b"")
    summary = label(
        tmp_path / "scans", tmp_path / "out", trained, render_page=review_page, abstain_below=0.5
    )
    assert "There is nothing to review." in (Path(summary.review) / "index.html").read_text()
