"""Confinement of a store to its root: hostile names and planted links, in a folder and a bucket."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from afinar.errors import NotFoundError, StorageError, UnsafePathError
from afinar.storage.names import is_safe_name
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_reader, open_store
from afinar.storage.store import Store

PARTS = [
    "..",
    ".",
    "",
    "beside",
    "store",
    "shards",
    "link",
    "up",
    "file",
    "a\0b",
    "\ud800",
    "~",
    "..\\",
    "%2e%2e",
    "...",
    "x",
]
NAMES = st.one_of(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("/".join),
    st.lists(st.sampled_from(PARTS), max_size=4).map(lambda parts: "/".join(["", *parts])),
    st.text(max_size=12),
)
REFUSED = [
    "..",
    "../beside/precious",
    "a/../../beside/precious",
    "/etc/passwd",
    "",
    "a//b",
    "a/",
    "./a",
    "a\0b",
    "\ud800",
]


def write_pieces(store: Store, folder: str, name: str, large: bool) -> None:
    new = store.new_large_object(folder) if large else store.new_object(folder)
    try:
        new.write(b"forged")
        new.save_as(name)
    finally:
        new.discard()


OPERATIONS: dict[str, Callable[[Store, str], Any]] = {
    "walk": lambda store, name: list(store.walk(name)),
    "get": lambda store, name: store.get(name),
    "get_unverified": lambda store, name: store.get_unverified(name),
    "stat": lambda store, name: store.stat(name),
    "open_local": lambda store, name: (store.open_local(name) or open(os.devnull)).close(),  # noqa: SIM115, PTH123
    "put_if_absent": lambda store, name: store.put_if_absent(name, b"forged"),
    "new_object": lambda store, name: write_pieces(store, name, f"{name}/new", large=False),
    "publish": lambda store, name: write_pieces(store, "shards", name, large=False),
    "new_large_object": lambda store, name: write_pieces(store, name, f"{name}/new", large=True),
    "publish large": lambda store, name: write_pieces(store, "shards", name, large=True),
    "prefetch": lambda store, name: store.prefetch(name),
    "delete": lambda store, name: store.delete(name),
    "delete_scratch": lambda store, name: store.delete_scratch(-1),
    "delete what a walk lists": lambda store, name: [
        store.delete(info.name) for info in list(store.walk())
    ],
}


def tree(folder: Path) -> dict[str, str]:
    """Return every path below a folder with its content, links not followed."""
    paths = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            paths[str(path.relative_to(folder))] = f"link to {path.readlink()}"
        elif path.is_file():
            paths[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            paths[str(path.relative_to(folder))] = "folder"
    return paths


def plant(folder: Path) -> Path:
    """Create a root with links that lead out of it, beside a folder that must not change."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "beside" / "deep").mkdir(parents=True)
    for name in ("precious", "deep/.tmp-precious", "x"):
        (folder / "beside" / name).write_bytes(b"precious")
    root = folder / "store"
    (root / "shards").mkdir(parents=True)
    (root / "shards" / "x").write_bytes(b"ours")
    (root / "link").symlink_to("../beside")
    (root / "up").symlink_to("..")
    (root / "file").symlink_to("../beside/precious")
    (root / "shards" / "beside").symlink_to(folder / "beside")
    (root / "shards" / "file").symlink_to(folder / "beside" / "precious")
    return root


def test_no_operation_on_folder_touches_files_outside_root(tmp_path: Path) -> None:
    folder, attacks = tmp_path / "world", count()
    root = plant(folder)
    before = {name: what for name, what in tree(folder).items() if not name.startswith("store/")}

    @given(NAMES, st.sampled_from(sorted(OPERATIONS)))
    @settings(max_examples=1000, derandomize=True, database=None)
    def attack(name: str, operation: str) -> None:
        if next(attacks) % 50 == 0:
            plant(folder)
        with suppress(StorageError):
            answer = OPERATIONS[operation](open_store(str(root)), name)
            assert answer != b"precious", "nor is it read"
        after = {name: what for name, what in tree(folder).items() if not name.startswith("store/")}
        assert after == before

    attack()
    assert next(attacks) >= 1000


