"""Labelling in this process: every picture is accounted for once, whatever interrupts the job."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from afinar import open_dataset, open_model, open_predictions
from afinar.config.label import LabelConfig
from afinar.errors import RequestError, StorageError
from afinar.labelling import driver
from afinar.labelling.driver import LabelJob, run_labelling
from afinar.models.registry.golden import GoldenPictures, get_golden, put_golden
from afinar.models.registry.versions import publish_model
from afinar.predictions.gc import delete_superseded
from afinar.predictions.manifest import PredictionManifest, publish_manifest
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.executor import InlineExecutor
from tests.archives import BROKEN, fail_reads, flat_archive, label
from tests.conftest import Trained, jpeg
from tests.executors import InterruptedExecutor, OvertakenExecutor, RecordingExecutor

PICTURES = 120


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """120 pictures without class folders, three broken ones, and a file that is not listed."""
    folder = flat_archive(tmp_path / "scans", PICTURES, first_seed=10_000)
    for name, reason in (("empty", "empty"), ("note", "unidentified"), ("cut", "truncated")):
        (folder / f"{name}.jpg").write_bytes(BROKEN[reason])
    (folder / "readme.txt").write_bytes(b"not listed")
    return folder


def file_uris(out: str) -> list[str]:
    """Uris that a reader of the folder's Parquet files finds without the manifest."""
    table = pads.dataset(f"{out}/parts", format="parquet", partitioning="hive").to_table()
    return sorted(table.column("uri").to_pylist())


def published_uris(out: str) -> list[str]:
    """Uris that the manifest names, sorted."""
    uris: list[str] = open_predictions(out).table.column("uri").to_pylist()
    return uris


def test_folder_is_labelled_each_prediction_belongs_to_its_picture(
    scans: Path, location: str, trained: Trained
) -> None:
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
    rejects = sorted(Path(row["uri"]).name for row in predictions.rejects.to_pylist())
    assert rejects == ["cut.jpg", "empty.jpg", "note.jpg"]


def test_file_and_its_shard_row_have_the_same_prediction(trained: Trained) -> None:
    dataset, model = open_dataset(trained.dataset), open_model(trained.champion)
    rows = list(range(0, len(dataset.index), 7))
    from_shards = model.predict(list(dataset.read(rows)))
    from_files = model.predict([dataset.index.column("uri")[row].as_py() for row in rows])
    for shard_scores, file_scores in zip(from_shards, from_files, strict=True):
        assert shard_scores == pytest.approx(file_scores, abs=1e-6)


