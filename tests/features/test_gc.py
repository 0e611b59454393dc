"""Erasure, garbage collection and verification of features."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar import open_dataset
from afinar.cli import forget as forget_command
from afinar.config.forget import ForgetConfig
from afinar.config.status import StatusConfig
from afinar.execution.executor import RayExecutor
from afinar.features.gc import collect_features, erase_features
from afinar.features.manifest import open_features_store
from afinar.features.reader import open_features
from afinar.report.status import read_status
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.archives import ingest
from tests.conftest import make_archive
from tests.executors import InterruptedExecutor
from tests.features.jobs import compute
from tests.ingestion.test_forget import objects_with


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_archive(tmp_path / "pictures", 60)


@pytest.fixture
def dataset(archive: Path, tmp_path: Path, weights: str) -> str:
    ingest(archive, tmp_path / "dataset")
    compute(tmp_path / "dataset", weights, cut="3,6")
    return str(tmp_path / "dataset")


def forget(dataset: str, *uris: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr(RayExecutor, "for_job", classmethod(lambda *_: InlineExecutor()))
    return forget_command.run(ForgetConfig(path=dataset, uris=uris))


def test_forgotten_picture_has_no_features_left(
    archive: Path, dataset: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sha256((archive / "moss" / "003.jpg").read_bytes())
    assert objects_with(dataset, content)
    with pytest.raises(KeyboardInterrupt):  # a plan that names the picture, and units with it
        compute(dataset, weights, InterruptedExecutor(1), cut="9")
    summary = forget(dataset, "moss/003.jpg", monkeypatch=monkeypatch)
    assert summary["features_erased"] == 2
    assert objects_with(dataset, content) == []
    features = open_features(dataset, cut="3")
    assert len(features.index) == 119
    assert len(features.read(open_dataset(dataset).index["sample_id"])) == 119
    assert compute(dataset, weights, cut="3,6").read == 0
    assert erase_features(dataset) == 0


def test_killed_erasure_is_completed_by_the_same_command(
    archive: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sha256((archive / "moss" / "003.jpg").read_bytes())
    with monkeypatch.context() as patch:

        def killed(_: str) -> int:
            raise KeyboardInterrupt

        patch.setattr("afinar.features.gc.erase_features", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(dataset, "moss/003.jpg", monkeypatch=monkeypatch)
    assert objects_with(dataset, content)
    assert forget(dataset, "moss/003.jpg", monkeypatch=monkeypatch)["features_erased"] == 2
    assert objects_with(dataset, content) == []


def test_garbage_collection_keeps_published_and_leased_features(dataset: str, weights: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute(dataset, weights, InterruptedExecutor(1), cut="9")
    store = open_store(dataset)
    store.put_if_absent(f"features/{open_features(dataset, cut='3').key}/shards/dead-1.arrow", b"")
    removed = collect_features(dataset, drop_plans=False)
    assert [name.rsplit("/", 1)[-1] for name in removed] == ["dead-1.arrow"]
    assert compute(dataset, weights, cut="9").read == 56, "the committed unit was kept"

    with pytest.raises(KeyboardInterrupt):
        compute(dataset, weights, InterruptedExecutor(1), cut="auto")
    assert any(
        name.startswith("features/plans/") for name in collect_features(dataset, drop_plans=True)
    )
    assert compute(dataset, weights, cut="auto").read == 120


def test_features_of_pictures_in_no_version_are_dropped(
    archive: Path, dataset: str, weights: str
) -> None:
    for path in sorted((archive / "moss").iterdir())[:50]:
        path.unlink()
    ingest(archive, dataset)
    read_status(StatusConfig(path=dataset, gc=True))
    assert len(open_features(dataset, cut="3").index) == 120, "version 1 has the pictures"
    read_status(StatusConfig(path=dataset, gc=True, keep=1))
    features = open_features(dataset, cut="3")
    assert len(features.index) == 70
    assert len(features.read(open_dataset(dataset).index["sample_id"])) == 70
    assert compute(dataset, weights, cut="3,6").read == 0


def test_status_shows_and_verifies_features(dataset: str) -> None:
    summary = read_status(StatusConfig(path=dataset, verify=True))
    assert [(item["cut"], item["covered"]) for item in summary["features"]] in (
        [("3", 120), ("6", 120)],
        [("6", 120), ("3", 120)],
    )
    assert summary["exit_code"] == 0
    key = summary["features"][0]["key"]
    shard = next(iter(open_features_store(dataset, key).walk("shards")))
    path = Path(shard.uri)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    damaged = read_status(StatusConfig(path=dataset, verify=True))
    assert damaged["exit_code"] == 1
    assert damaged["features_damaged"][0]["keys"] == [key]
