"""Ingest, in this process: what is left behind after every kind of second run."""

from __future__ import annotations

import dataclasses
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError, ShortfallError
from afinar.ingest.driver import IngestSummary, run_ingest
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import jpeg, make_archive


def ingest(source: Path | str, dataset: str, **options: Any) -> IngestSummary:
    config = IngestConfig(source=str(source), dataset=dataset, size=32, **options)
    return run_ingest(config, InlineExecutor()).summary


def snapshot(dataset: str) -> dict[str, str]:
    store = open_store(dataset)
    return {info.name: sha256(store.get(info.name)) for info in store.walk()}


def test_every_picture_is_a_sample_or_a_reject(archive: Path, location: str) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    summary = ingest(archive, location)
    assert (summary.listed, summary.samples, summary.added) == (25, 24, 24)
    assert summary.rejects_by_reason == {"empty": 1}
    assert summary.classes == ["moss", "rust"]
    assert sum(summary.splits.values()) == 24

    dataset = open_dataset(location)
    index = dataset.index.to_pylist()
    images = dataset.read(range(len(index)))
    for row, image in zip(index, images, strict=True):
        data = Path(row["uri"]).read_bytes()
        assert row["sample_id"] == sha256(data)
        assert row["label"] == Path(row["uri"]).parent.name
        np.testing.assert_array_equal(image, decode(data, StoredView(size=32, fit="crop")).image)
    (reject,) = dataset.rejects.to_pylist()
    assert (reject["uri"], reject["reason"]) == (str(archive / "moss" / "empty.jpg"), "empty")


def test_a_second_run_does_nothing_and_says_so(archive: Path, location: str) -> None:
    ingest(archive, location)
    before = snapshot(location)
    summary = ingest(archive, location)
    assert summary.units_run == 0
    assert summary.unchanged == summary.listed == 24
    assert "nothing to do" in summary.notes[0]
    assert snapshot(location) == before


