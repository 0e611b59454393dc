"""The ingest worker: pictures that change, vanish, or cannot be read while a unit runs."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from afinar import open_dataset
from afinar.config.ingest import StoreKind
from afinar.dataset.manifest import read_tables
from afinar.dataset.schema import OUTCOMES
from afinar.errors import ForbiddenError, StorageError
from afinar.ingestion.plan import ShardTask
from afinar.ingestion.worker import Outcome, build_shard, make_batch_builder, process_picture
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.sources.entry import Entry
from afinar.storage.folder_reader import FolderReader
from afinar.storage.markers import read_marker
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from afinar.units.quarantine import ATTEMPTS
from tests.archives import fail_reads, ingest
from tests.conftest import jpeg, make_archive

PICTURE = jpeg(1)


def entry(sample_id: str | None = None) -> Entry:
    return Entry("a.jpg", "/s/a.jpg", "e1", len(PICTURE), sample_id, "shards/1", 7)


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_decoded_picture_is_the_next_row_of_the_batch(store: StoreKind) -> None:
    batch = make_batch_builder(StoredView(size=32, fit="pad", store=store))
    for row in range(2):
        outcome = process_picture(entry(), PICTURE, batch, frozenset())
        assert outcome == {"sample_id": sha256(PICTURE), "row": row}
    taken = batch.take_batch()
    assert taken.column("sample_id").to_pylist() == [sha256(PICTURE)] * 2
    assert taken.column("width").to_pylist() == [80, 80]
    assert (batch.count, batch.added) == (0, 2)


def test_known_content_is_not_decoded() -> None:
    batch = make_batch_builder(StoredView(size=32, fit="pad"))
    outcome = process_picture(entry(sha256(PICTURE)), PICTURE, batch, frozenset())
    assert outcome == {"sample_id": sha256(PICTURE), "shard": "shards/1", "row": 7}
    assert batch.count == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PICTURE, "forgotten"),
        (b"", "empty"),
        (PictureError(Reason.FORBIDDEN, "403"), "forbidden"),
    ],
)
def test_unusable_picture_is_a_reject_and_leaves_the_batch_unchanged(
    data: bytes | PictureError, reason: str
) -> None:
    batch = make_batch_builder(StoredView(size=32, fit="pad"))
    outcome = process_picture(entry(), data, batch, frozenset({sha256(PICTURE)}))
    assert outcome["reason"] == reason
    assert batch.count == 0


def test_file_replaced_after_listing_is_rejected(archive: Path, tmp_path: Path) -> None:
    replaced = archive / "moss" / "000.jpg"

    class ReplacingExecutor(InlineExecutor):
        """Replaces a listed file before the first unit runs."""

        def run(self, make_work: Any, tasks: Iterable[Any], policy: Any = None) -> Iterator[Any]:
            replaced.write_bytes(jpeg(7777, (90, 90)))
            os.utime(replaced, ns=(1, 1))
            return super().run(make_work, tasks, policy)

    summary = ingest(archive, tmp_path / "dataset", ReplacingExecutor())
    assert summary.rejects_by_reason == {"changed_while_reading": 1}


def test_files_rewritten_during_ingest_are_each_read_in_one_state(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    rewritten = sorted(archive.rglob("*.jpg"))[::4]
    states = {
        str(path): (path.read_bytes(), jpeg(60_000 + number))
        for number, path in enumerate(rewritten)
    }
    stop = threading.Event()

    def rewrite() -> None:
        rng = random.Random(0)
        while not stop.is_set():
            path = rng.choice(rewritten)
            # In place: a reader may read half of the old and half of the new state.
            path.write_bytes(states[str(path)][rng.randrange(2)])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for number in range(3):
            ingest(archive, tmp_path / f"dataset-{number}", max_reject_rate=0.5)
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        dataset = open_dataset(str(tmp_path / f"dataset-{number}"))
        rows = dataset.index.to_pylist()
        assert len(rows) + len(dataset.rejects) == 120
        for row, image in zip(rows, dataset.read(range(len(rows))), strict=True):
            whole = states.get(row["uri"]) or (Path(row["uri"]).read_bytes(),)
            data = {sha256(state): state for state in whole}[row["sample_id"]]
            np.testing.assert_array_equal(image, decode(data, dataset.view).image)
        assert {row["reason"] for row in dataset.rejects.to_pylist()} <= {
            "changed_while_reading",
            "empty",
        }


def test_dangling_link_is_a_reject_name_that_is_not_utf_8_is_read(
    archive: Path, tmp_path: Path
) -> None:
    (archive / "moss" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    Path(os.fsdecode(os.fsencode(archive / "rust") + b"/\xff\xfe.jpg")).write_bytes(jpeg(1))
    summary = ingest(archive, tmp_path / "dataset", max_reject_rate=0.2)
    assert (summary.listed, summary.samples, summary.rejects_by_reason) == (26, 25, {"missing": 1})


def test_picture_in_folder_with_name_that_is_not_utf_8_is_read(
    archive: Path, tmp_path: Path
) -> None:
    folder = Path(os.fsdecode(os.fsencode(archive) + b"/mo\xff\xfess"))
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg(3))
    summary = ingest(archive, tmp_path / "dataset")
    assert (summary.samples, summary.rejects) == (25, 0)
    assert "mo\\xff\\xfess" in summary.classes


def test_forbidden_pictures_are_rejects_but_a_store_without_access_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "pictures", 40)
    fail_reads(monkeypatch, archive / "moss", ForbiddenError("403"))
    summary = ingest(archive, tmp_path / "dataset", max_reject_rate=1.0)
    assert (summary.samples, summary.rejects_by_reason) == (40, {"forbidden": 40})

    def exists(self: FolderReader) -> bool:
        if self.root == str(archive):
            raise StorageError("credentials have expired")
        return True

    class ExpiringExecutor(InlineExecutor):
        """Makes the credentials expire once the source is listed."""

        def run(self, make_work: Any, tasks: Iterable[Any], policy: Any = None) -> Iterator[Any]:
            monkeypatch.setattr(FolderReader, "exists", exists)
            return super().run(make_work, tasks, policy)

    with pytest.raises(StorageError, match="20 pictures in a row"):
        ingest(archive, tmp_path / "other", ExpiringExecutor())


def test_a_retried_unit_skips_the_pictures_at_which_two_attempts_died(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "dataset"))
    listing = list(open_store(str(archive)).walk())
    entries = tuple(
        Entry(info.name, f"{archive}/{info.name}", info.etag, info.size) for info in listing
    )
    for name in ("3-1", "3-2", "7-3"):
        store.put_if_absent(f"{ATTEMPTS}/00000001-unit/{name}", b"")
    tried = []

    def record(entry: Entry, *more: Any) -> Outcome:
        tried.append([info.name for info in store.walk(ATTEMPTS)])
        return process_picture(entry, *more)

    monkeypatch.setattr("afinar.ingestion.worker.process_picture", record)
    task = ShardTask(
        unit="00000001-unit",
        entries=entries,
        attempt=4,
        source=str(archive),
        dataset=store.root,
        view=StoredView(size=32, fit="pad"),
    )
    assert build_shard(task).rejects == 1
    assert len(tried) == len(entries) - 1
    assert all(len(names) == 4 for names in tried), "an attempt file lies there during each decode"
    assert not list(store.walk(ATTEMPTS)), "the attempt that commits the unit deletes them"
    [facts] = read_tables(
        store, [read_marker(store, task.unit).objects["facts"]], OUTCOMES, required=["uri"]
    )
    rejects = facts.filter(pc.is_valid(facts.column("reason")))
    assert rejects.column("uri").to_pylist() == [entries[3].uri]
    assert rejects.column("reason").to_pylist() == ["killed_worker"]
