"""Every store keeps the same promises: a folder and a real S3 server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ChangedError, IntegrityError, NotFoundError, RequestError
from pipeline.storage.commit import (
    UnitMarker,
    commit_unit,
    committed_units,
    latest,
    publish,
    publish_next,
    read_marker,
    require_put_if_absent,
)
from pipeline.storage.objects import ObjectRef, get_object, local_copy, put_object
from pipeline.storage.store import Store, normalise, open_store


@pytest.fixture
def store(location: str) -> Store:
    return open_store(location)


def test_what_was_put_is_read_back_and_listed(store: Store) -> None:
    assert store.put_if_absent("a/b.txt", b"one")
    assert store.put_if_absent("a/c.txt", b"three")
    assert store.put_if_absent(".hidden/d.txt", b"four")
    assert store.get("a/b.txt") == b"one"
    listed = sorted(store.walk(), key=lambda info: info.name)
    assert [(info.name, info.size, info.uri) for info in listed] == [
        ("a/b.txt", 3, store.uri("a/b.txt")),
        ("a/c.txt", 5, store.uri("a/c.txt")),
    ]


def test_a_second_put_changes_nothing(store: Store) -> None:
    assert store.put_if_absent("x", b"first")
    assert not store.put_if_absent("x", b"second")
    assert store.get("x") == b"first"


def test_of_sixteen_writers_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: store.put_if_absent("race", str(number).encode()), range(16)))
    assert won.count(True) == 1
    assert store.get("race") == str(won.index(True)).encode()


def test_reading_under_a_stale_mark_is_refused(store: Store) -> None:
    store.put_if_absent("picture", b"old")
    (listed,) = store.walk()
    assert store.get("picture", listed.etag) == b"old"
    store.delete("picture")
    store.put_if_absent("picture", b"new bytes")
    with pytest.raises(ChangedError):
        store.get("picture", listed.etag)


def test_a_missing_object_is_not_found(store: Store) -> None:
    store.put_if_absent("other", b"")
    with pytest.raises(NotFoundError):
        store.get("nothing")
    store.delete("nothing")


def test_the_probe_accepts_a_store_that_enforces_put_if_absent(store: Store) -> None:
    require_put_if_absent(store)
    assert list(store.walk("probes")) == []


def test_a_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    from pipeline.storage.local import LocalStore

    class Overwriting(LocalStore):
        def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
            self.delete(name)
            return super().put_if_absent(name, data)

    with pytest.raises(RequestError, match="If-None-Match"):
        require_put_if_absent(Overwriting(str(tmp_path)))


def test_versions_are_numbered_and_belong_to_one_owner(store: Store) -> None:
    assert latest(store, "manifests") is None
    assert publish(store, "manifests", 1, {"n": 1}, "me")
    assert publish(store, "manifests", 1, {"n": 1}, "me"), "a lost reply answers 'taken' to our own retry"
    assert not publish(store, "manifests", 1, {"n": 2}, "you")
    assert publish_next(store, "manifests", lambda number, _: {"n": number}, "you") == 2
    found = latest(store, "manifests")
    assert found is not None
    assert (found[0], found[1]["n"]) == (2, 2)


def test_twenty_publishers_get_twenty_versions(store: Store) -> None:
    with ThreadPoolExecutor(10) as pool:
        owners = [f"owner-{number}" for number in range(10)]
        numbers = list(pool.map(lambda owner: publish_next(store, "v", lambda n, _: {"n": n}, owner), owners))
    assert sorted(numbers) == list(range(1, 11))


def test_a_unit_committed_twice_keeps_its_first_marker(store: Store) -> None:
    ref = ObjectRef(path="shards/a", rows=1, bytes=1, sha256="0")
    first = UnitMarker(unit="u1", objects={"shard": ref})
    twin = UnitMarker(unit="u1", objects={})
    assert commit_unit(store, first) == first
    assert commit_unit(store, twin) == first
    assert read_marker(store, "u1") == first
    assert committed_units(store) == {"u1"}


def test_bytes_that_are_not_the_committed_ones_are_refused(store: Store, tmp_path: Path) -> None:
    ref = put_object(store, "shards/u-{hash}.arrow", b"pixels", 1)
    assert get_object(store, ref) == b"pixels"
    assert local_copy(store, ref, tmp_path / "cache").read_bytes() == b"pixels"
    store.delete(ref.path)
    store.put_if_absent(ref.path, b"pixelz")
    with pytest.raises(IntegrityError, match="not what was committed"):
        get_object(store, ref)
    with pytest.raises(IntegrityError):
        local_copy(store, ref, tmp_path / "another cache")


def test_locations_are_written_one_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise("pictures/") == str(tmp_path / "pictures")
    assert normalise("file:///data") == "/data"
    assert normalise("s3://bucket/a/") == "s3://bucket/a"
    for wrong in ("gs://bucket/a", "s3://", "  "):
        with pytest.raises(RequestError):
            normalise(wrong)


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    store = open_store(str(tmp_path))
    assert [info.name for info in store.walk()] == ["real/a.jpg"]
