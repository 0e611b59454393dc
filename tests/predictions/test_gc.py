"""Garbage collection and verification of a prediction folder: nothing that is needed is deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afinar import open_predictions
from afinar.cli.main import main
from afinar.predictions.gc import collect, require_manifest, verify
from afinar.storage.open import open_store
from afinar.units.plans import stored_plans
from tests.archives import BROKEN, flat_archive, label
from tests.conftest import Trained
from tests.executors import InterruptedExecutor
from tests.predictions.folders import names_in


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """100 pictures, one of them broken."""
    folder = flat_archive(tmp_path / "scans", 99)
    (folder / "note.jpg").write_bytes(BROKEN["unidentified"])
    return folder


def test_unreferenced_objects_are_deleted_the_others_are_whole(
    scans: Path, location: str, trained: Trained
) -> None:
    label(scans, location, trained)
    label(scans, location, trained, top_k=1)
    store = open_store(location)
    strays = {
        "parts/model=1-gone/part-0123-beef.parquet",
        "rejects/model=1-gone/part-0123-beef.parquet",
    }
    strays |= {"units/0123.json", "lists/beef.parquet", "probes/1"}
    foreign = {"parts/notes.txt", "reports/mine.html"}
    for name in strays | foreign:
        store.put_if_absent(name, b"{}")
    before = set(names_in(store))
    units = {name for name in before if name.startswith("units/")}
    collected = collect(store, 0, drop_plans=False)
    assert (collected.versions, set(collected.objects)) == ([], strays | units)
    assert set(names_in(store)) == before - set(collected.objects)
    for partition in require_manifest(store).partitions:
        assert len(open_predictions(location, partition).table) == 99
    manifest = require_manifest(store)
    verification = verify(store, manifest)
    assert (manifest.version, verification.damaged) == (2, [])
    assert verification.read == sum(
        name.startswith(("parts/model", "rejects/", "lists/")) for name in set(names_in(store))
    )
    assert collect(store, 1, drop_plans=False).versions == [1]
    assert len(open_predictions(location).rejects) == 1
    store.delete(next(name for name in set(names_in(store)) if name.startswith("parts/model=1-")))
    (broken,) = verify(store, manifest).damaged
    assert broken.needed_by in ([name] for name in manifest.partitions)


def test_run_is_interrupted_its_units_are_kept_until_its_plan_is_dropped(
    scans: Path, location: str, trained: Trained
) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(scans, location, trained, InterruptedExecutor())
    store = open_store(location)
    (plan,) = stored_plans(store)
    store.put_if_absent(f"attempts/{min(plan.units)}/7-1", b"")
    before = set(names_in(store))
    assert collect(store, 0, drop_plans=False) == ([], [])
    assert set(names_in(store)) == before
    removed = collect(store, 0, drop_plans=True).objects
    assert set(removed) == before, "nothing was published, so nothing is needed"
    label(scans, location, trained)
    assert len(open_predictions(location).table) == 99, "the same units are not taken for committed"


def test_plan_is_deleted_but_its_markers_are_left_the_next_run_labels_all(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    """As if `status --gc --drop-plans` were killed after it had deleted the plan."""
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, InterruptedExecutor())
    store = open_store(out)
    for info in list(store.walk("plans")):
        store.delete(info.name)
    label(scans, out, trained)
    assert len(open_predictions(out).table) == 99
    assert verify(store, require_manifest(store)).damaged == []


def run_json(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the one JSON object on stdout."""
    code = main([*words, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_status_is_printed_it_has_each_partition_and_its_sources(
    scans: Path, tmp_path: Path, trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, InterruptedExecutor())
    code, status = run_json(capfd, "status", out)
    assert (code, status["version"], status["partitions"]) == (0, 0, [])
    assert [(plan["committed"], plan["units"]) for plan in status["plans"]] == [(1, 2)]
    assert main(["status", out]) == 0
    assert "1 of 2 units committed" in capfd.readouterr().out

    label(scans, out, trained)
    label(trained.pictures, out, trained)
    code, status = run_json(capfd, "status", out, "--verify", "--gc")
    (partition,) = status["partitions"]
    assert (code, status["damaged"], status["plans"]) == (0, [], [])
    assert (partition["rows"], partition["rejects"]) == (179, 1)
    assert partition["sources"] == sorted([str(scans), str(trained.pictures)])
    assert partition["model"].startswith(f"{trained.models}@1-")
    assert main(["status", out]) == 0
    assert "179 pictures labelled, 1 rejected (newest)" in capfd.readouterr().out

    (part, *_) = sorted((tmp_path / "out" / "parts").rglob("*.parquet"))
    part.chmod(0o600)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    code, status = run_json(capfd, "status", out, "--verify")
    damaged = [damage["path"] for damage in status["damaged"]]
    assert (code, damaged) == (1, [part.relative_to(out).as_posix()])
    assert main(["status", out, "--verify"]) == 1
    assert "1 damaged" in capfd.readouterr().out
    assert main(["status", str(scans)]) == 2
    assert "no dataset and no predictions" in capfd.readouterr().err
