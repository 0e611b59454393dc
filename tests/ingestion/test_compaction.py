"""Rewriting shards with many dead rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar import open_dataset
from afinar.dataset.schema import INDEX
from afinar.ingestion import driver
from afinar.ingestion.compaction import (
    LiveRows,
    count_live,
    plan_compaction,
    remap_index,
    shards_to_compact,
)
from afinar.ingestion.plan import shard_pictures
from afinar.pictures.preprocessing import StoredView
from afinar.storage.markers import UnitMarker
from afinar.storage.objects import ObjectRef
from tests.archives import ingest
from tests.conftest import make_archive
from tests.datasets import assert_pixels_match_files, shard_names
from tests.executors import RecordingExecutor

VIEW = StoredView(size=32, fit="pad")


def shard(name: str, rows: int) -> ObjectRef:
    return ObjectRef(path=f"shards/{name}", rows=rows, bytes=0, sha256="0" * 64)


def index(**rows: list[int]) -> pa.Table:
    """Return an index whose samples have these rows of the shards."""
    records = [
        {"uri": f"{name}/{number}", "shard": f"shards/{name}", "row": row}
        for name, live in rows.items()
        for number, row in enumerate(live)
    ]
    return pa.Table.from_pylist(records, schema=INDEX)


def test_shard_over_the_limit_of_dead_rows_is_chosen_with_its_live_rows() -> None:
    shards = [shard("a", 10), shard("b", 10), shard("c", 10)]
    table = index(a=[9, 2, 3, 4, 5, 6, 7, 8], b=[9, 2, 3, 4, 5, 6, 7])
    assert shards_to_compact(table, shards) == [LiveRows(shards[1], (2, 3, 4, 5, 6, 7, 9))], (
        "a has 20 % dead rows, which is not over the limit; c has no live row"
    )


def test_row_of_several_copies_counts_once() -> None:
    assert count_live(index(a=[0, 0, 1])) == {"shards/a": 2}


def test_live_rows_fill_new_shards_in_order() -> None:
    view = StoredView(size=668, fit="pad")
    assert shard_pictures(view) == 100
    live = {"a": 60, "b": 30, "c": 50}
    worn = [LiveRows(shard(name, 200), tuple(range(rows))) for name, rows in live.items()]
    tasks = plan_compaction(worn, "/dataset", 3, view)
    assert [task.pictures for task in tasks] == [90, 50]
    assert [source.shard.path for source in tasks[0].sources] == ["shards/a", "shards/b"]
    assert all(task.unit.startswith("00000003-") for task in tasks)
    assert plan_compaction(worn, "/dataset", 3, view) == tasks


@given(st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=6))
def test_remapped_index_names_the_row_that_holds_the_sample(live: list[set[int]]) -> None:
    names = [f"s{number}" for number in range(len(live))]
    table = index(**{name: sorted(rows) for name, rows in zip(names, live, strict=True)})
    sources = [
        LiveRows(shard(name, 31), tuple(sorted(rows)))
        for name, rows in zip(names, live, strict=True)
    ]
    tasks = plan_compaction(sources[::2], "/dataset", 2, VIEW)
    markers = [UnitMarker(unit=task.unit, objects={"shard": shard("new", 0)}) for task in tasks]
    remapped = remap_index(table, tasks, markers)

    (task,) = tasks
    copied = [(source.shard.path, row) for source in task.sources for row in source.rows]
    for old, new in zip(table.to_pylist(), remapped.to_pylist(), strict=True):
        if old["shard"] in {source.shard.path for source in task.sources}:
            assert new["shard"] == "shards/new"
            assert copied[new["row"]] == (old["shard"], old["row"])
        else:
            assert new == old


def test_shard_with_many_dead_rows_is_rewritten_and_no_other(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = tmp_path / "dataset"
    reads = RecordingExecutor()
    first = ingest(archive, dataset)
    assert first.units_run == 2
    before = shard_names(dataset)
    index = open_dataset(str(dataset)).index.to_pylist()
    of_one_shard = [Path(row["uri"]) for row in index if row["shard"] == index[0]["shard"]]
    for picture in of_one_shard[:5]:
        picture.unlink()
    summary = ingest(archive, dataset, reads)
    assert (reads.names, summary.shards_compacted, shard_names(dataset)) == ([], 0, before), (
        "5 of 60 dead rows are below the limit"
    )
    for picture in of_one_shard[5:15]:
        picture.unlink()
    summary = ingest(archive, dataset, reads)
    assert (reads.names, summary.shards_compacted, summary.removed) == ([], 1, 10)
    assert len(shard_names(dataset) - before) == 1
    opened = open_dataset(str(dataset))
    assert len(set(opened.index.column("shard").to_pylist())) == 2
    assert_pixels_match_files(opened)
    old = open_dataset(str(dataset), version=1)
    assert len(old.read(range(120))) == 120, "the old version can still be read"
    summary = ingest(archive, dataset)
    assert "nothing to do" in summary.notes[0]


def test_interrupted_compaction_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = tmp_path / "dataset"
    ingest(archive, dataset)
    for number in range(30):
        (archive / "moss" / f"{number:03d}.jpg").unlink()
    with monkeypatch.context() as patch:

        def interrupted(*_: Any) -> bool:
            raise KeyboardInterrupt

        patch.setattr(driver, "publish_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest(archive, dataset)
    after_kill = shard_names(dataset)
    assert open_dataset(str(dataset)).manifest.version == 1
    summary = ingest(archive, dataset)
    assert (summary.version, shard_names(dataset)) == (2, after_kill), "no shard is rewritten again"
    assert_pixels_match_files(open_dataset(str(dataset)))
