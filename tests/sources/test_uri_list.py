"""Lists of URIs: each picture is looked up, in a listing of its folder or by itself."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from afinar.errors import RequestError, StorageError
from afinar.sources import uri_list
from afinar.sources.uri_list import MISSING, list_named
from afinar.storage.folder_reader import FolderReader
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_store
from afinar.storage.store import ObjectInfo, Store


def put_list(store: Store, name: str, uris: list[str]) -> str:
    """Write a list as CSV and return its uri."""
    sink = io.StringIO()
    csv.writer(sink).writerows([["box", "uri"], *(["7", uri] for uri in uris)])
    store.put_if_absent(name, sink.getvalue().encode())
    return store.uri(name)


def test_list_names_most_of_a_bucket_folder_it_is_listed_with_the_same_result(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket)
    names = [f"dense/{number}" for number in range(6)]
    names += [f"sparse-{number}/x" for number in range(2)]
    for name in [*names, "dense/not-named", "dense/.hidden"]:
        store.put_if_absent(name, name.encode())
    listed = put_list(store, "list.csv", [*names, "dense/.hidden", "dense/gone"])
    one_by_one = list_named(listed)
    assert one_by_one.notes == [f"1 of 10 pictures of {listed} do not exist"]

    looked_up = []
    real = MultiStore.stat

    def stat(self: MultiStore, uri: str) -> ObjectInfo:
        looked_up.append(uri)
        return real(self, uri)

    monkeypatch.setattr(uri_list, "_LIST_FROM", 5)
    monkeypatch.setattr(MultiStore, "stat", stat)
    listing = list_named(listed).listing
    assert listing == one_by_one.listing
    assert {uri.removeprefix(f"{bucket}/") for uri in looked_up} == {
        "sparse-0/x",
        "sparse-1/x",
        "dense/.hidden",
        "dense/gone",
    }
    columns = (listing.column(name).to_pylist() for name in ("uri", "etag"))
    etags = dict(zip(*columns, strict=True))
    expected = {info.uri: info.etag for info in store.walk() if info.name in names}
    assert {uri: etags[uri] for uri in expected} == expected
    assert etags[f"{bucket}/dense/gone"] == MISSING


def test_list_cannot_be_used_error_has_the_reason(tmp_path: Path, s3_server: str) -> None:
    store = open_store(str(tmp_path))
    store.put_if_absent("no-uri.csv", b"name\na.jpg\n")
    for uris, message in (
        (["https://example.org/a.jpg"], "https://example.org/a.jpg"),
        (["s3://bucket-alone"], "only files and s3://BUCKET/KEY"),
        ([""], "names no picture"),
    ):
        store.delete("list.csv")
        with pytest.raises(RequestError, match=message):
            list_named(put_list(store, "list.csv", uris))
    with pytest.raises(RequestError, match="no column 'uri'"):
        list_named(f"{tmp_path}/no-uri.csv")
    with pytest.raises(RequestError, match="no such table"):
        list_named(f"{tmp_path}/nothing.csv")

    store.delete("list.csv")
    uris = ["s3://there-is-no-such-bucket/a.jpg", ".", "a.jpg"]
    listing = list_named(put_list(store, "list.csv", uris)).listing
    assert set(listing.column("etag").to_pylist()) == {MISSING}, "no bucket, a folder, no file"


def test_store_does_not_answer_lookup_ends_after_some_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FolderReader, name: str) -> Any:
        raise StorageError("no answer in time")

    monkeypatch.setattr(FolderReader, "stat", fail)
    store = open_store(str(tmp_path))
    few = put_list(store, "few.csv", [f"{number}.jpg" for number in range(5)])
    etags = set(list_named(few).listing.column("etag").to_pylist())
    assert etags == {"unreadable"}, "a few may be readable all the same"
    many = put_list(store, "many.csv", [f"{number}.jpg" for number in range(50)])
    with pytest.raises(RequestError, match="no answer in time"):
        list_named(many)
