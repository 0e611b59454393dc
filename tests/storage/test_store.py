"""Folders and buckets as stores: the same behaviour on both."""

from __future__ import annotations

from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest

from afinar.errors import (
    ChangedError,
    NotFoundError,
)
from afinar.storage.objects import ObjectWriter, get_object, put_object
from afinar.storage.store import Buffer, Store


def test_put_objects_are_read_back_and_listed(store: Store) -> None:
    assert store.put_if_absent("a/b.txt", b"one")
    assert store.put_if_absent("a/c.txt", b"three")
    assert store.put_if_absent(".hidden/d.txt", b"four")
    assert store.get("a/b.txt") == b"one"
    listed = sorted(store.walk(), key=lambda info: info.name)
    assert [(info.name, info.size, info.uri) for info in listed] == [
        ("a/b.txt", 3, store.uri("a/b.txt")),
        ("a/c.txt", 5, store.uri("a/c.txt")),
    ]


def test_put_accepts_every_buffer_type(store: Store) -> None:
    numbers: Buffer = memoryview(array("i", range(5)))
    buffers: list[Buffer] = [b"ab", bytearray(b"ab"), memoryview(b"ab"), numbers]
    for name, data in zip("abcd", buffers, strict=True):
        assert store.put_if_absent(name, data)
        assert store.get(name) == bytes(data)
    ref = put_object(store, "{hash}", numbers, 5)
    assert ref.bytes == 20
    assert get_object(store, ref) == bytes(numbers)


def test_names_with_special_characters_are_kept(store: Store) -> None:
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


def test_walk_of_deep_and_wide_tree_lists_every_object(store: Store) -> None:
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


def test_second_put_changes_nothing(store: Store) -> None:
    assert store.put_if_absent("x", b"first")
    assert not store.put_if_absent("x", b"second")
    assert store.get("x") == b"first"


def test_concurrent_puts_exactly_one_succeeds(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(
            pool.map(lambda number: store.put_if_absent("race", str(number).encode()), range(16))
        )
    assert won.count(True) == 1
    assert store.get("race") == str(won.index(True)).encode()


def test_get_with_stale_etag_raises_changed_error(store: Store) -> None:
    store.put_if_absent("picture", b"old")
    (listed,) = store.walk()
    assert store.get("picture", listed.etag) == b"old"
    store.delete("picture")
    store.put_if_absent("picture", b"new bytes")
    with pytest.raises(ChangedError):
        store.get("picture", listed.etag)


def test_missing_object_raises_not_found_error(store: Store) -> None:
    store.put_if_absent("other", b"")
    with pytest.raises(NotFoundError):
        store.get("nothing")
    store.delete("nothing")


def test_large_object_is_published_whole_and_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afinar.storage.s3._PIECE_BYTES", 5 * 2**20)
    pieces = [bytes([number]) * 2**20 for number in range(13)]
    name = "large/whole.bin"
    with ObjectWriter(store, "large", large=True) as writer:
        for piece in pieces:
            writer.write(piece)
        assert not list(store.walk("large"))
        ref = writer.save(name, 0)
    assert get_object(store, ref) == b"".join(pieces)
    new = store.new_large_object("large")
    new.write(b"another, and smaller")
    assert not new.save_as(name)
    new.discard()
    assert get_object(store, ref) == b"".join(pieces)
    assert [info.name for info in store.walk("large")] == [name]
