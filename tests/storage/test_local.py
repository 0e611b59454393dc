"""A folder as a store: errors of the file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from afinar.errors import ForbiddenError, RequestError, StorageError
from afinar.storage.open import open_reader, open_store

NOBODY = 65534
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
        with pytest.raises(StorageError, match=rf"^{folder}/a could not be written: no space left"):
            store.put_if_absent("a/second", BODY)
        assert os.listdir(folder / "a") == ["first"]  # noqa: PTH208
        assert store.put_if_absent("a/third", b"x")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user of the process")
def test_folder_that_may_not_be_entered_is_forbidden(tmp_path: Path) -> None:
    parent = tmp_path / "locked"
    (parent / "dataset").mkdir(parents=True)
    parent.chmod(0)
    root = str(parent / "dataset")
    os.seteuid(NOBODY)
    try:
        for reader in (open_store(root), open_reader(root)):
            with pytest.raises(ForbiddenError, match="Permission denied"):
                reader.exists()
        with pytest.raises(RequestError, match="no permission"):
            open_store(root).require_target()
    finally:
        os.seteuid(0)
