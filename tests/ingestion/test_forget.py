"""Erasing pictures from a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.dataset.gc import collect_garbage, drop_plans, open_plans, verify_dataset
from afinar.dataset.manifest import get_manifests, publish_manifest
from afinar.errors import RequestError, ShortfallError
from afinar.ingestion import forget as forget_module
from afinar.ingestion.forget import ForgetSummary, run_forget
from afinar.ingestion.plan import forget_plan_name
from afinar.storage.arrow import from_ipc, from_parquet
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.cut import PLAN
from afinar.units.executor import InlineExecutor
from afinar.units.plans import store_plan
from tests.archives import ingest, interrupt_addition
from tests.conftest import jpeg, make_archive
from tests.datasets import assert_pixels_match_files
from tests.executors import InterruptedExecutor


def forget(dataset: str, *uris: str) -> ForgetSummary:
    return run_forget(ForgetConfig(path=dataset, uris=uris), InlineExecutor())


def objects_with(dataset: str, content: str) -> list[str]:
    """Return the objects with a row of this content hash; manifests are not searched."""
    store = open_store(dataset)
    names = []
    for info in store.walk():
        data = store.get(info.name)
        if info.name.endswith(".arrow"):
            table = from_ipc(data)
        elif info.name.endswith(".parquet"):
            table = from_parquet(data)
        else:
            continue
        if "sample_id" in table.column_names and content in table.column("sample_id").to_pylist():
            names.append(info.name)
    return names


def test_forgotten_picture_is_in_no_object_and_does_not_come_back(
    archive: Path, location: str
) -> None:
    ingest(archive, location)
    erased = archive / "moss" / "003.jpg"
    content = sha256(erased.read_bytes())
    (archive / "rust" / "copy.jpg").write_bytes(erased.read_bytes())
    ingest(archive, location)
    assert objects_with(location, content)
    summary = forget(location, "moss/003.jpg")
    assert (summary.pictures, summary.contents, summary.versions_withdrawn) == (2, 1, [1, 2])
    assert objects_with(location, content) == []
    opened = open_dataset(location)
    assert (opened.manifest.version, len(opened.index)) == (3, 23)
    assert_pixels_match_files(opened)
    assert {row["reason"] for row in opened.rejects.to_pylist()} == {"forgotten"}

    (archive / "rust" / "another.jpg").write_bytes(erased.read_bytes())
    again = ingest(archive, location, max_reject_rate=0.0)
    assert (again.samples, again.rejects_by_reason) == (23, {"forgotten": 3})
    assert objects_with(location, content) == []
    assert forget(location, str(erased)).versions_withdrawn == [], "a second time erases nothing"


def test_dead_row_of_an_old_state_is_erased_too(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 40)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    erased = archive / "moss" / "003.jpg"
    content = sha256(erased.read_bytes())
    erased.write_bytes(jpeg(31337))
    ingest(archive, dataset)
    summary = forget(dataset, "moss/003.jpg")
    assert (summary.contents, summary.versions_withdrawn) == (2, [1, 2])
    new_content = sha256(erased.read_bytes())
    assert objects_with(dataset, content) == objects_with(dataset, new_content) == []
    assert len(open_dataset(dataset).read(range(79))) == 79


def test_state_that_only_a_deleted_version_named_is_erased(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 40)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    changed, removed = archive / "moss" / "003.jpg", archive / "moss" / "004.jpg"
    contents = [sha256(path.read_bytes()) for path in (changed, removed)]
    changed.write_bytes(jpeg(31337))
    removed.unlink()
    ingest(archive, dataset)
    collect_garbage(open_store(dataset), {1})
    assert [len(objects_with(dataset, content)) for content in contents] == [1, 1], (
        "dead rows of a shard that is still needed"
    )
    summary = forget(dataset, "moss/004.jpg")
    assert "no version that is kept names" in summary.notes[0]
    assert [objects_with(dataset, content) for content in contents] == [[], []]
    assert len(open_dataset(dataset).read(range(79))) == 79


def test_killed_erasure_is_completed_by_the_same_command(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    content = sha256((archive / "moss" / "003.jpg").read_bytes())
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> list[str]:
            raise KeyboardInterrupt

        patch.setattr(forget_module, "collect_garbage", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(dataset, "moss/003.jpg")
    assert objects_with(dataset, content)
    summary = forget(dataset, "moss/003.jpg")
    assert summary.versions_withdrawn == [1]
    assert objects_with(dataset, content) == []
    assert len(open_dataset(dataset).index) == 23


def test_garbage_collection_during_an_erasure_deletes_none_of_its_objects(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)

    def collect_then_publish(store: Store, *rest: Any) -> bool:
        collect_garbage(store, set())
        return publish_manifest(store, *rest)

    monkeypatch.setattr(forget_module, "publish_manifest", collect_then_publish)
    forget(dataset, "moss/003.jpg")
    store = open_store(dataset)
    assert verify_dataset(store, get_manifests(store)).damaged == []
    assert len(open_dataset(dataset).read(range(23))) == 23
    assert list(store.walk("plans")) == [], "its lease is deleted"


def test_erased_pictures_leave_classes_and_counts(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 20)
    (archive / "slate").mkdir()
    (archive / "slate" / "only.jpg").write_bytes(jpeg(5))
    for number in range(3):
        (archive / "moss" / f"copy-{number}.jpg").write_bytes(
            (archive / "moss" / "000.jpg").read_bytes()
        )
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    forget(dataset, "slate/only.jpg", "moss/000.jpg")
    manifest = open_dataset(dataset).manifest
    assert manifest.classes == ["moss", "rust"]
    assert manifest.counts["repeats"]["duplicates"] == 0
    assert manifest.counts["labels"] == {"moss": 19, "rust": 20}


def test_unknown_picture_is_refused_and_nothing_erased(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    with pytest.raises(RequestError, match="nothing was erased"):
        forget(dataset, "moss/003.jpg", "moss/nothing.jpg")
    assert len(open_dataset(dataset).index) == 120


def test_erasure_is_refused_while_an_ingest_is_unfinished(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    interrupt_addition(archive, dataset)
    with pytest.raises(RequestError, match="is running or was interrupted"):
        forget(dataset, "moss/003.jpg")


def test_erasure_runs_once_an_unfinished_plan_is_dropped(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    with pytest.raises(KeyboardInterrupt):
        ingest(archive, dataset, InterruptedExecutor(1), size=48)
    with pytest.raises(RequestError, match="--drop-plans"):
        forget(dataset, "moss/003.jpg")
    store = open_store(dataset)
    assert len(drop_plans(store, 1)) == 1
    assert any("shards/00000002-" in name for name in collect_garbage(store, set()))
    assert forget(dataset, "moss/003.jpg").pictures == 1


def test_resumed_ingest_beside_an_erasure_is_refused(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    (archive / "moss" / "late.jpg").write_bytes(jpeg(9001))
    with pytest.raises(KeyboardInterrupt):
        ingest(archive, dataset, executor=InterruptedExecutor(0))
    store = open_store(dataset)
    assert len(list(open_plans(store, 1))) == 1

    lease = forget_plan_name(2)
    store_plan(store, lease, PLAN.empty_table())
    with pytest.raises(ShortfallError, match="pictures are being erased"):
        ingest(archive, dataset)
    assert len(open_dataset(dataset).index) == 24, "nothing was published"

    store.delete(lease)
    assert ingest(archive, dataset).samples == 25