def test_only_what_changed_is_read(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    before = snapshot(dataset)
    (archive / "moss" / "000.jpg").unlink()
    (archive / "moss" / "001.jpg").write_bytes(jpeg(5001))
    (archive / "rust" / "new.jpg").write_bytes(jpeg(5002))

    reads = CountingExecutor()
    summary = run_ingest(IngestConfig(source=str(archive), dataset=dataset, size=32), reads).summary
    assert sorted(Path(uri).name for uri in reads.uris) == ["001.jpg", "new.jpg"]
    assert (summary.added, summary.changed, summary.removed, summary.unchanged) == (1, 1, 1, 22)
    assert summary.version == 2

    after = snapshot(dataset)
    assert {name: after[name] for name in before} == before, "no published object changed"
    uris = open_dataset(dataset).index.column("uri").to_pylist()
    assert uris == sorted(str(path) for path in archive.rglob("*.jpg"))
    assert len(open_dataset(dataset, version=1).index) == 24, "the old version still reads"


class CountingExecutor(InlineExecutor):
    """Remembers which pictures were handed out."""

    def __init__(self) -> None:
        self.uris: list[str] = []

    def run(self, work: Any, tasks: Any) -> Iterator[Any]:
        for task in tasks:
            self.uris += [
                entry.uri for entry in getattr(task, "entries", ())
            ]  # compaction reads none
            yield work(task)


class DyingExecutor(InlineExecutor):
    """Loses its driver after a number of units."""

    def __init__(self, units: int) -> None:
        self.units = units

    def run(self, work: Any, tasks: Any) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == self.units:
                raise KeyboardInterrupt
            yield work(task)


def test_an_interrupted_run_is_continued_not_repeated(tmp_path: Path, location: str) -> None:
    archive = make_archive(tmp_path / "many", 150)
    config = IngestConfig(source=str(archive), dataset=location, size=32)
    with pytest.raises(KeyboardInterrupt):
        run_ingest(config, DyingExecutor(2))
    with pytest.raises(RequestError, match="holds no dataset"):
        open_dataset(location)
    left = CountingExecutor()
    summary = run_ingest(config, left).summary
    assert 0 < len(left.uris) < 300
    assert (summary.samples, summary.added, summary.version) == (300, 300, 1)

    undisturbed = str(tmp_path / "undisturbed")
    ingest(archive, undisturbed)
    assert open_dataset(location).index == open_dataset(undisturbed).index
    shards = [name for name in snapshot(location) if name.startswith("shards/")]
    assert sorted(shards) == sorted(
        name for name in snapshot(undisturbed) if name.startswith("shards/")
    )


def test_what_changed_during_an_interruption_becomes_the_next_version(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "many", 100)
    config = IngestConfig(source=str(archive), dataset=str(tmp_path / "dataset"), size=32)
    with pytest.raises(KeyboardInterrupt):
        run_ingest(config, DyingExecutor(1))
    (archive / "moss" / "late.jpg").write_bytes(jpeg(9000))
    summary = run_ingest(config, InlineExecutor()).summary
    assert (summary.version, summary.added, summary.unchanged) == (2, 1, 200)


def test_over_the_reject_budget_nothing_is_published(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    for number in range(5):
        (archive / "moss" / f"broken-{number}.jpg").write_bytes(b"not a picture")
    with pytest.raises(ShortfallError, match=r"5 of 29 .*rejects/"):
        ingest(archive, dataset)
    with pytest.raises(RequestError):
        open_dataset(dataset)
    for path in archive.rglob("broken-*"):
        path.unlink()
    assert ingest(archive, dataset).samples == 24, (
        "the mended source is not held to the failed plan"
    )


def test_a_picture_rejected_in_transit_is_tried_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.errors import ForbiddenError
    from afinar.storage.folder_reader import FolderReader

    dataset = str(tmp_path / "dataset")
    real = FolderReader.get

    def guarded(self: FolderReader, name: str, etag: str | None = None) -> bytes:
        if name == "moss/003.jpg":
            raise ForbiddenError("403")
        return real(self, name, etag)

    with monkeypatch.context() as patch:
        patch.setattr(FolderReader, "get", guarded)
        assert ingest(archive, dataset).rejects_by_reason == {"forbidden": 1}
        again = ingest(archive, dataset)
        assert (again.version, again.rejects_by_reason) == (1, {"forbidden": 1}), (
            "no new version without news"
        )
    mended = ingest(archive, dataset)
    assert (mended.version, mended.added, mended.rejects) == (2, 1, 0)


def test_a_file_replaced_while_the_job_runs_is_rejected_or_whole(
    archive: Path, tmp_path: Path
) -> None:
    victim = archive / "moss" / "000.jpg"

    class Replacing(InlineExecutor):
        def run(self, work: Any, tasks: Any) -> Iterator[Any]:
            victim.write_bytes(jpeg(7777, (90, 90)))
            os.utime(victim, ns=(1, 1))
            return super().run(work, tasks)

    summary = run_ingest(
        IngestConfig(source=str(archive), dataset=str(tmp_path / "d"), size=32), Replacing()
    ).summary
    assert summary.rejects_by_reason == {"changed_while_reading": 1}


def test_another_preprocessing_reads_everything_anew(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    executor = CountingExecutor()
    config = IngestConfig(source=str(archive), dataset=dataset, size=48)
    assert run_ingest(config, executor).summary.version == 2
    assert len(executor.uris) == 24
    assert open_dataset(dataset).read([0]).shape == (1, 48, 48, 3)


def test_another_split_reads_no_picture(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    executor = CountingExecutor()
    config = IngestConfig(source=str(archive), dataset=dataset, size=32, split="0,0.5,0.5")
    summary = run_ingest(config, executor).summary
    assert executor.uris == []
    assert (summary.version, summary.splits["train"]) == (2, 0)


def test_an_ingest_that_is_overtaken_builds_on_the_rivals_version(
    archive: Path, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")
    for change, version in (({}, 1), ({"split": "0.5,0.25,0.25"}, 2)):
        first_changes = iter([change])

        class OvertakenExecutor(InlineExecutor):
            """Another ingest publishes before the first unit runs."""

            def run(self, work: Any, tasks: Any, changes: Any = first_changes) -> Any:
                for options in changes:
                    ingest(archive, dataset, **options)
                return super().run(work, tasks)

        (archive / "moss" / f"more-{version}.jpg").write_bytes(jpeg(8000 + version))
        config = IngestConfig(source=str(archive), dataset=dataset, size=32)
        summary = run_ingest(config, OvertakenExecutor()).summary
        assert summary.version == 2 * version - 1
        assert summary.samples == len(open_dataset(dataset).index) == 24 + version


def test_an_interrupted_plan_that_the_source_has_outgrown_is_dropped(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "many", 100)
    config = IngestConfig(source=str(archive), dataset=str(tmp_path / "dataset"), size=32)
    with pytest.raises(KeyboardInterrupt):
        run_ingest(config, DyingExecutor(1))
    for path in sorted(archive.rglob("*.jpg"))[::2]:
        path.unlink()
    summary = run_ingest(config, InlineExecutor()).summary
    assert (summary.listed, summary.rejects) == (100, 0)


def test_another_source_does_not_replace_a_dataset(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    make_archive(tmp_path / "other", 3)
    with pytest.raises(RequestError, match="would replace all"):
        ingest(tmp_path / "other", dataset)
    assert ingest(archive / ".." / archive.name, dataset).units_run == 0, (
        "another spelling is no other source"
    )


def test_a_fingerprint_does_not_depend_on_chunks(archive: Path) -> None:
    import pyarrow as pa

    from afinar.sources.listing import fingerprint, list_pictures

    listing = list_pictures(str(archive), None)
    chunked = pa.concat_tables([listing.slice(0, 5), listing.slice(5)])
    assert fingerprint(chunked) == fingerprint(listing)
    assert fingerprint(listing.slice(1)) != fingerprint(listing)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extensions": ".tif"}, "holds no pictures"),
        ({"source": "/nowhere"}, "does not exist"),
        ({"source": "ONE"}, "only the class 'moss'"),
        ({"source": "FLAT"}, "no class folders"),
    ],
)
def test_a_source_that_cannot_serve_is_refused(
    archive: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    make_archive(tmp_path / "one", 2, ("moss",))
    named = {"ONE": str(tmp_path / "one"), "FLAT": str(archive / "moss")}
    config = IngestConfig(source=str(archive), dataset=str(tmp_path / "d"))
    config = dataclasses.replace(
        config,
        **{**change, **{key: named[value] for key, value in change.items() if value in named}},
    )
    with pytest.raises(RequestError, match=words):
        run_ingest(config, InlineExecutor())
    assert not (tmp_path / "d").exists(), "a refused request leaves nothing behind"


def test_names_and_links_that_lead_nowhere_are_accounted_for(archive: Path, tmp_path: Path) -> None:
    (archive / "moss" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    Path(os.fsdecode(os.fsencode(archive / "rust") + b"/\xff\xfe.jpg")).write_bytes(jpeg(1))
    summary = ingest(archive, str(tmp_path / "dataset"), max_reject_rate=0.2)
    assert (summary.listed, summary.samples, summary.rejects_by_reason) == (26, 24, {"missing": 2})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look anywhere")
def test_a_folder_that_cannot_be_entered_is_not_passed_over(archive: Path, tmp_path: Path) -> None:
    (archive / "rust").chmod(0)
    try:
        with pytest.raises(RequestError, match="cannot list"):
            ingest(archive, str(tmp_path / "dataset"))
    finally:
        (archive / "rust").chmod(0o755)


def test_a_plan_over_budget_is_published_with_a_larger_one(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    for number in range(5):
        (archive / "moss" / f"broken-{number}.jpg").write_bytes(b"not a picture")
    with pytest.raises(ShortfallError):
        ingest(archive, dataset)
    from afinar.dataset.gc import open_plans

    assert len(list(open_plans(open_store(dataset), 0))) == 1, (
        "its lease, so that no clean-up takes its units"
    )
    summary = ingest(archive, dataset, max_reject_rate=0.5)
    assert (summary.version, summary.units_run, summary.rejects) == (1, 0, 5)


def test_a_folder_we_may_not_read_is_rejected_and_a_store_that_is_gone_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.errors import ForbiddenError, StorageError
    from afinar.storage.folder_reader import FolderReader

    archive = make_archive(tmp_path / "pictures", 40)
    real = FolderReader.get

    def guarded(self: FolderReader, name: str, etag: str | None = None) -> bytes:
        if name.startswith("moss/"):
            raise ForbiddenError("403")
        return real(self, name, etag)

    monkeypatch.setattr(FolderReader, "get", guarded)
    summary = ingest(archive, str(tmp_path / "dataset"), max_reject_rate=1.0)
    assert (summary.samples, summary.rejects_by_reason) == (40, {"forbidden": 40})

    def answers(self: FolderReader) -> bool:
        if self.root == str(archive):
            raise StorageError("credentials have expired")
        return True

    class ExpiringExecutor(InlineExecutor):
        """The credentials expire once the source is listed."""

        def run(self, work: Any, tasks: Any) -> Any:
            monkeypatch.setattr(FolderReader, "exists", answers)
            return super().run(work, tasks)

    config = IngestConfig(source=str(archive), dataset=str(tmp_path / "other"), size=32)
    with pytest.raises(StorageError, match="20 pictures in a row"):
        run_ingest(config, ExpiringExecutor())


def test_names_that_are_not_utf_8_are_accounted_for(archive: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(archive) + b"/mo\xff\xfess"))
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg(3))
    summary = ingest(archive, str(tmp_path / "dataset"), max_reject_rate=0.2)
    assert (summary.samples, summary.rejects_by_reason) == (24, {"missing": 1})


def test_files_that_are_rewritten_all_the_while_are_each_read_in_one_state(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    victims = sorted(archive.rglob("*.jpg"))[::4]
    states = {
        str(path): (path.read_bytes(), jpeg(60_000 + number)) for number, path in enumerate(victims)
    }
    stop = threading.Event()

    def rewrite() -> None:
        rng = random.Random(0)
        while not stop.is_set():
            path = rng.choice(victims)
            path.write_bytes(
                states[str(path)][rng.randrange(2)]
            )  # in place: a reader may see half of it

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for number in range(3):
            ingest(archive, str(tmp_path / f"dataset-{number}"), max_reject_rate=0.5)
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        dataset = open_dataset(str(tmp_path / f"dataset-{number}"))
        rows = dataset.index.to_pylist()
        assert len(rows) + len(dataset.rejects) == 120
        for row, image in zip(rows, dataset.read(range(len(rows))), strict=True):
            whole = states.get(row["uri"]) or (Path(row["uri"]).read_bytes(),)
            data = {sha256(state): state for state in whole}[row["sample_id"]]
            np.testing.assert_array_equal(image, decode(data, dataset.view).image)
        assert {row["reason"] for row in dataset.rejects.to_pylist()} <= {
            "changed_while_reading",
            "empty",
        }
