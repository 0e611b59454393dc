"""Cache of remote objects: verified copies, evicted by time of last use, closed to others."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import pytest

from afinar.errors import IntegrityError, NoSpaceError, RequestError, StorageError
from afinar.storage import cache
from afinar.storage.cache import Cache, open_verified
from afinar.storage.local import LocalStore
from afinar.storage.objects import ObjectRef, check_hash, put_object
from afinar.storage.store import Store


class RemoteStore(LocalStore):
    """A folder that behaves like a remote store, and counts the reads."""

    def open_local(self, name: str) -> None:  # type: ignore[override]
        return None

    def get_unverified(self, name: str, max_bytes: int | None = None) -> bytes:
        with Path(self.root, "reads").open("a") as log:
            log.write(f"{name}\n")
        return super().get_unverified(name, max_bytes)

    def reads(self) -> int:
        return len(Path(self.root, "reads").read_text().splitlines())


@pytest.fixture
def store(tmp_path: Path) -> RemoteStore:
    (tmp_path / "remote").mkdir()
    return RemoteStore(str(tmp_path / "remote"))


def put(store: RemoteStore, number: int) -> ObjectRef:
    return put_object(LocalStore(store.root), "shards/{hash}", bytes([number]) * 1000, 1)


def cached_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("lock-")}


def read(store: RemoteStore, ref: ObjectRef, cache: Cache) -> bytes:
    with open_verified(store, ref, cache) as file:
        return file.read()


def test_full_cache_evicts_least_recently_used_copy(store: RemoteStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2500)
    first, second, third = (put(store, number) for number in range(3))
    for age, ref in ((30, first), (20, second)):
        assert read(store, ref, cache) == Path(store.root, ref.path).read_bytes()
        path = tmp_path / "cache" / ref.sha256
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    read(store, first, cache)  # opened again, so no longer the oldest
    assert store.reads() == 2
    read(store, third, cache)
    assert cached_names(tmp_path / "cache") == {first.sha256, third.sha256}


def test_full_disk_is_reported_with_the_folder_of_the_cache(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if not even the file of a lock can be created."""
    ref = put(store, 1)

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_open", full)
    with pytest.raises(NoSpaceError, match=f"{tmp_path / 'cache'} could not be written: no space"):
        read(store, ref, Cache(tmp_path / "cache"))


