"""Labels, splits and groups of a listing, from folders and tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from afinar.errors import RequestError
from afinar.sources.annotations import annotate
from afinar.sources.entry import LISTING
from afinar.sources.listing import AnnotatedListing
from afinar.sources.tables import read_table
from afinar.sources.uris import absolute_uris


def annotations_of(
    *names: str, labels: str = "folder", by_folder: bool = False, group: str = ""
) -> AnnotatedListing:
    """Annotate pictures of the source /archive."""
    rows = [{"uri": f"/archive/{name}", "etag": "e", "size": 1} for name in names]
    listing = pa.Table.from_pylist(rows, schema=LISTING)
    annotated = AnnotatedListing(listing)
    annotate(annotated, "/archive", labels=labels, split_by_folder=by_folder, group=group)
    return annotated


def values(annotated: AnnotatedListing, column: str) -> list[str | None]:
    result: list[str | None] = annotated.listing.column(column).to_pylist()
    return result


def test_label_is_the_first_folder() -> None:
    annotated = annotations_of("cats/1.jpg", "dogs/old/2.jpg", "3.jpg")
    assert values(annotated, "label") == ["cats", "dogs", None]
    assert values(annotated, "split") == [None, None, None]
    (note,) = annotated.notes
    assert "1 pictures lie directly in /archive" in note
    assert note.endswith("for example /archive/3.jpg")


def test_split_is_the_first_folder_and_label_the_second() -> None:
    annotated = annotations_of(
        "train/cats/1.jpg", "val/cats/2.jpg", "test/dogs/3.jpg", "train/4.jpg", by_folder=True
    )
    assert values(annotated, "split") == ["train", "validation", "test", "train"]
    assert values(annotated, "label") == ["cats", "cats", "dogs", None]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/a/1.jpg", "exam/a/2.jpg"), "'exam', which is not a split"),
        (("train/a/1.jpg", "2.jpg"), "a picture in no folder"),
        (("test/a/1.jpg",), "no folder train/"),
    ],
)
def test_folders_that_are_no_splits_are_refused(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        annotations_of(*names, by_folder=True)


def test_table_gives_labels_splits_and_groups(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label,split\n1.jpg,007,test\n/archive/2.jpg,NA,\n")
    (tmp_path / "groups.csv").write_text("uri,group\n1.jpg,burst\n9.jpg,burst\n")
    labels, group = str(tmp_path / "labels.csv"), str(tmp_path / "groups.csv")
    annotated = annotations_of("1.jpg", "2.jpg", labels=labels, group=group)
    assert values(annotated, "label") == ["007", "NA"]
    assert values(annotated, "split") == ["test", None]
    assert values(annotated, "group") == ["burst", None]
    assert [note.split()[:4] for note in annotated.notes] == [
        ["1", "of", "2", "pictures"],
        ["1", "rows", "of", "--group"],
        ["1", "of", "2", "pictures"],
    ]


def test_table_with_two_values_of_one_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label\n1.jpg,a\n/archive/1.jpg,b\n")
    with pytest.raises(RequestError, match="gives /archive/1.jpg more than one label"):
        annotations_of("1.jpg", labels=str(tmp_path / "labels.csv"))


def test_csv_values_are_text_and_only_empty_fields_null(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label,other\n1.jpg,007,x\n2.jpg,NA,\n3.jpg,,\n")
    table = read_table("--labels", str(tmp_path / "labels.csv"), "label")
    assert table.column_names == ["uri", "label"]
    assert table.column("label").to_pylist() == ["007", "NA", None]


def test_relative_uris_are_relative_to_the_source() -> None:
    uris = pa.chunked_array([["a.jpg", "/b.jpg", "s3://bucket/c.jpg"]], pa.large_string())
    assert absolute_uris(uris, "/archive/").to_pylist() == [
        "/archive/a.jpg",
        "/b.jpg",
        "s3://bucket/c.jpg",
    ]