def test_model_version_has_a_temperature_scores_are_softened(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    models = open_store(shutil.copytree(trained.models, tmp_path / "models").as_posix())
    plain = open_model(f"{models.root}@1")
    samples = get_golden(models, plain.version.golden)
    golden = put_golden(
        models, GoldenPictures(samples.files, samples.images), samples.logits, plain.classes, 3.0
    )
    warmer = publish_model(
        models,
        lambda number: replace(plain.version, version=number, golden=golden, temperature=3.0),
    )
    label(scans, tmp_path / "out", f"{models.root}@{warmer.version}", precision="float32")
    rows = open_predictions(str(tmp_path / "out")).table.to_pylist()[::17]
    for row, before in zip(rows, plain.predict([row["uri"] for row in rows]), strict=True):
        power = plain.version.temperature / warmer.temperature
        rooted = {name: score**power for name, score in before.items()}
        expected = rooted[row["label"]] / sum(rooted.values())
        assert row["score"] == pytest.approx(expected, abs=1e-4)
        assert row["score"] < before[row["label"]]


def test_second_run_finds_no_change_nothing_is_written(
    scans: Path, location: str, trained: Trained
) -> None:
    label(scans, location, trained)
    store = open_store(location)
    before = {(info.name, info.etag) for info in store.walk()}
    second = label(scans, location, trained)
    assert (second.labelled, second.rejected, second.skipped, second.units_run) == (0, 3, 120, 0)
    assert "nothing to do" in second.notes[0]
    assert {(info.name, info.etag) for info in store.walk()} == before


def test_run_is_interrupted_next_run_does_the_rest(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, InterruptedExecutor())
    executor = RecordingExecutor()
    summary = label(scans, out, trained, executor)
    assert 0 < len(executor.uris) < 123
    assert summary.labelled + summary.rejected == summary.listed == 123
    whole = str(tmp_path / "whole")
    label(scans, whole, trained)
    assert open_predictions(out).table == open_predictions(whole).table
    assert file_uris(out) == [str(scans / f"{number:03d}.jpg") for number in range(120)]


def test_some_pictures_changed_only_those_are_labelled(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    (scans / "000.jpg").write_bytes(jpeg(20_000, (61, 61), tint=(60, 140, 60)))
    (scans / "new.jpg").write_bytes(jpeg(20_001))
    (scans / "empty.jpg").write_bytes(jpeg(20_002))
    (scans / "001.jpg").write_bytes(b"overwritten with rubbish")
    executor = RecordingExecutor()
    summary = label(scans, out, trained, executor)
    assert executor.names == ["000.jpg", "001.jpg", "empty.jpg", "new.jpg"]
    assert (summary.labelled, summary.rejected, summary.skipped) == (3, 3, 118)

    predictions = open_predictions(out)
    by_name = {Path(row["uri"]).name: row for row in predictions.table.to_pylist()}
    assert by_name["000.jpg"]["label"] == "moss"
    assert "001.jpg" not in by_name
    rejects = sorted(Path(row["uri"]).name for row in predictions.rejects.to_pylist())
    assert rejects == ["001.jpg", "cut.jpg", "note.jpg"]
    assert file_uris(out) == sorted(row["uri"] for row in by_name.values()), "old rows are deleted"


def test_retry_rejects_is_set_rejects_are_read_again(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    executor = RecordingExecutor()
    summary = label(scans, out, trained, executor, retry_rejects=True)
    assert executor.names == ["cut.jpg", "empty.jpg", "note.jpg"]
    assert (summary.rejected, summary.skipped) == (3, 120)
    assert len(open_predictions(out).rejects) == 3


def test_option_changes_rows_another_partition_is_written(
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


def test_two_sources_are_labelled_into_one_folder_both_are_kept(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(scans / "000.jpg", other / "copy.jpg")
    assert label(other, out, trained).labelled == 1
    assert len(open_predictions(out).table) == 121


def test_reject_budget_is_exceeded_outcome_has_a_shortfall_and_predictions_are_kept(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    config = LabelConfig(
        source=str(scans), predictions=out, model=trained.champion, max_reject_rate=0.01
    )
    outcome = run_labelling(config, InlineExecutor())
    assert outcome.shortfall is not None
    assert "3 of 123" in outcome.shortfall
    assert len(open_predictions(out).table) == 120


def test_another_source_is_published_meanwhile_run_publishes_on_top(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(scans / "000.jpg", other / "copy.jpg")
    executor = OvertakenExecutor(lambda: label(other, out, trained))
    assert label(scans, out, trained, executor).labelled == 120
    uris = published_uris(out)
    assert len(uris) == len(set(uris)) == 121, "pictures of both jobs, each once"
    assert file_uris(out) == uris
    assert label(scans, out, trained).skipped == label(other, out, trained).skipped + 119 == 120


def test_concurrent_duplicate_run_publishes_first_pictures_are_published_once(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    executor = OvertakenExecutor(lambda: label(scans, out, trained))
    summary = label(scans, out, trained, executor)
    assert (summary.read, summary.skipped, summary.rejected) == (123, 120, 3)
    assert file_uris(out) == published_uris(out)
    assert len(file_uris(out)) == 120
    assert label(scans, out, trained).skipped == 120


def test_duplicate_run_ends_after_newer_runs_superseded_rows_stay_deleted(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")

    def meanwhile() -> None:
        label(scans, out, trained)
        for path in scans.glob("0*.jpg"):
            path.write_bytes(jpeg(40_000 + int(path.stem)))
        label(scans, out, trained)

    label(scans, out, trained, OvertakenExecutor(meanwhile))
    rows = open_predictions(out).table.to_pylist()
    files = {str(path): sha256(path.read_bytes()) for path in scans.glob("[01]*.jpg")}
    assert {row["uri"]: row["sample_id"] for row in rows} == files
    assert file_uris(out) == sorted(files)


def test_garbage_is_collected_before_publishing_new_parts_are_kept(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    (scans / "000.jpg").write_bytes(jpeg(20_000))

    def collect_then_publish(store: Store, manifest: PredictionManifest, owner: str) -> bool:
        folders = [f"{kind}/model={manifest.current}" for kind in ("parts", "rejects")]
        assert delete_superseded(store, folders) == []
        return publish_manifest(store, manifest, owner)

    monkeypatch.setattr(driver, "publish_manifest", collect_then_publish)
    assert label(scans, out, trained).labelled == 1
    assert len(published_uris(out)) == 120
    assert file_uris(out) == published_uris(out)


def test_run_is_killed_before_it_deletes_superseded_parts_next_run_deletes_them(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained)
    for path in scans.glob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"rewritten")

    with monkeypatch.context() as patch:
        calls: list[LabelJob] = []

        def killed(self: LabelJob) -> None:
            calls.append(self)
            if len(calls) == 2:  # the first call is before the run, the second after publishing
                raise KeyboardInterrupt

        patch.setattr(LabelJob, "_delete_superseded", killed)
        with pytest.raises(KeyboardInterrupt):
            label(scans, out, trained)
    assert len(file_uris(out)) == 240, "old and new parts after the crash"

    label(scans, out, trained)
    assert file_uris(out) == published_uris(out)
    assert len(file_uris(out)) == 120


def test_source_store_fails_job_ends_and_next_run_labels_all(
    scans: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    with monkeypatch.context() as patch:
        fail_reads(patch, scans, StorageError("no answer in time"))
        with pytest.raises(StorageError, match="in a row"):
            label(scans, out, trained)
    assert label(scans, out, trained).labelled == 120
