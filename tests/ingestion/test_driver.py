"""Ingests in this process, and what later runs of the same or another command leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afinar import open_dataset
from afinar.dataset.gc import open_plans
from afinar.errors import ForbiddenError, RequestError, ShortfallError
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from tests.archives import fail_reads, ingest
from tests.conftest import jpeg, make_archive
from tests.datasets import assert_pixels_match_files, object_hashes, shard_names, values_by_file
from tests.executors import InterruptedExecutor, OvertakenExecutor, RecordingExecutor
from tests.pictures.files import photograph, saved
from tests.pictures.icc import SPACES, rgb_profile


def test_picture_is_a_sample_or_a_reject(archive: Path, location: str) -> None:
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
        np.testing.assert_array_equal(image, decode(data, StoredView(size=64, fit="pad")).image)
    (reject,) = dataset.rejects.to_pylist()
    assert (reject["uri"], reject["reason"]) == (str(archive / "moss" / "empty.jpg"), "empty")


def test_second_run_of_unchanged_source_writes_nothing(archive: Path, location: str) -> None:
    ingest(archive, location)
    before = object_hashes(location)
    summary = ingest(archive, location)
    assert summary.units_run == 0
    assert summary.unchanged == summary.listed == 24
    assert "nothing to do" in summary.notes[0]
    assert object_hashes(location) == before


def test_changed_source_only_new_and_changed_pictures_are_read(
    archive: Path, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    before = object_hashes(dataset)
    (archive / "moss" / "000.jpg").unlink()
    (archive / "moss" / "001.jpg").write_bytes(jpeg(5001))
    (archive / "rust" / "new.jpg").write_bytes(jpeg(5002))

    reads = RecordingExecutor()
    summary = ingest(archive, dataset, reads)
    assert reads.names == ["001.jpg", "new.jpg"]
    assert (summary.added, summary.changed, summary.removed, summary.unchanged) == (1, 1, 1, 22)
    assert summary.version == 2

    after = object_hashes(dataset)
    assert {name: after[name] for name in before} == before, "no published object changed"
    uris = open_dataset(dataset).index.column("uri").to_pylist()
    assert uris == sorted(str(path) for path in archive.rglob("*.jpg"))
    assert len(open_dataset(dataset, version=1).index) == 24, "the old version can still be read"


def test_renamed_or_touched_picture_is_not_decoded_again(archive: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    ingest(archive, dataset)
    shards = shard_names(dataset)
    (archive / "moss" / "000.jpg").rename(archive / "moss" / "zero.jpg")
    (archive / "moss" / "001.jpg").rename(archive / "rust" / "moved.jpg")
    (archive / "moss" / "002.jpg").touch()
    reads = RecordingExecutor()
    summary = ingest(archive, dataset, reads)
    assert reads.names == ["002.jpg", "moved.jpg", "zero.jpg"], "they are read and hashed"
    assert shard_names(dataset) == shards
    assert (
        summary.added,
        summary.renamed,
        summary.changed,
        summary.unchanged,
        summary.removed,
    ) == (2, 2, 0, 22, 2)
    opened = open_dataset(str(dataset))
    assert values_by_file(opened.index, "label")["moved.jpg"] == "rust"
    assert_pixels_match_files(opened)


def test_corrected_label_reads_no_picture_and_writes_no_shard(flat: Path, tmp_path: Path) -> None:
    csv, dataset = tmp_path / "labels.csv", tmp_path / "dataset"
    csv.write_text("uri,label\n" + "".join(f"{n}.jpg,{'ab'[n % 2]}\n" for n in range(8)))
    ingest(flat, dataset, labels=str(csv))
    shards = shard_names(dataset)
    csv.write_text(csv.read_text().replace("3.jpg,b", "3.jpg,c"))
    reads = RecordingExecutor()
    summary = ingest(flat, dataset, reads, labels=str(csv))
    assert (reads.names, shard_names(dataset)) == ([], shards)
    assert (summary.version, summary.relabelled, summary.unchanged, summary.new_classes) == (
        2,
        1,
        8,
        ["c"],
    )
    assert "new classes: c" in summary.notes
    assert values_by_file(open_dataset(str(dataset)).index, "label")["3.jpg"] == "c"

    csv.write_text(csv.read_text().replace("3.jpg,c", "3.jpg,b"))
    summary = ingest(flat, dataset, reads, labels=str(csv))
    assert (reads.names, summary.vanished_classes) == ([], ["c"])


def test_another_split_reads_no_picture(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    reads = RecordingExecutor()
    summary = ingest(archive, dataset, reads, split="0,0.5,0.5")
    assert reads.uris == []
    assert (summary.version, summary.splits["train"]) == (2, 0)


def test_another_preprocessing_reads_every_picture(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    reads = RecordingExecutor()
    assert ingest(archive, dataset, reads, size=48).version == 2
    assert len(reads.uris) == 24
    assert open_dataset(dataset).read([0]).shape == (1, 48, 48, 3)


def test_another_preprocessing_begins_a_lineage_with_a_note(archive: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    first = ingest(archive, dataset)
    second = ingest(archive, dataset, split="0.5,0.25,0.25")
    reads = RecordingExecutor()
    third = ingest(archive, dataset, reads, split="0.5,0.25,0.25", size=48)
    assert (first.lineage, second.lineage, third.lineage) == (1, 1, 3)
    assert len(reads.names) == 24
    assert "version 3 reads every picture again: other preprocessing" in third.notes


def test_dataset_of_an_earlier_decoder_goes_on_with_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores colour profiles: pixels of two decoders must not be mixed in one dataset."""
    dataset = str(tmp_path / "dataset")
    with monkeypatch.context() as patch:
        older = partial(StoredView, decoder="pillow/2")
        patch.setattr("afinar.ingestion.stored_view.StoredView", older)
        ingest(archive, dataset)
        with pytest.raises(KeyboardInterrupt):
            ingest(archive, tmp_path / "interrupted", InterruptedExecutor(0))
    current = StoredView(size=64, fit="pad")
    earlier = replace(current, decoder="pillow/2")
    photo = photograph(1, 64, 64)
    data = saved(photo, icc_profile=rgb_profile(SPACES["Display P3"]))
    (archive / "moss" / "p3.png").write_bytes(data)

    for place in (dataset, str(tmp_path / "interrupted"), str(tmp_path / "new")):
        summary, opened = ingest(archive, place), open_dataset(place)
        view = current if place.endswith("new") else earlier
        assert (opened.view, summary.lineage) == (view, 1)
        assert any("decoder pillow/2" in note for note in summary.notes) == (view == earlier)
        row = opened.index.column("uri").to_pylist().index(str(archive / "moss" / "p3.png"))
        np.testing.assert_array_equal(opened.read([row])[0], decode(data, view).image)
        is_unconverted = np.array_equal(opened.read([row])[0], np.asarray(photo))
        assert is_unconverted == (view == earlier)
    assert ingest(archive, dataset, size=48).lineage == 3
    assert open_dataset(dataset).view == StoredView(size=48, fit="pad")


