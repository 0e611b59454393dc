"""Content of a version: index, rejects, counts, and differences from the version before."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.dataset.schema import INDEX, OUTCOMES, REJECTS
from afinar.dataset.splits import Repeats, hash_position
from afinar.ingestion.version import (
    Changes,
    Content,
    changes_between,
    class_notes,
    content_of,
    counts_of,
    repeat_notes,
)
from afinar.sources.entry import LISTING, SPLITS
from afinar.storage.objects import sha256
from tests.archives import ingest
from tests.conftest import jpeg, make_archive
from tests.executors import RecordingExecutor

CONFIG = IngestConfig(source="/s", dataset="/d", split="1,0,0")


def table(schema: pa.Schema, *rows: Mapping[str, object]) -> pa.Table:
    """Return a table; columns that a row leaves out are null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def test_content_has_each_listed_picture_as_sample_or_reject() -> None:
    listing = table(
        LISTING,
        {"uri": "a.jpg", "etag": "e1", "size": 1, "label": "cat", "split": "test"},
        {"uri": "b.jpg", "etag": "e2", "size": 1, "label": "dog"},
        {"uri": "c.jpg", "etag": "e3", "size": 1, "label": "dog", "group": "burst"},
    )
    outcomes = table(
        OUTCOMES,
        {"uri": "a.jpg", "etag": "e1", "sample_id": "x", "shard": "s", "row": 0},
        {"uri": "b.jpg", "etag": "e2", "reason": "empty", "detail": "0 bytes"},
        {"uri": "c.jpg", "etag": "e3", "sample_id": "y", "shard": "s", "row": 1},
    )
    content = content_of(listing, outcomes, CONFIG)
    assert content.index.schema == INDEX
    assert content.rejects.schema == REJECTS
    assert content.index.select(["uri", "label", "split", "group", "row"]).to_pylist() == [
        {"uri": "a.jpg", "label": "cat", "split": "test", "group": None, "row": 0},
        {"uri": "c.jpg", "label": "dog", "split": "train", "group": "burst", "row": 1},
    ]
    assert content.rejects.column("reason").to_pylist() == ["empty"]
    assert counts_of(content) == {
        "listed": 3,
        "samples": 2,
        "rejects": 1,
        "rejects_by_reason": {"empty": 1},
        "splits": {"train": 1, "validation": 0, "test": 1},
        "labels": {"cat": 1, "dog": 1},
        "repeats": {"duplicates": 0, "held_out": 0, "two_labels": 0},
        "shares": [1.0, 0.0, 0.0],
    }


def test_content_with_one_picture_under_two_labels_holds_it_out() -> None:
    listing = table(
        LISTING,
        {"uri": "a.jpg", "etag": "e1", "size": 1, "label": "cat"},
        {"uri": "b.jpg", "etag": "e2", "size": 1, "label": "dog"},
    )
    same = {"sample_id": "x", "shard": "s", "row": 0}
    outcomes = table(
        OUTCOMES,
        {"uri": "a.jpg", "etag": "e1", **same},
        {"uri": "b.jpg", "etag": "e2", **same},
    )
    content = content_of(listing, outcomes, CONFIG)
    assert content.index.column("split").to_pylist() == [None, None]
    assert content.repeats == Repeats(duplicates=1, held_out=0, two_labels=2)


def test_picture_without_outcome_is_an_error() -> None:
    listing = table(LISTING, {"uri": "a.jpg", "etag": "e1", "size": 1})
    outcomes = table(OUTCOMES, {"uri": "a.jpg", "etag": "e1"})
    with pytest.raises(AssertionError, match="a sample or a reject"):
        content_of(listing, outcomes, CONFIG)


def test_erased_pictures_do_not_count_against_the_budget() -> None:
    rejects = table(
        REJECTS,
        {"uri": "a.jpg", "etag": "e1", "reason": "forgotten"},
        {"uri": "b.jpg", "etag": "e2", "reason": "empty"},
    )
    assert Content(INDEX.empty_table(), rejects, Repeats(), None).unusable == 1
    assert Content(INDEX.empty_table(), REJECTS.empty_table(), Repeats(), None).unusable == 0


def test_changes_of_relabelled_removed_and_renamed_pictures_are_counted() -> None:
    before = table(
        INDEX,
        {"uri": "a.jpg", "sample_id": "x", "label": "cat"},
        {"uri": "b.jpg", "sample_id": "y", "label": "cat"},
        {"uri": "d.jpg", "sample_id": "z"},
        {"uri": "e.jpg", "sample_id": "v"},
    )
    now = table(
        INDEX,
        {"uri": "a.jpg", "sample_id": "x", "label": "dog"},
        {"uri": "c.jpg", "sample_id": "y", "label": "cat"},
        {"uri": "d.jpg", "sample_id": "z2"},
    )
    listing = table(LISTING, *({"uri": f"{name}.jpg"} for name in "acde"))
    assert changes_between(before, listing, now) == Changes(
        added=1, changed=1, removed=1, unchanged=1, relabelled=1, renamed=1
    ), "e.jpg is listed but rejected now, so it was not removed"


def test_changes_from_no_version_are_additions() -> None:
    now = table(INDEX, {"uri": "a.jpg", "sample_id": "x", "label": "cat"})
    listing = table(LISTING, {"uri": "a.jpg"})
    assert changes_between(INDEX.empty_table(), listing, now) == Changes(
        added=1, changed=0, removed=0, unchanged=0, relabelled=0, renamed=0
    )


