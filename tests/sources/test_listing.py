"""Listings of a source."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.sources.entry import LISTING
from afinar.sources.listing import (
    classes_of,
    fingerprint,
    list_pictures,
    names_of,
    update_digest,
)
from tests.storage.keys import put_keys


def test_listing_is_sorted_and_has_files_with_the_endings_only(
    archive: Path, tmp_path: Path
) -> None:
    (archive / "moss" / "notes.txt").write_text("not listed")
    (archive / "moss" / "UPPER.JPG").write_bytes(b"listed")
    listing = list_pictures(str(archive), (".jpg",)).listing
    assert listing.schema == LISTING
    uris = listing.column("uri").to_pylist()
    assert uris == sorted(uris)
    assert set(uris) == {
        str(path) for path in archive.rglob("*") if path.suffix in {".jpg", ".JPG"}
    }
    assert listing.column("size").to_pylist() == [Path(uri).stat().st_size for uri in uris]
    assert names_of(listing, f"{archive}/")[0].as_py() == "moss/000.jpg"
    assert len(list_pictures(str(archive), None).listing) == len(listing) + 1


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "does not exist"), ("pictures", "holds no pictures")]
)
def test_source_without_pictures_is_refused(archive: Path, folder: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        list_pictures(str(archive.parent / folder), (".tif",))


def test_fingerprint_does_not_depend_on_chunks(archive: Path) -> None:
    listing = list_pictures(str(archive), None).listing
    chunked = pa.concat_tables([listing.slice(0, 5), listing.slice(5)])
    assert fingerprint(chunked) == fingerprint(listing)
    assert fingerprint(listing.slice(1)) != fingerprint(listing)


def test_digest_is_that_of_the_rows_as_text() -> None:
    rows = pa.table({"uri": ["x.jpg", "a.jpg", "b.jpg"], "etag": ["e0", "e1", None]})
    digest = hashlib.sha256()
    update_digest(digest, rows.slice(0, 0), ("uri", "etag"))
    update_digest(digest, rows.slice(1, 1), ("uri", "etag"))
    assert digest.hexdigest() == hashlib.sha256(b"a.jpg\te1\t\n").hexdigest()


def test_classes_are_sorted_labels_without_null() -> None:
    assert classes_of(pa.table({"label": ["rust", None, "moss", "rust"]})) == ["moss", "rust"]


def test_files_with_other_endings_are_counted_by_ending(archive: Path) -> None:
    for name in ("a.txt", "b.TXT", "c.heic", "README", "d.name with blanks", "moss/.hidden"):
        (archive / name).write_bytes(b"1")
    for name in ("e.webp", "f.JFIF", "g.tif"):
        (archive / "moss" / name).write_bytes(b"1")
    for number in range(30):
        (archive / f"scan.{number:06d}").write_bytes(b"1")
    endings = IngestConfig(source="a", dataset="b").endings
    listed = list_pictures(str(archive), endings)
    assert len(listed.listing) == 24 + 3
    counted = {name: n for name, n in listed.left_out.items() if not name.startswith(".0")}
    assert counted == {
        "with other endings": 12,
        "without ending": 2,
        ".txt": 2,
        "hidden": 1,
    }, "twenty endings are counted one by one"
    assert sum(listed.left_out.values()) == 36
    assert list_pictures(str(archive), None).left_out == {"hidden": 1}


def test_source_without_pictures_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"1")
    with pytest.raises(RequestError, match=r"no pictures \(.jpg, .png\); it holds 1 .heic: check"):
        list_pictures(str(tmp_path), (".jpg", ".png"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("p.zip", "is an archive: unpack it"),
        ("p.tar.gz", "is an archive: unpack it"),
        ("p.JPG", "is one picture: name its folder"),
        ("p.webp", "is one picture"),
        ("p.bin", "is a file: name a folder"),
        ("p", "is a file: name a folder"),
    ],
)
def test_file_in_place_of_a_folder_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(RequestError, match=words):
        list_pictures(str(tmp_path / name), (".jpg",))


def test_object_in_place_of_a_prefix_is_named(bucket: str) -> None:
    put_keys(bucket, ["p.zip"])
    with pytest.raises(RequestError, match="is an archive: unpack it"):
        list_pictures(f"{bucket}/p.zip", (".jpg",))


def test_pipe_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jpg")
    with pytest.raises(RequestError, match="neither a folder nor a regular file"):
        list_pictures(str(tmp_path / "p.jpg"), None)


def test_what_afinar_has_written_is_left_out_of_a_source(location: str) -> None:
    put_keys(location, ["cats/1.jpg", "runs/2.jpg", "versions/3.jpg", "versions/00000001.json"])
    for folder, kind in {"manifests": "dataset", "versions": "model"}.items():
        record = json.dumps({"format": f"afinar-{kind}/1"}).encode()
        put_keys(f"{location}/a/{kind}", [f"{folder}/00000001.json"], record)
        put_keys(f"{location}/a/{kind}", ["runs/1/plot.jpg", "shards/x.arrow", "golden/y.bin"])
    put_keys(f"{location}/own", ["shards/z.arrow", "shards/z.jpg"])  # nothing is published yet
    for endings in ((".jpg",), None):
        listed = list_pictures(location, endings, f"{location}/own")
        names = names_of(listed.listing, location).to_pylist()
        expected = ["cats/1.jpg", "runs/2.jpg", "versions/3.jpg"]
        others = ["versions/00000001.json"] if endings is None else []
        assert sorted(names) == sorted(expected + others)
        counts = dict.fromkeys([".json"], 1) if endings else {}
        assert listed.left_out == {"afinar folder": 3, **counts}
