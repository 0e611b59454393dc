"""Labels, splits and groups of a listing, from folders and tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from afinar.errors import RequestError
from afinar.sources.annotations import alike_notes, annotate
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


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "valid", "test"),
        ("training", "testing"),
        ("Train", "Val"),
        ("TRAIN", "dev", "test"),
        ("validation", "test"),
    ],
)
def test_splits_are_not_taken_for_classes(folders: tuple[str, ...]) -> None:
    names = [f"{folder}/cats/1.jpg" for folder in folders]
    with pytest.raises(RequestError, match="these are splits, not classes.*--split folder"):
        annotations_of(*names)
    if folders[0].lower().startswith("train"):
        annotated = annotations_of(*names, by_folder=True)
        assert values(annotated, "label") == ["cats"] * len(folders)
        assert values(annotated, "split")[0] == "train"
    assert values(annotations_of(*names, labels="none"), "label") == [None] * len(folders)


@pytest.mark.parametrize(
    ("folders", "is_noted"),
    [
        (("train", "bus", "car"), False),
        (("test", "pass", "fail"), False),
        (("val", "test", "other"), False),
        (("train", "test", "other"), True),
    ],
)
def test_classes_may_be_called_like_splits(folders: tuple[str, ...], is_noted: bool) -> None:
    annotated = annotations_of(*(f"{folder}/1.jpg" for folder in folders))
    assert values(annotated, "label") == list(folders)
    assert any("are called like splits" in note for note in annotated.notes) == is_noted


@pytest.mark.parametrize(
    ("written", "split"),
    [("val", "validation"), ("Train", "train"), ("dev", "validation"), (" testing ", "test")],
)
def test_names_of_splits_in_a_table_are_accepted(written: str, split: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"uri,label,split\n1.jpg,a,{written}\n2.jpg,b,\n")
    annotated = annotations_of("1.jpg", "2.jpg", labels=str(path))
    assert values(annotated, "split") == [split, None]
    path.write_text("uri,label,split\n1.jpg,a,holdout\n")
    with pytest.raises(RequestError, match="the split 'holdout' is none of train, validation, t"):
        annotations_of("1.jpg", labels=str(path))


def test_rows_written_in_any_way_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = [f"{number} x.jpg" for number in range(6)]
    here = "../" * (len(tmp_path.parts) - 1) + "archive/"
    ways = ["./{}", "/archive//{}", "../archive/{}", "file:///archive/{}", here + "{}", "{}"]
    rows = [way.format(name) for way, name in zip(ways, listed, strict=True)]
    rows[3] = rows[3].replace(" ", "%20")
    (tmp_path / "groups.csv").write_text("uri,group\n" + "".join(f"{row},g\n" for row in rows))
    annotated = annotations_of(*listed, labels="none", group="groups.csv")
    assert values(annotated, "group") == ["g"] * 6
    assert annotated.notes == []


def test_table_of_which_no_row_matches_is_refused_with_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("uri,label\np\\1.jpg,a\np\\2.jpg,b\n")
    with pytest.raises(RequestError) as refused:
        annotations_of("1.jpg", "2.jpg", labels="labels.csv")
    message = str(refused.value)
    assert message.startswith("0 of 2 rows of --labels labels.csv name a picture of /archive")
    assert f"looked for at /archive/p\\1.jpg and at {tmp_path}/p\\1.jpg" in message


def test_classes_that_look_alike_are_named() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = ["Dog", "dog", "dog ", composed, decomposed, "cat", "zero\u200bwidth", "zerowidth"]
    (note,) = alike_notes(names)
    assert "'Dog' and 'dog' and 'dog '" in note
    assert "caf\\xe9" in note and "cafe\\u0301" in note
    assert "zero\\u200bwidth" in note
    assert "cat" not in note
    assert alike_notes(["cat", "cats", "dog"]) == []
    (note,) = alike_notes([name for number in range(8) for name in (f"a{number}", f"A{number}")])
    assert "and 3 more groups" in note
