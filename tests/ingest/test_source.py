"""Sources of an ingest: labels and splits that they give, and sources that are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afinar import open_dataset
from afinar.errors import RequestError
from tests.archives import ingest
from tests.conftest import jpeg, make_archive
from tests.datasets import values_by_file
from tests.executors import RecordingExecutor


@pytest.mark.parametrize(
    ("folder", "extensions", "words"),
    [
        ("pictures", ".tif", "holds no pictures"),
        ("nowhere", ".jpg", "does not exist"),
        ("one class", ".jpg", "only the class 'moss'"),
        ("pictures/moss", ".jpg", "no class folders"),
    ],
)
def test_unusable_source_is_refused_and_nothing_written(
    archive: Path, tmp_path: Path, folder: str, extensions: str, words: str
) -> None:
    assert archive == tmp_path / "pictures"
    make_archive(tmp_path / "one class", 2, ("moss",))
    with pytest.raises(RequestError, match=words):
        ingest(tmp_path / folder, tmp_path / "dataset", extensions=extensions)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_without_permission_is_refused_not_skipped(archive: Path, tmp_path: Path) -> None:
    (archive / "rust").chmod(0)
    try:
        with pytest.raises(RequestError, match="cannot list"):
            ingest(archive, tmp_path / "dataset")
    finally:
        (archive / "rust").chmod(0o755)


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
def test_unusable_label_table_is_refused(
    flat: Path, tmp_path: Path, table: str | None, words: str
) -> None:
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(RequestError, match=words):
        ingest(flat, tmp_path / "dataset", labels=str(tmp_path / "labels.csv"))
    with pytest.raises(RequestError, match=r"ends in \.csv or \.parquet"):
        ingest(flat, tmp_path / "dataset", labels="folders")


def test_labels_of_csv_table_are_those_of_the_index(flat: Path, tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(
        f"uri,label,note\n0.jpg,007,x\n{flat}/1.jpg,NA,\n2.jpg,007,\n9.jpg,NA,\n3.jpg,,\n"
    )
    summary = ingest(flat, tmp_path / "dataset", labels=str(csv))
    labels = values_by_file(open_dataset(str(tmp_path / "dataset")).index, "label")
    assert labels == {"0.jpg": "007", "1.jpg": "NA", "2.jpg": "007"} | {
        f"{n}.jpg": None for n in range(3, 8)
    }
    assert summary.classes == ["007", "NA"]
    assert any("5 of 8 pictures are not in" in note for note in summary.notes)
    assert any("1 rows of" in note and "name no picture" in note for note in summary.notes)


def test_splits_of_parquet_table_are_kept_others_drawn_by_share(flat: Path, tmp_path: Path) -> None:
    parquet = tmp_path / "labels.parquet"
    columns = {"label": ["b", "a"], "uri": ["0.jpg", "1.jpg"], "split": ["test", "train"]}
    pq.write_table(pa.table(columns), parquet)
    ingest(flat, tmp_path / "dataset", labels=str(parquet), split="0,1,0")
    splits = values_by_file(open_dataset(str(tmp_path / "dataset")).index, "split")
    assert (splits["0.jpg"], splits["1.jpg"], splits["2.jpg"]) == ("test", "train", "validation")


def test_row_without_value_is_ignored(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label\n0.jpg,\n0.jpg,cat\n,dog\n,bird\n1.jpg,dog\n")
    (tmp_path / "groups.csv").write_text("uri,group\n0.jpg,\n0.jpg,burst\n")
    tables = {"labels": str(tmp_path / "labels.csv"), "group": str(tmp_path / "groups.csv")}
    summary = ingest(flat, tmp_path / "dataset", **tables)
    index = open_dataset(str(tmp_path / "dataset")).index
    assert values_by_file(index, "label")["0.jpg"] == "cat"
    assert values_by_file(index, "group")["0.jpg"] == "burst"
    assert any(
        "6 of 8 pictures are not in" in note and "no label" in note for note in summary.notes
    )


def test_splits_by_folder_are_kept_and_missing_ones_carved_out_of_train(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, (split, count) in enumerate({"train": 40, "val": 4, "test": 4}.items()):
        for label in ("a", "b"):
            (source / split / label).mkdir(parents=True)
            for position in range(count):
                seed = 10_000 * number + 100 * position + (label == "b")
                (source / split / label / f"{split}-{label}-{position}.jpg").write_bytes(jpeg(seed))
    summary = ingest(source, tmp_path / "dataset", split="folder")
    assert summary.classes == ["a", "b"]
    assert summary.splits == {"train": 80, "validation": 8, "test": 8}
    splits = values_by_file(open_dataset(str(tmp_path / "dataset")).index, "split")
    assert {(name.split("-")[0], split) for name, split in splits.items()} == {
        ("train", "train"), ("val", "validation"), ("test", "test"),
    }  # fmt: skip

    shutil.rmtree(source / "val")
    reads = RecordingExecutor()
    summary = ingest(source, tmp_path / "dataset", reads, split="folder")
    assert reads.names == []
    assert summary.splits["test"] == 8
    assert 0 < summary.splits["validation"] < 40, "carved out of train"
    assert summary.splits["train"] + summary.splits["validation"] == 80

    (source / "extra" / "a").mkdir(parents=True)
    (source / "extra" / "a" / "x.jpg").write_bytes(jpeg(1))
    with pytest.raises(RequestError, match="'extra', which is not a split"):
        ingest(source, tmp_path / "dataset", split="folder")


def test_pictures_of_one_group_are_in_one_split(flat: Path, tmp_path: Path) -> None:
    csv = tmp_path / "groups.csv"
    csv.write_text("uri,group\n" + "".join(f"{n}.jpg,patient-{n // 4}\n" for n in range(8)))
    for seed in range(6):
        dataset = tmp_path / f"d{seed}"
        options = {"labels": "none", "group": str(csv), "split": "0.5,0.25,0.25"}
        ingest(flat, dataset, seed=seed, **options)
        index = open_dataset(str(dataset)).index
        splits = values_by_file(index, "split")
        assert (
            len({splits[f"{n}.jpg"] for n in range(4)})
            == len({splits[f"{n}.jpg"] for n in range(4, 8)})
            == 1
        )
        assert values_by_file(index, "group")["5.jpg"] == "patient-1"
