"""Numbered versions and the probe for put-if-absent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afinar.errors import NotFoundError, RequestError, ShortfallError
from afinar.storage.open import open_store
from afinar.storage.store import Buffer, Store
from afinar.storage.versions import (
    append_version,
    latest,
    probe_conditional_put,
    publish,
    read_consistently,
)


def test_version_number_belongs_to_one_owner(store: Store) -> None:
    assert latest(store, "manifests") is None
    assert publish(store, "manifests", 1, {"n": 1}, "me")
    # As after a lost reply: the retry finds the name taken by its own first put.
    assert publish(store, "manifests", 1, {"n": 1}, "me")
    assert not publish(store, "manifests", 1, {"n": 2}, "you")
    assert append_version(store, "manifests", lambda number, _: {"n": number}, "you") == 2
    current = latest(store, "manifests")
    assert current is not None
    assert (current[0], current[1]["n"]) == (2, 2)


def test_concurrent_appends_get_distinct_numbers(store: Store) -> None:
    with ThreadPoolExecutor(10) as pool:
        owners = [f"owner-{number}" for number in range(10)]
        numbers = list(
            pool.map(lambda owner: append_version(store, "v", lambda n, _: {"n": n}, owner), owners)
        )
    assert sorted(numbers) == list(range(1, 11))


def test_probe_accepts_store_with_put_if_absent(store: Store) -> None:
    probe_conditional_put(store)
    assert list(store.walk("probes")) == []


def test_probe_refuses_store_that_overwrites(tmp_path: Path) -> None:
    from afinar.storage.local import LocalStore

    class Overwriting(LocalStore):
        def put_if_absent(self, name: str, data: Buffer) -> bool:
            self.delete(name)
            return super().put_if_absent(name, data)

    with pytest.raises(RequestError, match="If-None-Match"):
        probe_conditional_put(Overwriting(str(tmp_path)))


def test_other_files_among_versions_are_ignored(location: str) -> None:
    store = open_store(location)
    for name in ("notes.txt", "00000009.json.bak", "9.json", "old/00000008.json"):
        store.put_if_absent(f"manifests/{name}", b"?")
    assert latest(store, "manifests") is None
    publish(store, "manifests", 1, {"n": 1}, "me")
    current = latest(store, "manifests")
    assert current is not None
    assert current[0] == 1


def test_reading_begins_again_while_other_jobs_change_the_versions(store: Store) -> None:
    assert publish(store, "manifests", 1, {}, "job")
    calls: list[int] = []

    def read(numbers: list[int]) -> str:
        calls.append(len(calls))
        if len(calls) < 3:
            assert publish(store, "manifests", 1 + len(calls), {}, "another job")
            raise NotFoundError("an object of a version that was deleted meanwhile")
        return "read"

    assert read_consistently(store, "manifests", read) == "read"
    assert calls == [0, 1, 2]


def test_missing_object_of_versions_that_do_not_change_is_damage(store: Store) -> None:
    assert publish(store, "manifests", 1, {}, "job")
    calls: list[int] = []

    def read(numbers: list[int]) -> None:
        calls.append(1)
        raise NotFoundError("lists/x.parquet")

    with pytest.raises(NotFoundError, match="lists/x"):
        read_consistently(store, "manifests", read)
    assert len(calls) == 1


def test_versions_that_change_for_ever_end_in_a_sentence(store: Store) -> None:
    def read(numbers: list[int]) -> None:
        assert publish(store, "manifests", 1 + max(numbers, default=0), {}, "another job")
        raise NotFoundError("lists/x.parquet")

    with pytest.raises(ShortfallError, match="run the command again"):
        read_consistently(store, "manifests", read)


@pytest.mark.parametrize("after", ["put", "second put"])
def test_probe_that_garbage_collection_deletes_is_made_anew(
    after: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(store).put_if_absent
    deleted: list[str] = []

    def put_then_delete(self: Store, name: str, data: Buffer) -> bool:
        is_written = put(self, name, data)
        if len(deleted) < 1 and (after == "put" or not is_written):
            deleted.append(name)
            self.delete(name)
        return is_written

    monkeypatch.setattr(type(store), "put_if_absent", put_then_delete)
    probe_conditional_put(store)
    assert len(deleted) == 1
