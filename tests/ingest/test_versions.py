"""What a source says of its pictures, and what a second version costs: labels, splits, groups, copies, moves."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig, SplitShares
from afinar.dataset.reader import Dataset
from afinar.dataset.splits import assign_splits, exclude_duplicates
from afinar.errors import RequestError
from afinar.ingest.driver import IngestSummary, run_ingest
from afinar.ingest.forget import run_forget
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.storage.local import LocalStore
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import jpeg, make_archive
from tests.ingest.test_ingest import CountingExecutor


def ingest(
    source: Path | str, dataset: Path | str, **options: Any
) -> tuple[IngestSummary, list[str]]:
    """Ingest; the summary, and the names of the pictures that were read."""
    executor = CountingExecutor()
    config = IngestConfig(**{"source": str(source), "dataset": str(dataset), "size": 32, **options})
    summary = run_ingest(config, executor).summary
    return summary, sorted(Path(uri).name for uri in executor.uris)


def shards_in(dataset: Path | str) -> set[str]:
    return {info.name for info in open_store(str(dataset)).walk("shards")}


def column(dataset: Dataset, name: str) -> dict[str, Any]:
    """A column of the index by file name."""
    uris = dataset.index.column("uri").to_pylist()
    return {
        Path(uri).name: value
        for uri, value in zip(uris, dataset.index.column(name).to_pylist(), strict=True)
    }


def require_pixels_of_files(dataset: Dataset) -> None:
    rows = dataset.index.to_pylist()
    for row, image in zip(rows, dataset.read(range(len(rows))), strict=True):
        np.testing.assert_array_equal(
            image, decode(Path(row["uri"]).read_bytes(), dataset.view).image
        )


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Eight pictures in one folder."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def test_labels_come_from_a_table(flat: Path, tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(
        f"uri,label,note\n0.jpg,007,x\n{flat}/1.jpg,NA,\n2.jpg,007,\n9.jpg,NA,\n3.jpg,,\n"
    )
    summary, _ = ingest(flat, tmp_path / "dataset", labels=str(csv))
    labels = column(open_dataset(str(tmp_path / "dataset")), "label")
    assert labels == {"0.jpg": "007", "1.jpg": "NA", "2.jpg": "007"} | {
        f"{n}.jpg": None for n in range(3, 8)
    }
    assert summary.classes == ["007", "NA"]
    assert any("5 of 8 pictures are not in" in note for note in summary.notes)
    assert any("1 rows of" in note and "name no picture" in note for note in summary.notes)

    parquet = tmp_path / "labels.parquet"
    pq.write_table(
        pa.table({"label": ["b", "a"], "uri": ["0.jpg", "1.jpg"], "split": ["test", "train"]}),
        parquet,
    )
    ingest(flat, tmp_path / "other", labels=str(parquet), split="0,1,0")
    splits = column(open_dataset(str(tmp_path / "other")), "split")
    assert (splits["0.jpg"], splits["1.jpg"], splits["2.jpg"]) == ("test", "train", "validation")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("uri,label\n0.jpg,a\n0.jpg,b\n", "more than one label"),
        ("name,label\n0.jpg,a\n", "no column 'uri'"),
        ("uri,klass\n0.jpg,a\n", "no column 'label'"),
        ("uri,label,split\n0.jpg,a,exam\n1.jpg,b,test\n", "'exam' is none of"),
        ("uri,label\n0.jpg,a\n1.jpg,a\n", "only the class 'a'"),
        ("", "not a readable table"),
        (None, "there is no such table"),
    ],
)
def test_a_label_table_that_cannot_serve_is_refused(
    flat: Path, tmp_path: Path, table: str | None, words: str
) -> None:
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(RequestError, match=words):
        ingest(flat, tmp_path / "dataset", labels=str(tmp_path / "labels.csv"))
    with pytest.raises(RequestError, match=r"ends in \.csv or \.parquet"):
        ingest(flat, tmp_path / "dataset", labels="folders")


def test_a_row_without_a_value_says_nothing(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label\n0.jpg,\n0.jpg,cat\n,dog\n,bird\n1.jpg,dog\n")
    (tmp_path / "groups.csv").write_text("uri,group\n0.jpg,\n0.jpg,burst\n")
    summary, _ = ingest(
        flat,
        tmp_path / "dataset",
        labels=str(tmp_path / "labels.csv"),
        group=str(tmp_path / "groups.csv"),
    )
    opened = open_dataset(str(tmp_path / "dataset"))
    assert column(opened, "label")["0.jpg"] == "cat"
    assert column(opened, "group")["0.jpg"] == "burst"
    assert any(
        "6 of 8 pictures are not in" in note and "no label" in note for note in summary.notes
    )


def test_a_corrected_label_reads_no_picture_and_writes_no_shard(flat: Path, tmp_path: Path) -> None:
    csv, dataset = tmp_path / "labels.csv", tmp_path / "dataset"
    csv.write_text("uri,label\n" + "".join(f"{n}.jpg,{'ab'[n % 2]}\n" for n in range(8)))
    ingest(flat, dataset, labels=str(csv))
    shards = shards_in(dataset)
    csv.write_text(csv.read_text().replace("3.jpg,b", "3.jpg,c"))
    summary, read = ingest(flat, dataset, labels=str(csv))
    assert (read, shards_in(dataset)) == ([], shards)
    assert (summary.version, summary.relabelled, summary.unchanged, summary.new_classes) == (
        2,
        1,
        8,
        ["c"],
    )
    assert "new classes: c" in summary.notes
    assert column(open_dataset(str(dataset)), "label")["3.jpg"] == "c"

    csv.write_text(csv.read_text().replace("3.jpg,c", "3.jpg,b"))
    summary, read = ingest(flat, dataset, labels=str(csv))
    assert (read, summary.vanished_classes) == ([], ["c"])


def test_a_renamed_or_touched_picture_is_not_decoded_again(archive: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    ingest(archive, dataset)
    shards = shards_in(dataset)
    (archive / "moss" / "000.jpg").rename(archive / "moss" / "zero.jpg")
    (archive / "moss" / "001.jpg").rename(archive / "rust" / "moved.jpg")
    (archive / "moss" / "002.jpg").touch()
    summary, read = ingest(archive, dataset)
    assert read == ["002.jpg", "moved.jpg", "zero.jpg"], (
        "their content is looked at, and found known"
    )
    assert shards_in(dataset) == shards
    assert (
        summary.added,
        summary.renamed,
        summary.changed,
        summary.unchanged,
        summary.removed,
    ) == (2, 2, 0, 22, 2)
    opened = open_dataset(str(dataset))
    assert column(opened, "label")["moved.jpg"] == "rust"
    require_pixels_of_files(opened)


def test_same_mark_is_no_proof_of_same_content(archive: Path, tmp_path: Path) -> None:
    import os

    dataset = tmp_path / "dataset"
    old = archive / "moss" / "000.jpg"
    ingest(archive, dataset)
    status = old.stat()
    data = jpeg(4242)
    new = archive / "rust" / "000b.jpg"
    new.write_bytes(data[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(new, ns=(status.st_mtime_ns, status.st_mtime_ns))
    ingest(archive, dataset, max_reject_rate=0.5)
    index = open_dataset(str(dataset)).index
    ids = dict(
        zip(index.column("uri").to_pylist(), index.column("sample_id").to_pylist(), strict=True)
    )
    assert ids.get(str(new)) != ids[str(old)]


def test_splits_come_from_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, (split, count) in enumerate({"train": 40, "val": 4, "test": 4}.items()):
        for label in ("a", "b"):
            (source / split / label).mkdir(parents=True)
            for position in range(count):
                seed = 10_000 * number + 100 * position + (label == "b")
                (source / split / label / f"{split}-{label}-{position}.jpg").write_bytes(jpeg(seed))
    summary, _ = ingest(source, tmp_path / "dataset", split="folder")
    assert summary.classes == ["a", "b"]
    assert summary.splits == {"train": 80, "validation": 8, "test": 8}
    splits = column(open_dataset(str(tmp_path / "dataset")), "split")
    assert {(name.split("-")[0], split) for name, split in splits.items()} == {
        ("train", "train"), ("val", "validation"), ("test", "test"),
    }  # fmt: skip

    shutil.rmtree(source / "val")
    summary, read = ingest(source, tmp_path / "dataset", split="folder")
    assert read == []
    assert summary.splits["test"] == 8
    assert 0 < summary.splits["validation"] < 40, "carved out of train"
    assert summary.splits["train"] + summary.splits["validation"] == 80

    (source / "extra" / "a").mkdir(parents=True)
    (source / "extra" / "a" / "x.jpg").write_bytes(jpeg(1))
    with pytest.raises(RequestError, match="'extra', which is not a split"):
        ingest(source, tmp_path / "dataset", split="folder")


def test_a_group_is_never_split(flat: Path, tmp_path: Path) -> None:
    csv = tmp_path / "groups.csv"
    csv.write_text("uri,group\n" + "".join(f"{n}.jpg,patient-{n // 4}\n" for n in range(8)))
    for seed in range(6):
        ingest(
            flat,
            tmp_path / f"d{seed}",
            labels="none",
            group=str(csv),
            seed=seed,
            split="0.5,0.25,0.25",
        )
        opened = open_dataset(str(tmp_path / f"d{seed}"))
        splits = column(opened, "split")
        assert (
            len({splits[f"{n}.jpg"] for n in range(4)})
            == len({splits[f"{n}.jpg"] for n in range(4, 8)})
            == 1
        )
        assert column(opened, "group")["5.jpg"] == "patient-1"


def test_copies_across_splits_stay_in_test_and_leave_train(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "source" / "train", 6).parent
    make_archive(source / "test", 2)
    for picture in (source / "test").rglob("*.jpg"):
        picture.write_bytes(jpeg(hash(picture.name + picture.parent.name) % 10_000 + 50_000))
    shutil.copy(source / "train" / "moss" / "000.jpg", source / "test" / "moss" / "copy.jpg")
    summary, _ = ingest(source, tmp_path / "dataset", split="folder")
    assert summary.repeats == {"duplicates": 1, "held_out": 1, "two_labels": 0}
    assert any("1 copies are in no split" in note for note in summary.notes)
    opened = open_dataset(str(tmp_path / "dataset"))
    by_uri = {row["uri"]: row["split"] for row in opened.index.to_pylist()}
    assert by_uri[str(source / "test" / "moss" / "copy.jpg")] == "test"
    assert by_uri[str(source / "train" / "moss" / "000.jpg")] is None
    assert sum(summary.splits.values()) == summary.samples - 1


def test_one_content_under_two_labels_is_in_no_split(archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive / "moss" / "000.jpg", archive / "rust" / "same.jpg")
    summary, _ = ingest(archive, tmp_path / "dataset")
    assert summary.repeats == {"duplicates": 1, "held_out": 0, "two_labels": 2}
    splits = {
        row["uri"]: row["split"]
        for row in open_dataset(str(tmp_path / "dataset")).index.to_pylist()
    }
    assert splits[str(archive / "rust" / "same.jpg")] is None
    assert splits[str(archive / "moss" / "000.jpg")] is None

    (archive / "rust" / "same.jpg").unlink()
    summary, read = ingest(archive, tmp_path / "dataset")
    assert (read, summary.repeats["two_labels"]) == ([], 0)
    assert sum(summary.splits.values()) == 24, (
        "once the contradiction is gone both its pictures count again"
    )


samples_of = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from(["x", "y", None]),
        st.sampled_from(["train", "test", None]),
    ),
    min_size=1,
    max_size=40,
)


@given(samples_of)
def test_no_content_is_in_two_splits_or_under_two_labels(
    rows: list[tuple[str, str | None, str | None]],
) -> None:
    ids, labels, given_splits = zip(*rows, strict=True)
    columns = {"sample_id": ids, "label": labels, "split": given_splits, "group": [None] * len(ids)}
    table = pa.table(
        {
            name: pa.chunked_array([pa.array(values, pa.string())])
            for name, values in columns.items()
        }
    )
    first = assign_splits(table, SplitShares(0.5, 0.25, 0.25), 0, carve=False)
    splits, repeats = exclude_duplicates(table.set_column(2, "split", pa.chunked_array([first])))
    assert repeats.duplicates == len(ids) - len(set(ids))
    assert repeats.held_out + repeats.two_labels <= len(ids)
    for content in set(ids):
        mine = [split for key, split in zip(ids, splits.to_pylist(), strict=True) if key == content]
        seen = {label for key, label in zip(ids, labels, strict=True) if key == content} - {None}
        before = {
            split for key, split in zip(ids, first.to_pylist(), strict=True) if key == content
        }
        if len(seen) > 1:
            assert set(mine) == {None}
        else:
            assert len(set(mine) - {None}) == 1
            assert ("test" in mine) == ("test" in before)


def test_a_worn_shard_is_rewritten_and_nothing_else(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = tmp_path / "dataset"
    first, _ = ingest(archive, dataset)
    assert first.units_run == 2
    before = shards_in(dataset)
    for number in range(5):
        (archive / "moss" / f"{number:03d}.jpg").unlink()
    summary, read = ingest(archive, dataset)
    assert (read, summary.shards_compacted, shards_in(dataset)) == ([], 0, before), (
        "5 of 60 dead is no wear"
    )
    for number in range(5, 15):
        (archive / "moss" / f"{number:03d}.jpg").unlink()
    summary, read = ingest(archive, dataset)
    assert (read, summary.shards_compacted, summary.removed) == ([], 1, 10)
    assert len(shards_in(dataset) - before) == 1
    opened = open_dataset(str(dataset))
    assert len(set(opened.index.column("shard").to_pylist())) == 2
    require_pixels_of_files(opened)
    old = open_dataset(str(dataset), version=1)
    assert len(old.read(range(120))) == 120, "the old version still reads"
    summary, _ = ingest(archive, dataset)
    assert "nothing to do" in summary.notes[0]


def test_an_interrupted_compaction_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.ingest import driver

    archive = make_archive(tmp_path / "pictures", 60)
    dataset = tmp_path / "dataset"
    ingest(archive, dataset)
    for number in range(30):
        (archive / "moss" / f"{number:03d}.jpg").unlink()
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> bool:
            raise KeyboardInterrupt

        patch.setattr(driver, "publish_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(archive, dataset)
    after_kill = shards_in(dataset)
    assert open_dataset(str(dataset)).manifest.version == 1
    summary, _ = ingest(archive, dataset)
    assert (summary.version, shards_in(dataset)) == (2, after_kill), (
        "what was compacted is not compacted again"
    )
    require_pixels_of_files(open_dataset(str(dataset)))


def test_a_jpeg_store_is_smaller_and_equals_labelling_from_files(
    archive: Path, tmp_path: Path
) -> None:
    ingest(archive, tmp_path / "pixels", size=128)
    ingest(archive, tmp_path / "jpeg", size=128, store="jpeg")
    opened = open_dataset(str(tmp_path / "jpeg"))
    assert opened.view == StoredView(size=128, fit="crop", store="jpeg")
    require_pixels_of_files(opened)

    def size(name: str) -> int:
        return sum(info.size for info in open_store(str(tmp_path / name)).walk("shards"))

    assert size("jpeg") < size("pixels") / 2
    for number in range(6):
        (archive / "moss" / f"{number:03d}.jpg").unlink()
    summary, _ = ingest(archive, tmp_path / "jpeg", size=128, store="jpeg")
    assert summary.shards_compacted == 1
    require_pixels_of_files(open_dataset(str(tmp_path / "jpeg")))


def test_another_preprocessing_begins_a_lineage_and_says_so(archive: Path, tmp_path: Path) -> None:
    first, _ = ingest(archive, tmp_path / "dataset")
    again, _ = ingest(archive, tmp_path / "dataset", split="0.5,0.25,0.25")
    other, read = ingest(archive, tmp_path / "dataset", split="0.5,0.25,0.25", size=48)
    assert (first.lineage, again.lineage, other.lineage) == (1, 1, 3)
    assert len(read) == 24
    assert "version 3 begins a new lineage: the preprocessing changed" in other.notes


def test_an_ingest_and_an_erasure_read_each_object_of_the_parent_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    ingest(archive, dataset)
    opened = open_dataset(dataset)
    objects = {entry.ref.path for entry in opened.objects} | {opened.manifest.objects.path}
    reads: Counter[str] = Counter()
    real = LocalStore.get

    def counted(self: LocalStore, name: str, etag: str | None = None) -> bytes:
        reads[name] += 1
        return real(self, name, etag)

    monkeypatch.setattr(LocalStore, "get", counted)
    (archive / "moss" / "new.jpg").write_bytes(jpeg(9000))
    summary, _ = ingest(archive, dataset)
    assert (summary.version, summary.added) == (2, 1)
    read = {name: count for name, count in reads.items() if name in objects}
    assert set(read.values()) == {1}
    assert {name.split("/")[0] for name in read} == {"lists", "index", "rejects"}

    current = open_dataset(dataset)
    named = {entry.ref.path for entry in current.objects if entry.kind != "shard"}
    reads.clear()
    run_forget(ForgetConfig(dataset=dataset, uris=("moss/new.jpg",)), InlineExecutor())
    assert {reads[name] for name in named} == {1}
