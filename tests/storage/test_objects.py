"""Objects named by their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.errors import (
    IntegrityError,
)
from afinar.storage.cache import Cache, open_verified
from afinar.storage.objects import get_object, put_object
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
