"""Objects named by their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.errors import IntegrityError, StorageError
from afinar.storage.cache import Cache, open_verified
from afinar.storage.objects import ObjectWriter, check_hash, get_object, put_object
from afinar.storage.open import open_store
from afinar.storage.store import Store


def test_object_with_other_bytes_raises_integrity_error(store: Store, tmp_path: Path) -> None:
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


def test_object_written_in_pieces_is_committed_as_one_object(location: str) -> None:
    store = open_store(location)
    with ObjectWriter(store, "shards") as writer:
        for piece in (b"one ", memoryview(b"two "), bytearray(b"three")):
            assert writer.write(piece) == len(piece)
        assert list(store.walk()) == [], "it is not listed before it is committed"
        ref = writer.save("shards/u-{hash}.arrow", 3)
    assert get_object(store, ref) == b"one two three"
    check_hash(b"one two three", ref, store)
    with ObjectWriter(store, "shards") as second:
        second.write(b"one two three")
        assert second.save("shards/u-{hash}.arrow", 3) == ref, "the same bytes, the same object"
    assert [info.name for info in store.walk()] == [ref.path]


def test_uncommitted_object_leaves_no_files(location: str, tmp_path: Path) -> None:
    store = open_store(location)
    with pytest.raises(StorageError), ObjectWriter(store, "shards") as writer:
        writer.write(b"half")
        raise StorageError("the disk is full")
    assert list(store.walk()) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
