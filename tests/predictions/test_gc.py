"""What `status` says and does to a prediction folder: nothing that counts is ever removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afinar import open_predictions
from afinar.cli.main import main
from afinar.config.label import LabelConfig
from afinar.labelling.driver import run_labelling
from afinar.predictions.gc import collect, require_manifest, verify
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.executor import InlineExecutor
from afinar.units.plans import stored_plans
from tests.conftest import Trained, jpeg


class Dying(InlineExecutor):
    """Loses its driver after one unit."""

    def run_with_state(self, make_work: Any, tasks: Any, care: Any = None) -> Iterator[Any]:
        work = make_work()
        yield work(next(iter(tasks)))
        raise KeyboardInterrupt


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """100 pictures, one of them broken."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(99):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number, tint=(60, 140, 60)))
    (folder / "note.jpg").write_bytes(b"see the next box")
    return folder


def label(source: Path, out: str, trained: Trained, executor: Any = None, **options: Any) -> None:
    config = LabelConfig(source=str(source), predictions=out, model=trained.champion, **options)
    run_labelling(config, executor or InlineExecutor())


def names(store: Store) -> set[str]:
    return {info.name for info in store.walk()}


def test_what_counts_is_whole_and_stays(scans: Path, location: str, trained: Trained) -> None:
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
    before = names(store)
    units = {name for name in before if name.startswith("units/")}
    withdrawn, removed = collect(store, 0, drop_plans=False)
    assert (withdrawn, set(removed)) == ([], strays | units)
    assert names(store) == before - set(removed)
    for partition in require_manifest(store).partitions:
        assert len(open_predictions(location, partition).table) == 99
    manifest = require_manifest(store)
    verification = verify(store, manifest)
    assert (manifest.version, verification.damaged) == (2, [])
    assert verification.read == sum(
        name.startswith(("parts/model", "rejects/", "lists/")) for name in names(store)
    )
    assert collect(store, 1, drop_plans=False)[0] == [1]
    assert len(open_predictions(location).rejects) == 1
    store.delete(next(name for name in names(store) if name.startswith("parts/model=1-")))
    (broken,) = verify(store, manifest).damaged
    assert broken.needed_by in ([name] for name in manifest.partitions)


def test_an_interrupted_run_keeps_what_it_did_until_it_is_given_up(
    scans: Path, location: str, trained: Trained
) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(scans, location, trained, Dying())
    store = open_store(location)
    (plan,) = stored_plans(store)
    store.put_if_absent(f"attempts/{min(plan.units)}/7-1", b"")
    before = names(store)
    assert collect(store, 0, drop_plans=False) == ([], [])
    assert names(store) == before
    _, removed = collect(store, 0, drop_plans=True)
    assert set(removed) == before, "nothing was published, so nothing is left"
    label(scans, location, trained)
    assert len(open_predictions(location).table) == 99, (
        "a plan of the same units takes none of them for done"
    )


def test_parts_that_went_before_their_markers_are_not_taken_for_done(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    """A plan is given up, its clean-up is killed, and the next run sweeps first."""
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, Dying())
    store = open_store(out)
    for info in list(store.walk("plans")):
        store.delete(info.name)
    label(scans, out, trained)
    assert len(open_predictions(out).table) == 99
    assert verify(store, require_manifest(store)).damaged == []


def answer(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object on stdout."""
    code = main([*words, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_status_tells_which_model_labelled_what(
    scans: Path, tmp_path: Path, trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, Dying())
    code, status = answer(capfd, "status", out)
    assert (code, status["version"], status["partitions"]) == (0, 0, [])
    assert [(plan["committed"], plan["units"]) for plan in status["plans"]] == [(1, 2)]
    assert main(["status", out]) == 0
    assert "1 of 2 units committed" in capfd.readouterr().out

    label(scans, out, trained)
    label(trained.pictures, out, trained)
    code, status = answer(capfd, "status", out, "--verify", "--gc")
    (partition,) = status["partitions"]
    assert (code, status["damaged"], status["plans"]) == (0, [], [])
    assert (partition["rows"], partition["rejects"]) == (179, 1)
    assert partition["sources"] == sorted([str(scans), str(trained.pictures)])
    assert partition["model"].startswith(f"{trained.models}@1-")
    assert main(["status", out]) == 0
    said = capfd.readouterr().out
    assert "179 pictures labelled, 1 rejected (newest)" in said

    (part, *_) = sorted((tmp_path / "out" / "parts").rglob("*.parquet"))
    part.chmod(0o600)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    code, status = answer(capfd, "status", out, "--verify")
    assert (code, [one["path"] for one in status["damaged"]]) == (
        1,
        [part.relative_to(out).as_posix()],
    )
    assert main(["status", out, "--verify"]) == 1
    assert "1 damaged" in capfd.readouterr().out
    assert main(["status", str(scans)]) == 2
    assert "no dataset and no predictions" in capfd.readouterr().err
