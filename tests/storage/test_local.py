"""A folder as a store: errors of the file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from afinar.errors import StorageError
from afinar.storage.open import open_store

BODY = bytes(range(256)) * 400


def test_put_on_full_disk_names_the_cause_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system")
    try:
        store = open_store(str(folder))
        assert store.put_if_absent("a/first", b"x")
        with pytest.raises(StorageError, match=rf"{folder}/a/.*no space left"):
            store.put_if_absent("a/second", BODY)
        assert os.listdir(folder / "a") == ["first"]  # noqa: PTH208
        assert store.put_if_absent("a/third", b"x")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
