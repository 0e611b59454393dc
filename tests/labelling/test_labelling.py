"""Labelling, in this process: every picture accounted for once, whatever interrupts it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pytest
from afinar import open_dataset, open_model, open_predictions
from afinar.config.label import LabelConfig
from afinar.errors import RequestError, ShortfallError
from afinar.labelling.driver import Labelling, LabelSummary
from afinar.labelling.source import Folder
from afinar.labelling.tasks import LabelSpec, LabelTask, make_labeller
from afinar.models.registry.versions import publish_model
from afinar.pictures.rejects import PictureError
from afinar.predictions import current
from afinar.predictions.gc import delete_superseded
from afinar.predictions.manifest import read_manifest
from afinar.storage.markers import committed_units
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor

from tests.conftest import Trained, jpeg


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """An archive of 120 pictures in no folders, with four broken ones among them."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(120):
        tint = (60, 140, 60) if number % 2 else (170, 80, 50)
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(10_000 + number, tint=tint))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "note.jpg").write_bytes(b"see the next box")
    (folder / "cut.jpg").write_bytes(jpeg(1)[:700])
    (folder / "readme.txt").write_bytes(b"not listed")
    return folder


def label(
    source: Path, out: str, trained: Trained, executor: Any = None, **options: Any
) -> LabelSummary:
    config = LabelConfig(source=str(source), predictions=out, model=trained.champion, **options)
    return Labelling(config, executor or InlineExecutor()).run()


def test_each_answer_belongs_to_its_picture(scans: Path, location: str, trained: Trained) -> None:
    summary = label(scans, location, trained)
    assert (summary.listed, summary.labelled, summary.rejected, summary.skipped) == (123, 120, 3, 0)
    assert summary.rejects_by_reason == {"empty": 1, "truncated": 1, "unidentified": 1}
    predictions = open_predictions(location)
    rows = predictions.table.to_pylist()
    assert [row["uri"] for row in rows] == [
        str(scans / f"{number:03d}.jpg") for number in range(120)
    ]
    model = open_model(trained.champion)
    for row in rows[::17]:
        (alone,) = model.predict([row["uri"]])
        assert row["label"] == max(alone, key=alone.__getitem__)
        assert row["score"] == pytest.approx(alone[row["label"]], abs=1e-3)
        assert row["top_labels"][0] == row["label"]
        assert row["top_scores"] == sorted(row["top_scores"], reverse=True)
    assert sorted(Path(row["uri"]).name for row in predictions.rejects.to_pylist()) == [
        "cut.jpg", "empty.jpg", "note.jpg",
    ]  # fmt: skip


