"""The version that an ingest builds on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.errors import ForbiddenError
from afinar.ingestion.forget import run_forget
from afinar.ingestion.parent import open_parent
from afinar.pictures.preprocessing import StoredView
from afinar.storage.local import LocalStore
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.archives import fail_reads, ingest
from tests.conftest import jpeg

VIEW = StoredView(size=64, fit="pad")


def test_parent_of_a_new_dataset_is_empty(tmp_path: Path) -> None:
    parent = open_parent(open_store(str(tmp_path / "dataset")), VIEW)
    assert (parent.manifest, parent.next_version, parent.shards) == (None, 1, [])
    assert (len(parent.index), len(parent.outcomes), parent.has_view) == (0, 0, False)


def test_outcomes_of_another_preprocessing_are_not_reused(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    store = open_store(str(tmp_path / "dataset"))
    same, other = open_parent(store, VIEW), open_parent(store, StoredView(size=48, fit="pad"))
    assert (same.next_version, same.has_view, len(same.outcomes)) == (2, True, 24)
    assert (other.next_version, other.has_view, len(other.outcomes)) == (2, False, 0)
    assert len(other.index) == 24


def test_outcomes_leave_out_transient_rejects(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    with monkeypatch.context() as patch:
        fail_reads(patch, archive / "moss" / "003.jpg", ForbiddenError("403"))
        ingest(archive, tmp_path / "dataset", max_reject_rate=0.2)
    outcomes = open_parent(open_store(str(tmp_path / "dataset")), VIEW).outcomes
    assert outcomes.column("reason").drop_null().to_pylist() == ["empty"]
    assert len(outcomes) == 24


def test_ingest_and_erasure_read_each_object_of_the_parent_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    ingest(archive, dataset)
    opened = open_dataset(dataset)
    objects = {entry.ref.path for entry in opened.objects} | {opened.manifest.objects.path}
    reads: Counter[str] = Counter()
    real = LocalStore.get

    def counting_get(self: LocalStore, name: str, *conditions: Any, **limits: Any) -> bytes:
        reads[name] += 1
        return real(self, name, *conditions, **limits)

    monkeypatch.setattr(LocalStore, "get", counting_get)
    (archive / "moss" / "new.jpg").write_bytes(jpeg(9000))
    summary = ingest(archive, dataset)
    assert (summary.version, summary.added) == (2, 1)
    read = {name: count for name, count in reads.items() if name in objects}
    assert set(read.values()) == {1}
    assert {name.split("/")[0] for name in read} == {"lists", "index", "rejects"}

    current = open_dataset(dataset)
    named = {entry.ref.path for entry in current.objects if entry.kind != "shard"}
    reads.clear()
    run_forget(ForgetConfig(path=dataset, uris=("moss/new.jpg",)), InlineExecutor())
    assert {reads[name] for name in named} == {1}
