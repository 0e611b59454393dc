"""Every store keeps the same promises: a folder and a real S3 server."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from afinar.errors import (
    ChangedError,
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    RequestError,
    StorageError,
)
from afinar.storage.cache import Cache, open_verified
from afinar.storage.etags import EtagVerifier
from afinar.storage.markers import UnitMarker, commit_unit, committed_units, read_marker
from afinar.storage.objects import ObjectRef, ObjectWriter, get_object, put_object
from afinar.storage.open import normalize_uri, open_reader, open_store
from afinar.storage.parallel_listing import ParallelLister
from afinar.storage.store import Buffer, ObjectInfo, Store
from afinar.storage.versions import append_version, latest, probe_conditional_put, publish


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


def test_any_buffer_can_be_put(store: Store) -> None:
    numbers: Buffer = memoryview(array("i", range(5)))
    buffers: list[Buffer] = [b"ab", bytearray(b"ab"), memoryview(b"ab"), numbers]
    for name, data in zip("abcd", buffers, strict=True):
        assert store.put_if_absent(name, data)
        assert store.get(name) == bytes(data)
    ref = put_object(store, "{hash}", numbers, 5)
    assert ref.bytes == 20
    assert get_object(store, ref) == bytes(numbers)


def test_names_are_taken_as_they_are(store: Store) -> None:
    names = [
        "a b+c.jpg",
        "%41.jpg",
        "ü#?&=.jpg",
        "x~'\"<>.jpg",
        "😀/a*[b]{c}|^`.jpg",
        "tab\tnl\n.jpg",
        "a..b/c...jpg",
        "c. ",
    ]
    for name in names:
        store.put_if_absent(name, name.encode())
    listed = {info.name: info.etag for info in store.walk()}
    assert sorted(listed) == sorted(names)
    for name, etag in listed.items():
        assert store.get(name, etag) == name.encode()


def test_a_deep_and_a_wide_tree_are_listed_whole(store: Store) -> None:
    names = [
        f"{a}/{b}/{c}/{number}" for a in "xy" for b in "ab" for c in "ij" for number in range(3)
    ]
    names += [f"wide/{number:04d}" for number in range(1050)] + [
        "top",
        ".hidden/x",
        "x/.hidden/x",
        "x/a/.hidden",
    ]
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda name: store.put_if_absent(name, b""), names))
    found = [info.name for info in store.walk()]
    assert sorted(found) == sorted(name for name in names if "hidden" not in name)
    assert (
        sorted(info.name for info in store.walk("x/a"))
        == [name for name in sorted(names) if name.startswith("x/a/")][1:]
    )
    assert list(store.walk("nowhere")) == []
    walk = store.walk()
    next(walk)
    walk.close()  # type: ignore[attr-defined]


def test_a_second_put_changes_nothing(store: Store) -> None:
    assert store.put_if_absent("x", b"first")
    assert not store.put_if_absent("x", b"second")
    assert store.get("x") == b"first"


def test_of_sixteen_writers_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(
            pool.map(lambda number: store.put_if_absent("race", str(number).encode()), range(16))
        )
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
    probe_conditional_put(store)
    assert list(store.walk("probes")) == []


def test_a_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    from afinar.storage.local import LocalStore

    class Overwriting(LocalStore):
        def put_if_absent(self, name: str, data: Buffer) -> bool:
            self.delete(name)
            return super().put_if_absent(name, data)

    with pytest.raises(RequestError, match="If-None-Match"):
        probe_conditional_put(Overwriting(str(tmp_path)))


def test_versions_are_numbered_and_belong_to_one_owner(store: Store) -> None:
    assert latest(store, "manifests") is None
    assert publish(store, "manifests", 1, {"n": 1}, "me")
    assert publish(store, "manifests", 1, {"n": 1}, "me"), (
        "a lost reply answers 'taken' to our own retry"
    )
    assert not publish(store, "manifests", 1, {"n": 2}, "you")
    assert append_version(store, "manifests", lambda number, _: {"n": number}, "you") == 2
    found = latest(store, "manifests")
    assert found is not None
    assert (found[0], found[1]["n"]) == (2, 2)


def test_twenty_publishers_get_twenty_versions(store: Store) -> None:
    with ThreadPoolExecutor(10) as pool:
        owners = [f"owner-{number}" for number in range(10)]
        numbers = list(
            pool.map(lambda owner: append_version(store, "v", lambda n, _: {"n": n}, owner), owners)
        )
    assert sorted(numbers) == list(range(1, 11))


def test_a_unit_committed_twice_keeps_its_first_marker(store: Store) -> None:
    ref = ObjectRef(path="shards/a", rows=1, bytes=1, sha256="0" * 64)
    first = UnitMarker(unit="u1", objects={"shard": ref})
    twin = UnitMarker(unit="u1", objects={})
    assert commit_unit(store, first) == first
    assert commit_unit(store, twin) == first
    assert read_marker(store, "u1") == first
    assert committed_units(store) == {"u1"}


def test_bytes_that_are_not_the_committed_ones_are_refused(store: Store, tmp_path: Path) -> None:
    ref = put_object(store, "shards/u-{hash}.arrow", b"pixels", 1)
    assert get_object(store, ref) == b"pixels"
    with open_verified(store, ref, Cache(tmp_path / "cache")) as file:
        assert file.read() == b"pixels"
    store.delete(ref.path)
    store.put_if_absent(ref.path, b"pixelz")
    with pytest.raises(IntegrityError, match="not what was committed"):
        get_object(store, ref)
    with pytest.raises(IntegrityError):
        open_verified(store, ref, Cache(tmp_path / "another cache"))


def test_locations_are_written_one_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalize_uri("pictures/") == str(tmp_path / "pictures")
    assert normalize_uri("file:///data") == "/data"
    assert normalize_uri("s3://bucket/a/") == "s3://bucket/a"
    for wrong in ("gs://bucket/a", "s3://", "  "):
        with pytest.raises(RequestError):
            normalize_uri(wrong)


def test_which_way_to_a_picture_is_listed_does_not_depend_on_threads(tmp_path: Path) -> None:
    for folder in "zyx":
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "p.jpg").write_bytes(b"1")
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "q.jpg").write_bytes(b"1")
    (outside / "back").symlink_to(tmp_path)
    for link, target in {
        "a": tmp_path / "z",
        "b": tmp_path / "y" / "deep",
        "d": outside,
        "c": outside,
    }.items():
        (tmp_path / link).symlink_to(target)
    (tmp_path / "file").symlink_to(outside / "q.jpg")
    (tmp_path / "broken").symlink_to(outside / "nothing")
    for _ in range(20):
        listed = {info.name: info.etag for info in open_reader(str(tmp_path)).walk()}
        assert sorted(listed) == [
            "broken",
            "c/q.jpg",
            "file",
            "x/deep/p.jpg",
            "y/deep/p.jpg",
            "z/deep/p.jpg",
        ]
        assert listed["broken"] == "unreadable"


def test_an_error_in_one_thread_ends_the_walk() -> None:
    def visit(number: int, walk: ParallelLister[int]) -> Iterator[list[ObjectInfo]]:
        if number == 500:
            raise ForbiddenError("five hundred")
        for below in (2 * number, 2 * number + 1):
            if below < 2000:
                walk.add(below)
        yield [ObjectInfo(str(number), "", 0, "")] * 10

    with pytest.raises(ForbiddenError, match="five hundred"):
        list(ParallelLister(visit, 8).pages([1]))


def test_etags_that_are_no_md5s_cost_three_double_readings() -> None:
    check, readings = EtagVerifier(), 0

    def fetch() -> tuple[bytes, str]:
        nonlocal readings
        readings += 1
        return b"body", "0" * 32

    assert [check.read("s3://b/k", fetch) for _ in range(10)] == [b"body"] * 10
    assert readings == 3 * 2 + 7


def test_of_altered_bodies_none_is_believed() -> None:
    etag = hashlib.md5(b"body", usedforsecurity=False).hexdigest()
    bodies = iter([b"bodx", b"bodz", b"body"])
    assert EtagVerifier().read("s3://b/k", lambda: (next(bodies), f'"{etag}"')) == b"body"
    altered = iter(range(100))
    with pytest.raises(StorageError, match="s3://b/k"):
        EtagVerifier().read("s3://b/k", lambda: (bytes([next(altered)]), etag))
    assert (
        EtagVerifier().read("s3://b/k", lambda: (b"of several parts", f"{etag}-3"))
        == b"of several parts"
    )


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    source = open_reader(str(tmp_path))
    assert [info.name for info in source.walk()] == ["real/a.jpg"]


def test_a_large_object_is_published_whole_and_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afinar.storage.s3._PIECE_BYTES", 5 * 2**20)
    pieces = [bytes([number]) * 2**20 for number in range(13)]
    name = "large/whole.bin"
    with ObjectWriter(store, "large", large=True) as writer:
        for piece in pieces:
            writer.write(piece)
        assert not list(store.walk("large"))
        ref = writer.commit(name, 0)
    assert get_object(store, ref) == b"".join(pieces)
    new = store.new_large_object("large")
    new.write(b"another, and smaller")
    assert not new.publish(name)
    new.discard()
    assert get_object(store, ref) == b"".join(pieces)
    assert [info.name for info in store.walk("large")] == [name]
