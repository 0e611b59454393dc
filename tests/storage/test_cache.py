"""Copies of remote objects on this machine: whole, as many as fit, the one that was opened longest ago first to go."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError
from pipeline.storage.cache import Cache, local_copy
from pipeline.storage.local import LocalStore
from pipeline.storage.objects import ObjectRef, put_object


class RemoteStore(LocalStore):
    """A folder that says it is none, and counts what is read from it."""

    def local_path(self, name: str) -> None:  # type: ignore[override]
        return None

    def get_unverified(self, name: str) -> bytes:
        with Path(self.root, "reads").open("a") as log:
            log.write(f"{name}\n")
        return super().get_unverified(name)

    def reads(self) -> int:
        return len(Path(self.root, "reads").read_text().splitlines())


@pytest.fixture
def store(tmp_path: Path) -> RemoteStore:
    (tmp_path / "remote").mkdir()
    return RemoteStore(str(tmp_path / "remote"))


def put(store: RemoteStore, number: int) -> ObjectRef:
    return put_object(LocalStore(store.root), "shards/{hash}", bytes([number]) * 1000, 1)


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("lock-")}


def test_what_was_opened_longest_ago_makes_room(store: RemoteStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2500)
    first, second, third = (put(store, number) for number in range(3))
    for age, ref in ((30, first), (20, second)):
        path = local_copy(store, ref, cache)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    local_copy(store, first, cache)  # opened again, so no longer the oldest
    assert store.reads() == 2
    local_copy(store, third, cache)
    assert kept(tmp_path / "cache") == {first.sha256, third.sha256}


def test_a_damaged_copy_is_fetched_again(store: RemoteStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    ref = put(store, 7)
    local_copy(store, ref, cache).write_bytes(b"something else")
    assert local_copy(store, ref, cache).read_bytes() == bytes([7]) * 1000
    assert store.reads() == 2


def test_a_damaged_object_is_not_kept(store: RemoteStore, tmp_path: Path) -> None:
    ref = put(store, 7)
    path = Path(store.root, ref.path)
    path.chmod(0o644)
    path.write_bytes(bytes([8]) * 1000)
    with pytest.raises(IntegrityError, match="not what was committed"):
        local_copy(store, ref, Cache(tmp_path / "cache"))
    assert kept(tmp_path / "cache") == set()


def _open(root: str, ref: ObjectRef, folder: Path) -> None:
    local_copy(RemoteStore(root), ref, Cache(folder))


def test_several_processes_fetch_an_object_once(store: RemoteStore, tmp_path: Path) -> None:
    ref = put(store, 7)
    context = get_context("spawn")
    workers = [context.Process(target=_open, args=(store.root, ref, tmp_path / "cache")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert store.reads() == 1
