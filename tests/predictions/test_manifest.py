"""Manifests of predictions: the JSON on disk, and records that are old, foreign or forged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afinar import open_predictions
from afinar.config.strict import MismatchError, structure
from afinar.errors import RequestError
from afinar.predictions.manifest import PredictionManifest, kept_manifests, read_manifest
from afinar.predictions.schema import writer_unit
from afinar.storage.open import open_store
from tests.archives import flat_archive, label
from tests.conftest import Trained

OBJECTS = {"path": f"lists/{'a' * 16}.parquet", "rows": 1, "bytes": 9, "sha256": "a" * 64}
COUNTS = {"labels": {"moss": 2}, "histogram": [0] * 19 + [2], "score_sum": 1.9}
ENTRY = {
    "model": "models@1-0a1b2c3d",
    "source": "scans",
    "sources": ["scans", "more"],
    "objects": OBJECTS,
    "rows": 2,
    "rejects": 0,
    "last_run": {"listed": 2, "labelled": 2, "rejected": 0},
    "accounts": {"scans": {"version": 1, "run": COUNTS, "standing": COUNTS}},
    "left_out": {".txt": 1},
    "classes": ["moss", "rust"],
}


def record(name: str = "1-0a1b2c3d", **changes: Any) -> dict[str, Any]:
    """A manifest with one partition; a change to None removes the key."""
    entry = {key: value for key, value in {**ENTRY, **changes}.items() if value is not None}
    return {
        "format": "afinar-predictions/1",
        "version": 1,
        "current": name,
        "partitions": {name: entry},
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "manifests").mkdir()
    (folder / "manifests" / "00000001.json").write_text(json.dumps(content))


def test_manifest_is_read_and_written_the_record_is_the_same() -> None:
    for original in (record(), record(classes=None, left_out=None)):
        manifest = structure({**original, "owner": "job"}, PredictionManifest)
        assert json.dumps(manifest.as_dict()) == json.dumps(original)
    assert manifest.partitions["1-0a1b2c3d"].list_digest == "a" * 16


def test_run_publishes_the_keys_on_disk_are_these(tmp_path: Path, trained: Trained) -> None:
    scans, out = flat_archive(tmp_path / "scans", 2), tmp_path / "out"
    (scans / "notes.txt").write_text("not a picture")
    label(scans, out, trained, scores=True)
    (path,) = (out / "manifests").iterdir()
    content = json.loads(path.read_text())
    assert list(content) == ["format", "version", "current", "partitions", "owner"]
    (entry,) = content["partitions"].values()
    assert list(entry) == list(ENTRY)
    assert list(entry["objects"]) == list(OBJECTS)
    assert list(entry["accounts"][str(scans)]) == ["version", "run", "standing"]
    assert list(entry["accounts"][str(scans)]["run"]) == ["labels", "histogram", "score_sum"]


def test_early_version_has_neither_sources_nor_accounts_it_opens(tmp_path: Path) -> None:
    write(tmp_path, record(sources=None, accounts=None))
    (partition,) = read_manifest(open_store(str(tmp_path))).partitions.values()
    assert (partition.sources, partition.accounts) == (["scans"], {})


def test_record_has_unsafe_names_it_is_refused() -> None:
    for forged in (record("1-0a1b2c3d/../x"), record(objects={**OBJECTS, "path": "../x"})):
        with pytest.raises(MismatchError, match=r"^partitions.*is not the name of"):
            structure(forged, PredictionManifest)


def test_folder_holds_something_else_it_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {**record(), "format": "afinar-dataset/1"})
    with pytest.raises(RequestError, match="holds afinar-dataset/1, not predictions"):
        open_predictions(str(tmp_path))


def test_nothing_is_published_the_manifest_is_version_0(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert read_manifest(store) == PredictionManifest()
    assert kept_manifests(store) == []
    with pytest.raises(RequestError, match="holds no predictions"):
        open_predictions(str(tmp_path))


def test_number_in_a_record_is_wrong_that_of_its_file_counts(tmp_path: Path) -> None:
    write(tmp_path, {**record(), "version": 7})
    assert read_manifest(open_store(str(tmp_path))).version == 1


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("parts/model=1-0a1b2c3d/part-77aa-beef.parquet", "77aa"),
        ("parts/model=1-0a1b2c3d/notes.txt", None),
        ("parts/model=1-0a1b2c3d/part-1-2-3.parquet", None),
    ],
)
def test_unit_is_read_from_the_name_of_its_object(path: str, unit: str | None) -> None:
    assert writer_unit(path) == unit
