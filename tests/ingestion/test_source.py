"""Sources of an ingest: labels and splits that they give, and sources that are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig
from afinar.config.status import StatusConfig
from afinar.errors import RequestError
from afinar.ingestion.estimate import forecast_ingest
from afinar.ingestion.forget import run_forget
from afinar.report.status import read_status
from afinar.units.executor import InlineExecutor
from tests.archives import ingest, interrupt_addition
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


def test_refusal_of_one_class_names_what_was_left_out(tmp_path: Path) -> None:
    """The other class has only files of a kind that is not read."""
    make_archive(tmp_path / "pictures", 2, ("moss",))
    (tmp_path / "pictures/rust").mkdir()
    (tmp_path / "pictures/rust/1.xyz").write_bytes(b"?")
    with pytest.raises(RequestError, match=r"only the class 'moss'.* Left out: 1 \.xyz\."):
        ingest(tmp_path / "pictures", tmp_path / "dataset", extensions=".jpg")


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
    with pytest.raises(RequestError, match=r"ends in .csv, .tsv or .parquet"):
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


def test_default_takes_every_format_and_records_what_is_left_out(
    archive: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "red").save(archive / "moss" / "a.webp")
    Image.new("RGB", (40, 30), "blue").save(archive / "rust" / "b.tif")
    (archive / "moss" / "@eaDir").mkdir()
    (archive / "notes.txt").write_text("not a picture")
    left_out = {".txt": 1, "@eaDir": 1}
    dataset = tmp_path / "dataset"
    forecast = forecast_ingest(IngestConfig(source=str(archive), dataset=str(dataset)))
    assert (forecast.listed, forecast.left_out) == (26, left_out)
    first = ingest(archive, dataset)
    assert (first.samples, first.left_out) == (26, left_out)
    assert read_status(StatusConfig(path=str(dataset)))["left_out"] == left_out

    (archive / "more.txt").write_text("not a picture")
    again = ingest(archive, dataset)
    assert again.version == 1, "what is left out does not make a version"
    assert again.left_out == {".txt": 2, "@eaDir": 1}
    narrower = ingest(archive, dataset, extensions=".jpg,.webp,.tif")
    assert narrower.version == 1, "the same pictures are the same dataset"


def test_interrupted_ingest_keeps_what_its_listing_left_out(archive: Path, tmp_path: Path) -> None:
    (archive / "notes.txt").write_text("not a picture")
    dataset = str(tmp_path / "dataset")
    interrupt_addition(archive, dataset)
    assert ingest(archive, dataset).left_out == {".txt": 1}
    assert read_status(StatusConfig(path=dataset))["left_out"] == {".txt": 1}


def test_dataset_in_its_own_source_is_left_out(archive: Path, tmp_path: Path) -> None:
    for _ in range(2):
        summary = ingest(archive, archive / "rust" / "dataset", extensions="all")
        assert (summary.version, summary.samples, summary.rejects) == (1, 24, 0)
    summary = ingest(archive, tmp_path / "another", extensions="all")
    assert (summary.samples, summary.left_out) == (24, {"afinar folder": 1})
    with pytest.raises(RequestError, match="is the source as well as the target"):
        ingest(archive, archive)


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_list_is_ingested_missing_pictures_are_rejects(
    ending: str, archive: Path, tmp_path: Path
) -> None:
    names = [str(path.relative_to(tmp_path)) for path in sorted(archive.rglob("*.jpg"))]
    rows = [f"./{name}" for name in names] + ["pictures/moss/gone.jpg"]
    listed = tmp_path / f"list.{ending}"
    listed.write_text("\n".join([*(["uri"] if ending == "csv" else []), *rows]))
    dataset = tmp_path / "dataset"
    forecast = forecast_ingest(IngestConfig(source=str(listed), dataset=str(dataset)))
    assert (forecast.listed, forecast.requests["HEAD"]) == (25, 25)
    summary = ingest(listed, dataset)
    assert (summary.samples, summary.rejects_by_reason) == (24, {"missing": 1})
    assert summary.classes == ["moss", "rust"]
    index = open_dataset(str(dataset)).index
    assert index.column("uri").to_pylist() == [str(tmp_path / name) for name in names]

    (archive / "moss" / "gone.jpg").write_bytes(jpeg(99))
    reads = RecordingExecutor()
    assert ingest(listed, dataset, reads).samples == 25
    assert len(reads.names) == 1, "only the picture that was missing is read"
    assert ingest(listed, dataset).version == 2
    config = ForgetConfig(path=str(dataset), uris=("pictures/moss/gone.jpg",))
    assert run_forget(config, InlineExecutor()).pictures == 1


def test_columns_of_a_list_are_labels_splits_and_groups(archive: Path, tmp_path: Path) -> None:
    names = [path.relative_to(tmp_path) for path in sorted(archive.rglob("*.jpg"))]
    splits = ["train", "val", "test"]
    rows = [f"{name},L{n % 2},{splits[n % 3]},g{n}" for n, name in enumerate(names)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["uri,label,split,group", *rows]))
    summary = ingest(listed, tmp_path / "dataset")
    assert (summary.classes, summary.splits["validation"]) == (["L0", "L1"], 8)
    assert len(set(open_dataset(str(tmp_path / "dataset")).index["group"].to_pylist())) == 24
    assert ingest(listed, tmp_path / "bare", labels="none").classes == []

    other = tmp_path / "labels.csv"
    other.write_text("uri,label\n" + "".join(f"{name},M{n % 3}\n" for n, name in enumerate(names)))
    assert ingest(listed, tmp_path / "by-table", labels=str(other)).classes == ["M0", "M1", "M2"]
    with pytest.raises(RequestError, match="is a list. Give it a column `split`"):
        ingest(listed, tmp_path / "x", split="folder")


def test_notes_name_classes_that_look_alike_and_pictures_in_no_class(
    archive: Path, tmp_path: Path
) -> None:
    (archive / "Moss").mkdir()
    (archive / "Moss" / "1.jpg").write_bytes(jpeg(5))
    (archive / "stray.jpg").write_bytes(jpeg(6))
    notes = ingest(archive, tmp_path / "dataset").notes
    assert any("'Moss' and 'moss'" in note for note in notes)
    assert any(note.endswith(f"for example {archive}/stray.jpg") for note in notes)