def test_a_file_is_labelled_as_its_shard_row_is(trained: Trained) -> None:
    dataset, model = open_dataset(trained.dataset), open_model(trained.champion)
    rows = list(range(0, len(dataset.index), 7))
    from_shards = model.predict(list(dataset.read(rows)))
    from_files = model.predict([dataset.index.column("uri")[row].as_py() for row in rows])
    for one, other in zip(from_shards, from_files, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_probabilities_are_those_of_the_versions_temperature(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    models = open_store(shutil.copytree(trained.models, tmp_path / "models").as_posix())
    plain = open_model(f"{models.root}@1")
    warmer = publish_model(
        models,
        lambda number: replace(
            plain.version, version=number, id=f"{number}-{'0' * 8}", temperature=3.0
        ),
    )
    config = LabelConfig(
        source=str(scans),
        predictions=str(tmp_path / "out"),
        model=f"{models.root}@{warmer.version}",
    )
    Labelling(config, InlineExecutor()).run()
    rows = open_predictions(str(tmp_path / "out")).table.to_pylist()[::17]
    for row, before in zip(rows, plain.predict([row["uri"] for row in rows]), strict=True):
        rooted = {name: chance ** (1 / 3) for name, chance in before.items()}
        expected = rooted[row["label"]] / sum(rooted.values())
        assert row["score"] == pytest.approx(expected, abs=1e-4)
        assert row["score"] < before[row["label"]]


def test_a_second_run_does_nothing_and_says_so(
    scans: Path, location: str, trained: Trained
) -> None:
    label(scans, location, trained)
    store = open_store(location)
    before = {(info.name, info.etag) for info in store.walk()}
    next_attempt = label(scans, location, trained)
    assert (
        next_attempt.labelled,
        next_attempt.rejected,
        next_attempt.skipped,
        next_attempt.units_run,
    ) == (0, 3, 120, 0)
    assert "nothing to do" in next_attempt.notes[0]
    assert {(info.name, info.etag) for info in store.walk()} == before


class Dying(InlineExecutor):
    """Loses its driver after some units."""

    def run_with_state(self, make_work: Any, tasks: Any, care: Any = None) -> Iterator[Any]:
        work = make_work()
        for number, task in enumerate(tasks):
            if number == 1:
                raise KeyboardInterrupt
            yield work(task)


class Counting(InlineExecutor):
    """Remembers which pictures were handed out."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run_with_state(self, make_work: Any, tasks: Any, care: Any = None) -> Iterator[Any]:
        tasks = list(tasks)
        self.names += [entry.name for task in tasks for entry in task.entries]
        return super().run_with_state(make_work, tasks)


def plain_reader(out: str) -> list[str]:
    """URIs as any Parquet reader of the folder sees them."""
    table = pads.dataset(f"{out}/parts", format="parquet", partitioning="hive").to_table()
    return sorted(table.column("uri").to_pylist())


def test_an_interrupted_run_is_continued_not_repeated(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, Dying())
    executor = Counting()
    summary = label(scans, out, trained, executor)
    assert 0 < len(executor.names) < 123
    assert summary.labelled + summary.rejected == summary.listed == 123
    whole = str(tmp_path / "whole")
    label(scans, whole, trained)
    assert open_predictions(out).table == open_predictions(whole).table
    assert plain_reader(out) == [str(scans / f"{number:03d}.jpg") for number in range(120)]


def test_only_new_and_changed_pictures_are_labelled(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    (scans / "000.jpg").write_bytes(jpeg(20_000, (61, 61), tint=(60, 140, 60)))
    (scans / "new.jpg").write_bytes(jpeg(20_001))
    (scans / "empty.jpg").write_bytes(jpeg(20_002))
    (scans / "001.jpg").write_bytes(b"overwritten with rubbish")
    executor = Counting()
    summary = label(scans, out, trained, executor)
    assert sorted(executor.names) == ["000.jpg", "001.jpg", "empty.jpg", "new.jpg"]
    assert (summary.labelled, summary.rejected, summary.skipped) == (3, 3, 118)
    predictions = open_predictions(out)
    by_name = {Path(row["uri"]).name: row for row in predictions.table.to_pylist()}
    assert by_name["000.jpg"]["label"] == "moss"
    assert "001.jpg" not in by_name
    assert sorted(Path(row["uri"]).name for row in predictions.rejects.to_pylist()) == [
        "001.jpg",
        "cut.jpg",
        "note.jpg",
    ]
    assert plain_reader(out) == sorted(row["uri"] for row in by_name.values()), (
        "superseded rows are gone"
    )


def test_rejects_are_tried_again_on_request(scans: Path, tmp_path: Path, trained: Trained) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    executor = Counting()
    summary = label(scans, out, trained, executor, retry_rejects=True)
    assert sorted(executor.names) == ["cut.jpg", "empty.jpg", "note.jpg"]
    assert (summary.rejected, summary.skipped) == (3, 120)
    assert len(open_predictions(out).rejects) == 3


def test_what_changes_an_answer_has_a_partition_of_its_own(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    summary = label(scans, out, trained, top_k=1)
    assert summary.labelled == 120
    assert open_predictions(out).table.column("top_labels").to_pylist()[0] in (["moss"], ["rust"])
    version = summary.model.split("@")[1]
    assert len(open_predictions(out, version).table.column("top_labels").to_pylist()[0]) == 2
    with pytest.raises(RequestError, match="but of"):
        open_predictions(out, "another")


def test_two_sources_share_a_folder(scans: Path, tmp_path: Path, trained: Trained) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(scans / "000.jpg", other / "copy.jpg")
    assert label(other, out, trained).labelled == 1
    assert len(open_predictions(out).table) == 121


def test_a_twin_of_a_committed_unit_leaves_nothing_behind(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    store = open_store(out)
    before = {info.name for info in store.walk()}
    (*_, unit) = sorted(committed_units(store))
    from afinar.sources.entry import Entry

    spec = LabelSpec(
        source=Folder(str(scans)),
        predictions=out,
        partition="late",
        model=trained.champion,
        top_k=5,
        batch_size=4,
        precision="auto",
        pictures=1,
    )
    (scans / "late.jpg").write_bytes(jpeg(3))
    late = next(info for info in open_store(str(scans)).walk() if info.name == "late.jpg")
    make_labeller(spec)(LabelTask(unit, (Entry(late.name, late.uri, late.etag, late.size),)))
    assert {info.name for info in store.walk()} == before


def test_a_reject_budget_is_told_by_exit_code_after_the_work_is_kept(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ShortfallError, match="3 of 123"):
        label(scans, out, trained, max_reject_rate=0.01)
    assert len(open_predictions(out).table) == 120


def test_one_picture_is_predicted_from_python(scans: Path, trained: Trained) -> None:
    model = open_model(trained.champion)
    (answer,) = model.predict([scans / "001.jpg"])
    assert set(answer) == {"moss", "rust"}
    assert sum(answer.values()) == pytest.approx(1.0, abs=1e-5)
    assert max(answer, key=answer.__getitem__) == "moss"
    with pytest.raises(PictureError):
        model.predict([scans / "note.jpg"])
    assert model.predict([]) == []
    assert model(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape == (2, 2)


class Overtaken(InlineExecutor):
    """Lets something else happen once its own units are done."""

    def __init__(self, meanwhile: Any) -> None:
        self.meanwhile = meanwhile

    def run_with_state(self, make_work: Any, tasks: Any, care: Any = None) -> Iterator[Any]:
        yield from super().run_with_state(make_work, tasks)
        self.meanwhile()


def test_a_labelling_that_is_overtaken_publishes_on_top(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(scans / "000.jpg", other / "copy.jpg")
    executor = Overtaken(lambda: label(other, out, trained))
    assert label(scans, out, trained, executor).labelled == 120
    uris = open_predictions(out).table.column("uri").to_pylist()
    assert len(uris) == len(set(uris)) == 121, "both jobs' pictures, each once"
    assert plain_reader(out) == uris
    assert label(scans, out, trained).skipped == label(other, out, trained).skipped + 119 == 120


def test_two_labellings_of_one_source_at_once_agree(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    executor = Overtaken(lambda: label(scans, out, trained))
    summary = label(scans, out, trained, executor)
    assert (summary.read, summary.skipped, summary.rejected) == (123, 120, 3), "its twin published"
    assert plain_reader(out) == open_predictions(out).table.column("uri").to_pylist()
    assert len(plain_reader(out)) == 120
    assert label(scans, out, trained).skipped == 120


def test_a_twin_that_comes_late_does_not_bring_back_what_is_superseded(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")

    def meanwhile() -> None:
        label(scans, out, trained)
        for path in scans.glob("0*.jpg"):
            path.write_bytes(jpeg(40_000 + int(path.stem)))
        label(scans, out, trained)

    label(scans, out, trained, Overtaken(meanwhile))
    table = open_predictions(out).table
    wanted = {str(path): sha256(path.read_bytes()) for path in scans.glob("[01]*.jpg")}
    assert (
        dict(zip(*(table.column(name).to_pylist() for name in ("uri", "sample_id")), strict=True))
        == wanted
    )
    assert plain_reader(out) == sorted(wanted)


def test_a_sweep_leaves_alone_what_is_about_to_be_published(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    (scans / "000.jpg").write_bytes(jpeg(20_000))
    real = Labelling._publish_manifest

    def after_a_rivals_sweep(self: Labelling, *rest: Any) -> bool:
        assert (
            delete_superseded(self.store, [f"{kind}/model={self.partition}" for kind in ("parts", "rejects")])
            == []
        )
        return real(self, *rest)

    monkeypatch.setattr(Labelling, "_publish_manifest", after_a_rivals_sweep)
    assert label(scans, out, trained).labelled == 1
    table = open_predictions(out).table
    assert len(table) == 120
    assert plain_reader(out) == table.column("uri").to_pylist()


def test_a_reader_meets_a_labelling_that_removes_what_it_superseded(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    reader, store = open_predictions(out), open_store(out)
    older = read_manifest(store)
    for path in scans.glob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"rewritten")
    label(scans, out, trained)
    assert {row["sample_id"] for row in reader.table.to_pylist()} == {
        sha256(path.read_bytes()) for path in scans.glob("[01]*.jpg")
    }
    answers = iter([older])
    monkeypatch.setattr(
        current, "read_manifest", lambda store: next(answers, None) or read_manifest(store)
    )
    (name,) = older.partitions
    assert current.read_published_rows(store, name).manifest.version == 2


def test_a_removal_that_was_cut_short_is_finished_by_the_next_run(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    for path in scans.glob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"rewritten")
    with monkeypatch.context() as patch:
        calls: list[Labelling] = []

        def killed(self: Labelling) -> None:
            calls.append(self)
            if len(calls) == 2:  # the first is at the start, the second after publishing
                raise KeyboardInterrupt

        patch.setattr(Labelling, "_sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            label(scans, out, trained)
    assert len(plain_reader(out)) == 240, "old and new lie side by side after the crash"
    label(scans, out, trained)
    assert plain_reader(out) == open_predictions(out).table.column("uri").to_pylist()
    assert len(plain_reader(out)) == 120


def test_a_store_that_is_gone_ends_the_job_and_loses_nothing(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.errors import StorageError
    from afinar.storage.folder_reader import FolderReader

    out = str(tmp_path / "out")
    real = FolderReader.get

    def expired(self: FolderReader, name: str, etag: str | None = None) -> bytes:
        if self.root == str(scans):
            raise StorageError("no answer in time")
        return real(self, name, etag)

    with monkeypatch.context() as patch:
        patch.setattr(FolderReader, "get", expired)
        with pytest.raises(StorageError, match="in a row"):
            label(scans, out, trained)
    assert label(scans, out, trained).labelled == 120
