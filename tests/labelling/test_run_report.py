"""Run report: statistics of a run, its baseline, and what the manifest keeps for the next run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from afinar import open_predictions
from afinar.labelling.run_report import (
    RunStats,
    SourceStats,
    find_baseline,
    update_source_stats,
)
from afinar.labelling.stats import BINS, LabelStats, count_labels
from afinar.predictions.manifest import Partition, PredictionManifest, read_manifest
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from tests.archives import label
from tests.conftest import TINTS, Trained, jpeg


def stats(**labels: int) -> LabelStats:
    """Predictions by label, all of them with the score 0.01."""
    count = sum(labels.values())
    return LabelStats(labels, (count,) + (0,) * (BINS - 1), 0.01 * count)


def partition(**accounts: SourceStats) -> Partition:
    """A partition with statistics by source."""
    objects = ObjectRef(path="lists/x.parquet", rows=0, bytes=0, sha256="0" * 64)
    return Partition(
        model="m@1",
        source="s",
        sources=["s"],
        objects=objects,
        rows=0,
        rejects=0,
        last_run={},
        accounts={name: account.as_dict() for name, account in accounts.items()},
    )


def test_baseline_is_the_last_run_else_the_published_rows_else_those_of_another_model() -> None:
    large, archive, small = stats(a=500), stats(a=9000), stats(a=12)

    def baseline(source: str = "s", **partitions: Partition) -> LabelStats | None:
        found = find_baseline(PredictionManifest(partitions=partitions), "new", source)
        return found.labels if found else None

    assert baseline() is None
    assert baseline(new=partition(s=SourceStats(3, large, archive))) == large
    assert baseline(new=partition(s=SourceStats(3, small, archive))) == archive
    assert baseline("another source", new=partition(s=SourceStats(3, large, archive))) is None

    older = partition(s=SourceStats(3, large, large))
    newer = partition(s=SourceStats(8, small, archive))
    assert baseline(old=older, newer=newer) == archive
    assert baseline(old=partition()) is None, "an early version, written without statistics"


def test_two_sources_list_a_picture_the_row_is_subtracted_from_the_other_source() -> None:
    """The example of `update_source_stats`."""
    first_run, second_run = stats(moss=3, rust=1), stats(moss=2)
    accounts = update_source_stats(None, "a", 1, first_run, LabelStats(), first_run)
    accounts = update_source_stats(
        replace(partition(), accounts=accounts), "b", 2, second_run, stats(moss=1), second_run
    )
    first, second = (SourceStats.from_dict(accounts[source]) for source in ("a", "b"))
    assert first.published.labels == {"moss": 2, "rust": 1}
    assert second.published.labels == {"moss": 2}
    assert (first.version, second.version) == (1, 2)
    assert first.run == first_run, "the record of the other source's run is unchanged"


def test_rejects_are_counted_by_reason_with_a_few_examples() -> None:
    rows = [
        {"uri": f"{number}.jpg", "reason": "empty" if number % 3 else "corrupt", "detail": "x"}
        for number in range(30)
    ]
    run = RunStats()
    for part in (rows[:4], rows[4:]):
        run.add_rejects(pa.Table.from_pylist(part))
    assert run.reasons == {"empty": 20, "corrupt": 10}
    examples = [row["uri"] for row in run.examples["corrupt"]]
    assert examples == ["0.jpg", "3.jpg", "6.jpg", "9.jpg", "12.jpg"]
    both = run.plus(run)
    assert both.reasons == {"empty": 40, "corrupt": 20}
    assert len(both.examples["empty"]) == 5


def add_pictures(folder: Path, first: int, moss: int, rust: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(moss + rust):
        tint = TINTS["moss" if number < moss else "rust"]
        (folder / f"{first + number}.jpg").write_bytes(jpeg(first + number, tint=tint))


def only_source(out: str) -> SourceStats:
    """Statistics of the only source of the only partition."""
    (entry,) = read_manifest(open_store(out)).partitions.values()
    (account,) = entry.accounts.values()
    return SourceStats.from_dict(account)


def test_runs_of_one_source_follow_each_other_each_is_compared_with_the_last(
    tmp_path: Path, trained: Trained
) -> None:
    source, out = tmp_path / "scans", str(tmp_path / "out")
    add_pictures(source, 0, 60, 60)
    first = label(source, out, trained)
    assert first.drift["drifted"] is False
    assert "first run" in first.drift["sentences"][0]
    assert sum(first.confidence["histogram"]) == first.labelled == 120
    assert set(first.stages) >= {"decode", "forward", "write"}

    add_pictures(source, 1000, 55, 60)
    second = label(source, out, trained)
    assert second.drift["drifted"] is False
    assert (second.drift["pictures_before"], second.drift["pictures"]) == (120, 115)
    scores = open_predictions(out).table.column("score").to_numpy()
    assert only_source(out).published.score_sum == pytest.approx(float(scores.sum()), abs=1e-3)

    add_pictures(source, 2000, 120, 0)
    third = label(source, out, trained)
    assert third.drift["drifted"] is True
    assert third.drift["pictures_before"] == 115, "the last run, not all published pictures"
    assert third.drift["classes"]["distance"] == pytest.approx(60 / 115, abs=1e-3)
    assert third.drift["sentences"][0] in third.notes

    add_pictures(source, 3000, 1, 0)
    small = label(source, out, trained)
    assert small.drift["drifted"] is False
    assert "fewer than 100" in small.drift["sentences"][0]
    idle = label(source, out, trained)
    assert idle.confidence == {"mean": None, "histogram": [0] * BINS}
    assert "Nothing was labelled" in idle.drift["sentences"][0]


def test_pictures_change_statistics_are_those_of_the_published_rows(
    tmp_path: Path, trained: Trained
) -> None:
    source, out = tmp_path / "scans", str(tmp_path / "out")
    add_pictures(source, 0, 30, 30)
    label(source, out, trained)
    for number in (3, 4, 40):
        (source / f"{number}.jpg").write_bytes(jpeg(number + 7000, tint=TINTS["rust"]))
    (source / "5.jpg").write_bytes(b"no picture any more")
    summary = label(source, out, trained)
    assert (summary.labelled, summary.rejected, summary.skipped) == (3, 1, 56)
    rows = count_labels(open_predictions(out).table)
    kept = only_source(out)
    assert (kept.published.labels, kept.published.histogram) == (rows.labels, rows.histogram)
    assert kept.published.score_sum == pytest.approx(rows.score_sum, abs=1e-3)
    assert kept.run.pictures == 3


def test_another_model_labels_the_source_it_is_compared_with_all_rows_of_the_last_model(
    tmp_path: Path, trained: Trained
) -> None:
    source, out = tmp_path / "scans", str(tmp_path / "out")
    add_pictures(source, 0, 55, 55)
    label(source, out, trained)
    add_pictures(source, 1000, 2, 0)
    label(source, out, trained)
    other = label(source, out, trained, top_k=1)
    assert (other.drift["pictures_before"], other.drift["pictures"]) == (112, 112)
    assert other.drift["drifted"] is False
    assert other.drift["classes"]["distance"] == other.drift["confidence"]["distance"] == 0.0