def test_damaged_copy_is_fetched_again(store: RemoteStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    ref = put(store, 7)
    read(store, ref, cache)
    (tmp_path / "cache" / ref.sha256).write_bytes(b"something else")
    assert read(store, ref, cache) == bytes([7]) * 1000
    assert store.reads() == 2


def test_damaged_object_is_not_cached(store: RemoteStore, tmp_path: Path) -> None:
    ref = put(store, 7)
    path = Path(store.root, ref.path)
    path.chmod(0o644)
    path.write_bytes(bytes([8]) * 1000)
    with pytest.raises(IntegrityError, match="not what was committed"):
        open_verified(store, ref, Cache(tmp_path / "cache"))
    assert cached_names(tmp_path / "cache") == set()


def _open(root: str, ref: ObjectRef, folder: Path) -> None:
    open_verified(RemoteStore(root), ref, Cache(folder)).close()


def test_concurrent_processes_fetch_object_once(store: RemoteStore, tmp_path: Path) -> None:
    ref = put(store, 7)
    context = get_context("spawn")
    workers = [
        context.Process(target=_open, args=(store.root, ref, tmp_path / "cache")) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert store.reads() == 1


def test_copy_replaced_after_verification_is_not_read(store: RemoteStore, tmp_path: Path) -> None:
    ref = put(store, 7)
    for _ in range(2):  # fetched, then found
        with open_verified(store, ref, Cache(tmp_path / "cache")) as file:
            (tmp_path / "cache" / ref.sha256).unlink()
            (tmp_path / "cache" / ref.sha256).write_bytes(b"poisoned")
            assert file.read() == bytes([7]) * 1000
        (tmp_path / "cache" / ref.sha256).write_bytes(bytes([7]) * 1000)


def test_cache_folder_of_other_user_or_open_to_others_is_refused(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, folder = put(store, 7), tmp_path / "cache"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="a link, no folder"):
        open_verified(store, ref, Cache(folder))
    folder.unlink()
    folder.write_bytes(b"")
    with pytest.raises(RequestError, match="a link, no folder"):
        open_verified(store, ref, Cache(folder))
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RequestError, match="other users may enter the cache"):
        open_verified(store, ref, Cache(folder))
    folder.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        with pytest.raises(RequestError, match="belongs to another user"):
            open_verified(store, ref, Cache(folder))
    assert list((tmp_path / "elsewhere").iterdir()) == list(folder.iterdir()) == []


def test_link_in_place_of_lock_or_copy_is_not_followed(store: RemoteStore, tmp_path: Path) -> None:
    ref, folder, victim = put(store, 7), tmp_path / "cache", tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder.mkdir(mode=0o700)
    lock = folder / f"lock-{ref.sha256[:2]}"
    lock.symlink_to(victim)
    with pytest.raises(StorageError, match="symbolic links"):
        open_verified(store, ref, Cache(folder))
    lock.unlink()
    (folder / ref.sha256).symlink_to(victim)
    assert read(store, ref, Cache(folder)) == bytes([7]) * 1000
    assert victim.read_bytes() == b"precious"


def test_unfinished_copies_of_killed_writers_are_deleted_those_of_living_ones_count(
    store: RemoteStore, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    first, second = put(store, 1), put(store, 2)
    read(store, first, Cache(folder, 3500))
    for number in range(3):
        (folder / f"new-abandoned{number}").write_bytes(bytes(1000))
    with (folder / "new-alive").open("wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        alive.write(bytes(2000))
        alive.flush()
        read(store, second, Cache(folder, 3500))
        # 2000 bytes in progress and the new copy leave no room for the first one.
        assert cached_names(folder) == {"new-alive", second.sha256}
    read(store, first, Cache(folder, 3500))
    assert cached_names(folder) == {first.sha256, second.sha256}


def test_copy_is_written_anew_if_it_was_deleted_before_it_was_locked(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, folder, lock = put(store, 7), tmp_path / "cache", fcntl.flock
    deleted: list[Path] = []

    def delete_then_lock(file: BinaryIO, operation: int) -> None:
        for path in folder.glob("new-*") if not deleted else ():
            path.unlink()
            deleted.append(path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", delete_then_lock)
    assert read(store, ref, Cache(folder)) == bytes([7]) * 1000
    assert len(deleted) == 1
    assert cached_names(folder) == {ref.sha256}


def settled(path: Path) -> None:
    """Wait until the last change of a file lies so far back that its hash is remembered."""
    while time.time() - path.stat().st_ctime < cache._SETTLED_S + 0.2:
        time.sleep(0.1)


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with every file whose hash is compared."""
    hashed: list[str] = []

    def counted(data: memoryview, ref: ObjectRef, store: Store) -> None:
        hashed.append(ref.path)
        check_hash(data, ref, store)

    monkeypatch.setattr(cache, "check_hash", counted)
    return hashed


def test_local_file_is_hashed_once_and_again_after_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SETTLED_S", 0.3)
    hashed, notes = count_hashes(monkeypatch), Cache(tmp_path / "cache")
    store = LocalStore(str(tmp_path / "store"))
    ref = put_object(store, "shards/{hash}", b"pixels", 1)
    path = Path(store.root, ref.path)
    open_verified(store, ref, notes).close()
    settled(path)
    for _ in range(3):
        open_verified(store, ref, notes).close()
    assert len(hashed) == 2, "a file that is just written may change unnoticed: it has no note"

    times = path.stat()
    path.write_bytes(b"pixelz")  # of the same size, and with the same time of modification
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(IntegrityError):
        open_verified(store, ref, notes)


def test_another_file_has_the_name_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SETTLED_S", 0.0)
    hashed, notes = count_hashes(monkeypatch), Cache(tmp_path / "cache")
    store = LocalStore(str(tmp_path / "store"))
    ref = put_object(store, "shards/{hash}", b"pixels", 1)
    path = Path(store.root, ref.path)
    settled(path)
    open_verified(store, ref, notes).close()
    copy = path.with_name("copy")
    copy.write_bytes(b"pixels")
    copy.replace(path)
    open_verified(store, ref, notes).close()
    assert len(hashed) == 2


def test_cache_cannot_be_used_local_files_are_read_and_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SETTLED_S", 0.0)
    hashed = count_hashes(monkeypatch)
    (tmp_path / "cache").write_text("no folder")
    store = LocalStore(str(tmp_path / "store"))
    ref = put_object(store, "shards/{hash}", b"pixels", 1)
    settled(Path(store.root, ref.path))
    for _ in range(2):
        open_verified(store, ref, Cache(tmp_path / "cache")).close()
    assert len(hashed) == 2
