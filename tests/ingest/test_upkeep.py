"""Looking after a dataset: verifying, cleaning up, forgetting; what is left behind each time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig
from afinar.dataset.gc import (
    collect_garbage,
    drop_plans,
    find_unreferenced,
    open_plans,
    verify_dataset,
)
from afinar.dataset.manifest import get_manifests, publish_manifest
from afinar.dataset.reader import Dataset
from afinar.errors import RequestError
from afinar.ingest import forget as forget_module
from afinar.ingest.driver import run_ingest
from afinar.ingest.estimate import forecast_ingest
from afinar.ingest.forget import ForgetSummary, run_forget
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.executor import InlineExecutor
from tests.conftest import jpeg, make_archive
from tests.ingest.test_ingest import DyingExecutor
from tests.ingest.test_versions import ingest, require_pixels_of_files, shards_in


def names(store: Store) -> set[str]:
    return {info.name for info in store.walk()}


def everything_named(store: Store) -> set[str]:
    """Names that a dataset needs: manifests and what they name."""
    found = {f"manifests/{manifest.version:08d}.json" for manifest in get_manifests(store)}
    for manifest in get_manifests(store):
        dataset = Dataset(store, manifest)
        found |= {manifest.objects.path, *dataset.index.column("shard").unique().to_pylist()}
    return found


def test_a_whole_dataset_verifies_and_a_damaged_one_says_where(
    archive: Path, location: str
) -> None:
    ingest(archive, location)
    store = open_store(location)
    verification = verify_dataset(store, get_manifests(store))
    read, damage = verification.read, verification.damaged
    assert (read, damage) == (3, []), "list, index and one shard"
    (shard,) = shards_in(location)
    data = bytearray(store.get(shard))
    data[len(data) // 2] ^= 1
    store.delete(shard)
    store.put_if_absent(shard, bytes(data))
    damage = verify_dataset(store, get_manifests(store)).damaged
    assert [(found.path, found.needed_by) for found in damage] == [(shard, [1])]
    assert "not what was committed" in damage[0].error
    store.delete(shard)
    damage = verify_dataset(store, get_manifests(store)).damaged
    assert [found.path for found in damage] == [shard]


def test_what_nothing_needs_is_removed_and_all_else_stays(archive: Path, location: str) -> None:
    ingest(archive, location)
    (archive / "moss" / "000.jpg").write_bytes(jpeg(777))
    ingest(archive, location)
    store = open_store(location)
    store.put_if_absent("shards/00000001-dead-beef.arrow", b"left by a killed worker")
    collect_garbage(store, set())
    left = names(store)
    assert everything_named(store) <= left
    assert not {
        name
        for name in left
        if name.startswith(("units/", "facts/", "plans/", "shards/00000001-dead"))
    }
    assert collect_garbage(store, set()) == []
    assert verify_dataset(store, get_manifests(store)).damaged == []
    assert len(open_dataset(location, version=1).index) == 24
    summary, read = ingest(archive, location)
    assert (summary.units_run, read) == (0, []), "cleaning up takes nothing that the next run needs"

    collect_garbage(store, {1})
    assert [manifest.version for manifest in get_manifests(store)] == [2]
    require_pixels_of_files(open_dataset(location))
    with pytest.raises(RequestError):
        open_dataset(location, version=1)


def test_what_killed_writers_left_goes_after_a_day(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    old, young = (tmp_path / "dataset" / "shards" / f".tmp-{name}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    collect_garbage(open_store(str(tmp_path / "dataset")), set())
    assert (old.exists(), young.exists()) == (False, True)


def test_a_job_under_way_keeps_its_objects(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    for number in range(100):
        (archive / "rust" / f"new-{number}.jpg").write_bytes(jpeg(20_000 + number))
    config = IngestConfig(source=str(archive), dataset=dataset, size=32)
    with pytest.raises(KeyboardInterrupt):
        run_ingest(config, DyingExecutor(1))
    store = open_store(dataset)
    under_way = {name for name in names(store) if name.split("/")[-1].startswith("00000002-")}
    assert len(under_way) == 4, "plan, shard, facts, marker"
    (plan,) = open_plans(store, 1)
    assert len(plan.units) == 2
    assert not under_way & set(find_unreferenced(store, set()))
    collect_garbage(store, set())
    assert under_way <= names(store)
    assert run_ingest(config, InlineExecutor()).summary.samples == 220


def forget(dataset: str, *uris: str) -> ForgetSummary:
    return run_forget(ForgetConfig(dataset=dataset, uris=uris), InlineExecutor())


def holds(dataset: str, content: str) -> list[str]:
    """Objects of a dataset, its manifests apart, in whose bytes a content's hash or a row of it occurs."""
    store = open_store(dataset)
    from afinar.storage.arrow import from_ipc, from_parquet

    found = []
    for name in names(store):
        data = store.get(name)
        if name.endswith(".arrow") and content in from_ipc(data).column("sample_id").to_pylist():
            found.append(name)
        if name.endswith(".parquet") and "sample_id" in (table := from_parquet(data)).column_names:
            found += [name] * (content in table.column("sample_id").to_pylist())
    return found


