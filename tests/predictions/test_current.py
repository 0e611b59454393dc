"""Published rows and readers: a job may publish and delete parts while they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar import open_predictions
from afinar.predictions import current
from afinar.predictions.manifest import read_manifest
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from tests.archives import flat_archive, label
from tests.conftest import Trained


def test_parts_are_deleted_while_they_are_read_the_newer_rows_are_returned(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = flat_archive(tmp_path / "scans", 20), str(tmp_path / "out")
    label(scans, out, trained)
    reader, store = open_predictions(out), open_store(out)
    older = read_manifest(store)
    for path in scans.glob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"rewritten")
    label(scans, out, trained)

    hashes = {sha256(path.read_bytes()) for path in scans.glob("*.jpg")}
    assert {row["sample_id"] for row in reader.table.to_pylist()} == hashes
    manifests = iter([older])
    monkeypatch.setattr(
        current, "read_manifest", lambda store: next(manifests, None) or read_manifest(store)
    )
    (name,) = older.partitions
    assert current.read_published_rows(store, name).manifest.version == 2


def test_reject_is_transient_it_is_not_known(tmp_path: Path, trained: Trained) -> None:
    scans, out = flat_archive(tmp_path / "scans", 3), str(tmp_path / "out")
    (scans / "empty.jpg").write_bytes(b"")
    listed = tmp_path / "list.csv"
    uris = [*sorted(str(path) for path in scans.iterdir()), "missing.jpg"]
    listed.write_text("\n".join(["uri", *uris]) + "\n")
    label(listed, out, trained)
    rows = current.read_published_rows(
        open_store(out), read_manifest(open_store(out)).current or ""
    )
    assert sorted(rows.rows.column("reason").drop_null().to_pylist()) == ["empty", "missing"]
    known = {Path(uri).name for uri in rows.known(retry_rejects=False).column("uri").to_pylist()}
    assert known == {"000.jpg", "001.jpg", "002.jpg", "empty.jpg"}
    assert len(rows.known(retry_rejects=True)) == 3
    assert rows.count_rejects(rows.rows.column("uri")) == {"empty": 1, "missing": 1}