def test_notes_name_repeats_and_classes_that_changed() -> None:
    assert repeat_notes(Repeats()) == []
    notes = repeat_notes(Repeats(duplicates=5, held_out=2, two_labels=3))
    assert [note.split()[0] for note in notes] == ["5", "2", "3"]
    assert class_notes([], []) == []
    assert class_notes(["cat", "dog"], ["bird"]) == [
        "new classes: cat, dog",
        "vanished classes: bird",
    ]


def test_copies_across_splits_stay_in_test_and_leave_train(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "source" / "train", 6).parent
    make_archive(source / "test", 2)
    for path in (source / "test").rglob("*.jpg"):
        path.write_bytes(jpeg(hash(path.name + path.parent.name) % 10_000 + 50_000))
    shutil.copy(source / "train" / "moss" / "000.jpg", source / "test" / "moss" / "copy.jpg")
    summary = ingest(source, tmp_path / "dataset", split="folder")
    assert summary.repeats == {"duplicates": 1, "held_out": 1, "two_labels": 0}
    assert any("1 copies are in no split" in note for note in summary.notes)
    opened = open_dataset(str(tmp_path / "dataset"))
    by_uri = {row["uri"]: row["split"] for row in opened.index.to_pylist()}
    assert by_uri[str(source / "test" / "moss" / "copy.jpg")] == "test"
    assert by_uri[str(source / "train" / "moss" / "000.jpg")] is None
    assert sum(summary.splits.values()) == summary.samples - 1


def test_one_content_under_two_labels_is_in_no_split_until_one_is_gone(
    archive: Path, tmp_path: Path
) -> None:
    shutil.copy(archive / "moss" / "000.jpg", archive / "rust" / "same.jpg")
    summary = ingest(archive, tmp_path / "dataset")
    assert summary.repeats == {"duplicates": 1, "held_out": 0, "two_labels": 2}
    splits = {
        row["uri"]: row["split"]
        for row in open_dataset(str(tmp_path / "dataset")).index.to_pylist()
    }
    assert splits[str(archive / "rust" / "same.jpg")] is None
    assert splits[str(archive / "moss" / "000.jpg")] is None

    (archive / "rust" / "same.jpg").unlink()
    reads = RecordingExecutor()
    summary = ingest(archive, tmp_path / "dataset", reads)
    assert (reads.names, summary.repeats["two_labels"]) == ([], 0)
    assert sum(summary.splits.values()) == 24, "without the contradiction both pictures count"


def splits_by_content(dataset: str) -> dict[str, str]:
    index = open_dataset(dataset).index
    return dict(
        zip(index.column("sample_id").to_pylist(), index.column("split").to_pylist(), strict=True)
    )


def test_small_classes_are_in_every_split_and_keep_their_splits(tmp_path: Path) -> None:
    archive, dataset = tmp_path / "pictures", str(tmp_path / "dataset")
    make_archive(archive, 40)
    for name, count in (("slate", 3), ("chalk", 4), ("flint", 5)):
        (archive / name).mkdir()
        for number in range(count):
            (archive / name / f"{number}.jpg").write_bytes(jpeg(10_000 * count + number))
    summary = ingest(archive, dataset)
    assert any("fewer than 5 pictures in test: chalk (1)" in note for note in summary.notes)
    first = splits_by_content(dataset)
    assert {(row["label"], row["split"]) for row in open_dataset(dataset).index.to_pylist()} == {
        (label, split) for label in summary.classes for split in SPLITS
    }

    # One picture is relabelled, one removed, one renamed; three are added.
    (archive / "slate" / "0.jpg").rename(archive / "chalk" / "from-slate.jpg")
    (archive / "flint" / "0.jpg").unlink()
    (archive / "moss" / "003.jpg").rename(archive / "moss" / "renamed.jpg")
    for number in range(3):
        (archive / "slate" / f"new-{number}.jpg").write_bytes(jpeg(70_000 + number))
    ingest(archive, dataset)
    second = splits_by_content(dataset)
    assert len(second.keys() - first.keys()) == 3
    assert all(second[content] == first[content] for content in second.keys() & first.keys())

    other_seed = ingest(archive, dataset, seed=1)
    assert other_seed.units_run == 0
    assert splits_by_content(dataset) != second, "another seed assigns splits anew"


def test_picture_that_was_moved_to_train_stays_when_its_class_grows(tmp_path: Path) -> None:
    archive, dataset = make_archive(tmp_path / "pictures", 40), str(tmp_path / "dataset")
    (archive / "slate").mkdir()
    files = (jpeg(seed) for seed in range(60_000, 61_000))
    single = next(data for data in files if hash_position(sha256(data), 0) > 0.9)  # test, by hash
    (archive / "slate" / "single.jpg").write_bytes(single)
    ingest(archive, dataset)
    assert splits_by_content(dataset)[sha256(single)] == "train", "no class is without training"
    for number in range(30):
        (archive / "slate" / f"{number}.jpg").write_bytes(jpeg(62_000 + number))
    ingest(archive, dataset)
    assert splits_by_content(dataset)[sha256(single)] == "train"


def test_carved_splits_are_kept_until_a_folder_goes(tmp_path: Path) -> None:
    source, dataset = tmp_path / "pictures", str(tmp_path / "dataset")
    make_archive(source / "train", 30)
    (source / "val" / "moss").mkdir(parents=True)
    (source / "val" / "moss" / "000.jpg").write_bytes(jpeg(90_000))
    ingest(source, dataset, split="folder")
    first = splits_by_content(dataset)
    assert set(first.values()) == set(SPLITS)
    (source / "train" / "moss" / "new.jpg").write_bytes(jpeg(80_000))
    ingest(source, dataset, split="folder")
    assert splits_by_content(dataset).items() >= first.items()
    shutil.rmtree(source / "val")
    counts = ingest(source, dataset, split="folder").splits
    assert counts["validation"] > 0, "carved out of train"