def test_no_operation_on_bucket_touches_keys_outside_prefix(bucket: str) -> None:
    beside, attacks = open_reader(f"{bucket}/beside"), count()
    for name in ("precious", "x"):
        open_store(f"{bucket}/beside").put_if_absent(name, b"precious")
    before = {(info.name, info.etag) for info in beside.walk()}

    @given(NAMES, st.sampled_from(sorted(OPERATIONS)))
    @settings(
        max_examples=1000,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    def attack(name: str, operation: str) -> None:
        with suppress(StorageError):
            answer = OPERATIONS[operation](open_store(f"{bucket}/store"), name)
            assert answer != b"precious"
        if next(attacks) % 100 == 0:
            assert {(info.name, info.etag) for info in beside.walk()} == before

    attack()
    assert next(attacks) >= 1000
    outside = {
        info.name for info in open_reader(bucket).walk() if not info.name.startswith("store/")
    }
    assert outside == {"beside/precious", "beside/x"}
    assert {(info.name, info.etag) for info in beside.walk()} == before


@pytest.mark.parametrize(
    "operation",
    sorted(OPERATIONS.keys() - {"delete_scratch", "delete what a walk lists", "prefetch"}),
)
def test_every_operation_refuses_name_that_leads_out(location: str, operation: str) -> None:
    store = open_store(location)
    for name in REFUSED:
        if not name and operation == "walk":
            continue  # the root itself
        if operation == "open_local" and store.is_remote:
            continue
        assert not is_safe_name(name)
        with pytest.raises(UnsafePathError):
            OPERATIONS[operation](store, name)


def test_links_below_root_are_refused_with_clear_message(tmp_path: Path) -> None:
    root = plant(tmp_path / "world")
    store = open_store(str(root))
    for name in ("file", "link/precious", "shards/beside/precious", "up/beside/precious"):
        for operation in ("get", "open_local", "put_if_absent", "delete", "stat"):
            if name == "file" and operation in {"put_if_absent", "stat", "delete"}:
                continue
            with pytest.raises(UnsafePathError, match="is a symbolic link"):
                OPERATIONS[operation](store, name)
    assert not store.put_if_absent("file", b"forged"), "the name is taken"
    with pytest.raises(UnsafePathError, match="not a regular file"):
        store.delete("file")
    with pytest.raises(NotFoundError):
        store.stat("file")
    assert [info.name for info in store.walk()] == ["shards/x"]


def test_root_that_is_a_link_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    store = open_store(str(tmp_path / "alias"))
    assert store.put_if_absent("a/b", b"1")
    assert (tmp_path / "real" / "a" / "b").read_bytes() == b"1"
    store.delete("a/b")
    assert list(store.walk()) == []


def test_special_file_is_neither_read_nor_deleted(tmp_path: Path) -> None:
    store, source = open_store(str(tmp_path)), open_reader(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(NotFoundError, match="is not a regular file"):
            source.get(name)
    for name in ("pipe", "folder"):
        with pytest.raises(NotFoundError, match="is not a regular file"):
            store.get(name)
        with pytest.raises(UnsafePathError):
            store.delete(name)
    assert list(store.walk()) == list(source.walk()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "../x"},
        {"path": "/etc/passwd"},
        {"path": None},
        {"sha256": "../../x"},
        {"sha256": 7},
        {"rows": -1},
        {"bytes": "many"},
    ],
)
def test_object_ref_of_forged_record_is_refused(wrong: dict[str, Any]) -> None:
    record: dict[str, Any] = {"path": "shards/a", "rows": 1, "bytes": 1, "sha256": "0" * 64}
    ObjectRef(**record)
    with pytest.raises(UnsafePathError):
        ObjectRef(**{**record, **wrong})


@pytest.fixture(autouse=True)
def _remove_planted(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(tmp_path / "world", ignore_errors=True)