def test_a_forgotten_picture_is_nowhere_and_does_not_come_back(
    archive: Path, location: str
) -> None:
    ingest(archive, location)
    victim = archive / "moss" / "003.jpg"
    content = sha256(victim.read_bytes())
    (archive / "rust" / "copy.jpg").write_bytes(victim.read_bytes())
    ingest(archive, location)
    assert holds(location, content)
    summary = forget(location, "moss/003.jpg")
    assert (summary.pictures, summary.contents, summary.versions_withdrawn) == (2, 1, [1, 2])
    assert holds(location, content) == []
    opened = open_dataset(location)
    assert (opened.manifest.version, len(opened.index)) == (3, 23)
    require_pixels_of_files(opened)
    assert {row["reason"] for row in opened.rejects.to_pylist()} == {"forgotten"}

    (archive / "rust" / "another.jpg").write_bytes(victim.read_bytes())
    again, _ = ingest(archive, location, max_reject_rate=0.0)
    assert (again.samples, again.rejects_by_reason) == (23, {"forgotten": 3})
    assert holds(location, content) == []
    assert forget(location, str(victim)).versions_withdrawn == [], "twice is once"


def test_a_row_that_died_before_is_erased_too(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 40)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    victim = archive / "moss" / "003.jpg"
    content = sha256(victim.read_bytes())
    victim.write_bytes(jpeg(31337))
    ingest(archive, dataset)
    summary = forget(dataset, "moss/003.jpg")
    assert (summary.contents, summary.versions_withdrawn) == (2, [1, 2])
    assert holds(dataset, content) == holds(dataset, sha256(victim.read_bytes())) == []
    assert len(open_dataset(dataset).read(range(79))) == 79


def test_an_erasure_that_was_killed_is_finished(
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
    assert holds(dataset, content)
    summary = forget(dataset, "moss/003.jpg")
    assert summary.versions_withdrawn == [1]
    assert holds(dataset, content) == []
    assert len(open_dataset(dataset).index) == 23


def test_a_state_that_only_a_withdrawn_version_knew_is_erased(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 40)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    victim, gone = archive / "moss" / "003.jpg", archive / "moss" / "004.jpg"
    contents = [sha256(path.read_bytes()) for path in (victim, gone)]
    victim.write_bytes(jpeg(31337))
    gone.unlink()
    ingest(archive, dataset)
    collect_garbage(open_store(dataset), {1})
    assert [len(holds(dataset, content)) for content in contents] == [1, 1], (
        "dead rows of a shard that lives"
    )
    summary = forget(dataset, "moss/004.jpg")
    assert "no version that is kept names" in summary.notes[0]
    assert [holds(dataset, content) for content in contents] == [[], []]
    assert len(open_dataset(dataset).read(range(79))) == 79


def test_cleaning_up_beside_an_erasure_takes_nothing_of_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    publish = publish_manifest

    def cleaned_up_first(store: Store, *rest: Any) -> bool:
        collect_garbage(store, set())
        return publish(store, *rest)

    monkeypatch.setattr(forget_module, "publish_manifest", cleaned_up_first)
    forget(dataset, "moss/003.jpg")
    store = open_store(dataset)
    assert verify_dataset(store, get_manifests(store)).damaged == []
    assert len(open_dataset(dataset).read(range(23))) == 23
    assert list(store.walk("plans")) == [], "its lease is gone"


def test_what_is_erased_is_counted_no_more(tmp_path: Path) -> None:
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


def test_an_unwanted_plan_is_given_up_on_request(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    with pytest.raises(KeyboardInterrupt):
        run_ingest(IngestConfig(source=str(archive), dataset=dataset, size=64), DyingExecutor(1))
    with pytest.raises(RequestError, match="--drop-plans"):
        forget(dataset, "moss/003.jpg")
    store = open_store(dataset)
    assert len(drop_plans(store, 1)) == 1
    assert any("shards/00000002-" in name for name in collect_garbage(store, set()))
    assert forget(dataset, "moss/003.jpg").pictures == 1


def test_forgetting_what_is_not_there_or_while_an_ingest_is_under_way_is_refused(
    tmp_path: Path,
) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    with pytest.raises(RequestError, match="nothing was erased"):
        forget(dataset, "moss/003.jpg", "moss/nothing.jpg")
    assert len(open_dataset(dataset).index) == 120
    for number in range(100):
        (archive / "rust" / f"new-{number}.jpg").write_bytes(jpeg(20_000 + number))
    with pytest.raises(KeyboardInterrupt):
        run_ingest(IngestConfig(source=str(archive), dataset=dataset, size=32), DyingExecutor(1))
    with pytest.raises(RequestError, match="is running or was interrupted"):
        forget(dataset, "moss/003.jpg")


def test_a_forecast_counts_what_the_ingest_then_does(archive: Path, tmp_path: Path) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    dataset = str(tmp_path / "dataset")
    config = IngestConfig(source=str(archive), dataset=dataset, size=32, workers=3)
    forecast = forecast_ingest(config)
    assert not Path(dataset).exists(), "a forecast writes nothing"
    assert (forecast.listed, forecast.to_read, forecast.sampled, forecast.workers) == (
        25,
        25,
        25,
        3,
    )
    assert forecast.sample_rejects == {"empty": 1}
    assert forecast.bytes_read == sum(path.stat().st_size for path in archive.rglob("*.jpg"))
    assert forecast.requests == {"LIST": 1, "GET": 25, "PUT": 8}
    assert sum(forecast.stages.values()) == pytest.approx(1, abs=0.01)
    run_ingest(config, InlineExecutor())
    written = sum(info.size for info in open_store(dataset).walk("shards"))
    assert forecast.bytes_written == pytest.approx(written, rel=0.1)
    assert (
        sum(len(list((Path(dataset) / kind).iterdir())) for kind in ("shards", "facts", "units"))
        == 3
    )
    (archive / "rust" / "new.jpg").write_bytes(jpeg(99))
    assert forecast_ingest(config).to_read == 1
