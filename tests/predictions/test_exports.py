"""Exports: a run writes those that are missing, for the rows that are current."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from afinar.predictions.review_queue import ReviewQueue
from afinar.predictions.single_file import csv_path
from afinar.report.review import review_page
from afinar.storage.open import open_store
from tests.archives import label
from tests.conftest import Trained, jpeg
from tests.predictions.folders import BELOW, COUNT, current_partition, names_in


def test_run_is_killed_before_its_exports_the_next_run_writes_them(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")

    def killed(queue: ReviewQueue) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, render_page=killed, abstain_below=BELOW, single=True)
    summary = label(scans, out, trained, render_page=review_page, abstain_below=BELOW, single=True)
    assert summary.units_run == 0
    assert (Path(summary.review) / "index.html").exists()
    assert pq.read_metadata(summary.single).num_rows == COUNT


def test_concurrent_run_publishes_meanwhile_exports_are_of_both_runs(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out, other = str(tmp_path / "out"), tmp_path / "other"
    other.mkdir()
    (other / "late.jpg").write_bytes(jpeg(7))
    rendered: list[int] = []

    def overtaken(queue: ReviewQueue) -> str:
        rendered.append(queue.below)
        if len(rendered) == 1:
            options = {"abstain_below": BELOW, "single": True}
            label(other, out, trained, render_page=review_page, **options)
        return review_page(queue)

    summary = label(scans, out, trained, render_page=overtaken, abstain_below=BELOW, single=True)
    assert len(rendered) == 1, "the page of the concurrent run is of both"
    partition_name, partition = current_partition(out)
    digest, store = partition.list_digest, open_store(out)
    assert summary.review == store.uri(f"review/model={partition_name}/{digest}")
    assert {name.split("/")[2] for name in names_in(store, "review")} == {digest}
    single = f"single/model={partition_name}/predictions-{digest}.parquet"
    assert names_in(store, "single") == [csv_path(single), single]
    assert pq.read_metadata(summary.single).num_rows == COUNT + 1