def test_pillow_without_littlecms_is_refused_at_the_start(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: name != "littlecms2")
    with pytest.raises(RequestError, match="without LittleCMS") as refused:
        ingest(archive, tmp_path / "dataset")
    assert refused.value.exit_code == 2
    assert not (tmp_path / "dataset").exists()


def test_jpeg_store_is_smaller_and_matches_pixels_of_files(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "pixels", size=128)
    ingest(archive, tmp_path / "jpeg", size=128, store="jpeg")
    opened = open_dataset(str(tmp_path / "jpeg"))
    assert opened.view == StoredView(size=128, fit="pad", store="jpeg")
    assert_pixels_match_files(opened)

    def size(name: str) -> int:
        return sum(info.size for info in open_store(str(tmp_path / name)).walk("shards"))

    assert size("jpeg") < size("pixels") / 2
    for number in range(6):
        (archive / "moss" / f"{number:03d}.jpg").unlink()
    summary = ingest(archive, tmp_path / "jpeg", size=128, store="jpeg")
    assert summary.shards_compacted == 1
    assert_pixels_match_files(open_dataset(str(tmp_path / "jpeg")))


def test_same_etag_of_another_file_is_not_taken_for_same_content(
    archive: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    old = archive / "moss" / "000.jpg"
    ingest(archive, dataset)
    status = old.stat()
    data = jpeg(4242)
    new = archive / "rust" / "000b.jpg"
    new.write_bytes(data[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(new, ns=(status.st_mtime_ns, status.st_mtime_ns))
    ingest(archive, dataset, max_reject_rate=0.5)
    index = open_dataset(str(dataset)).index
    ids = dict(
        zip(index.column("uri").to_pylist(), index.column("sample_id").to_pylist(), strict=True)
    )
    assert ids.get(str(new)) != ids[str(old)]


def test_interrupted_run_is_continued_not_repeated(tmp_path: Path, location: str) -> None:
    archive = make_archive(tmp_path / "many", 150)
    with pytest.raises(KeyboardInterrupt):
        ingest(archive, location, InterruptedExecutor(2))
    with pytest.raises(RequestError, match="holds no dataset"):
        open_dataset(location)
    reads = RecordingExecutor()
    summary = ingest(archive, location, reads)
    assert 0 < len(reads.uris) < 300
    assert (summary.samples, summary.added, summary.version) == (300, 300, 1)

    undisturbed = str(tmp_path / "undisturbed")
    ingest(archive, undisturbed)
    assert open_dataset(location).index == open_dataset(undisturbed).index
    assert shard_names(location) == shard_names(undisturbed)


def test_source_changed_after_interruption_next_version_has_the_change(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "many", 100)
    with pytest.raises(KeyboardInterrupt):
        ingest(archive, tmp_path / "dataset", InterruptedExecutor(1))
    (archive / "moss" / "late.jpg").write_bytes(jpeg(9000))
    summary = ingest(archive, tmp_path / "dataset")
    assert (summary.version, summary.added, summary.unchanged) == (2, 1, 200)


def test_interrupted_plan_names_too_many_deleted_files_plan_is_dropped(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "many", 100)
    with pytest.raises(KeyboardInterrupt):
        ingest(archive, tmp_path / "dataset", InterruptedExecutor(1))
    for path in sorted(archive.rglob("*.jpg"))[::2]:
        path.unlink()
    summary = ingest(archive, tmp_path / "dataset")
    assert (summary.listed, summary.rejects) == (100, 0)


def test_too_many_rejects_nothing_is_published(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    for number in range(5):
        (archive / "moss" / f"broken-{number}.jpg").write_bytes(b"not a picture")
    with pytest.raises(ShortfallError, match=r"5 of 29 .*rejects/"):
        ingest(archive, dataset)
    with pytest.raises(RequestError):
        open_dataset(dataset)
    for path in archive.rglob("broken-*"):
        path.unlink()
    assert ingest(archive, dataset).samples == 24, "the failed plan does not bind the next run"


def test_too_many_rejects_plan_is_published_with_a_larger_budget(
    archive: Path, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")
    for number in range(5):
        (archive / "moss" / f"broken-{number}.jpg").write_bytes(b"not a picture")
    with pytest.raises(ShortfallError):
        ingest(archive, dataset)
    assert len(list(open_plans(open_store(dataset), 0))) == 1, (
        "the plan is a lease: garbage collection leaves its units"
    )
    summary = ingest(archive, dataset, max_reject_rate=0.5)
    assert (summary.version, summary.units_run, summary.rejects) == (1, 0, 5)


def test_transient_reject_is_read_again_in_the_next_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    with monkeypatch.context() as patch:
        fail_reads(patch, archive / "moss" / "003.jpg", ForbiddenError("403"))
        assert ingest(archive, dataset).rejects_by_reason == {"forbidden": 1}
        again = ingest(archive, dataset)
        assert (again.version, again.rejects_by_reason) == (1, {"forbidden": 1}), (
            "the same content makes no new version"
        )
    readable = ingest(archive, dataset)
    assert (readable.version, readable.added, readable.rejects) == (2, 1, 0)


def test_overtaken_ingest_builds_on_the_version_published_first(
    archive: Path, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")

    def publish_once(options: Iterator[dict[str, Any]]) -> None:
        for option in options:
            ingest(archive, dataset, **option)

    for change, version in (({}, 1), ({"split": "0.5,0.25,0.25"}, 2)):
        (archive / "moss" / f"more-{version}.jpg").write_bytes(jpeg(8000 + version))
        executor = OvertakenExecutor(partial(publish_once, iter([change])))
        summary = ingest(archive, dataset, executor)
        assert summary.version == 2 * version - 1
        assert summary.samples == len(open_dataset(dataset).index) == 24 + version


def test_another_source_does_not_replace_a_dataset(archive: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    make_archive(tmp_path / "other", 3)
    with pytest.raises(RequestError, match="would replace all"):
        ingest(tmp_path / "other", dataset)
    assert ingest(archive / ".." / archive.name, dataset).units_run == 0, (
        "another spelling is the same source"
    )
