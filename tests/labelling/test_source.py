"""Sources of a labelling: list and dataset give the predictions of a folder, each picture once."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from afinar import open_dataset, open_model, open_predictions
from afinar.config.formats import DEFAULT_EXTENSIONS
from afinar.config.label import LabelConfig
from afinar.errors import RequestError
from afinar.labelling.driver import LabelSummary
from afinar.labelling.source import DatasetSource, FolderSource, UriListSource, open_source
from afinar.models.registry.versions import find_model
from afinar.predictions.manifest import read_manifest
from afinar.storage.arrow import to_parquet
from afinar.storage.open import open_store
from afinar.storage.store import Store
from tests import archives
from tests.archives import ingest, picture
from tests.conftest import Trained
from tests.executors import InterruptedExecutor, RecordingExecutor


def label(source: str, out: str, trained: Trained, executor: Any = None) -> LabelSummary:
    """Label in float32, so that predictions from different sources can be compared."""
    return archives.label(source, out, trained, executor, precision="float32")


def put_list(store: Store, name: str, uris: list[str]) -> str:
    """Write a list, as CSV or Parquet by its name."""
    if name.endswith(".parquet"):
        store.put_if_absent(name, to_parquet(pa.table({"box": ["7"] * len(uris), "uri": uris})))
    else:
        sink = io.StringIO()
        csv.writer(sink).writerows([["box", "uri"], *(["7", uri] for uri in uris)])
        store.put_if_absent(name, sink.getvalue().encode())
    return store.uri(name)


def predictions_by_uri(out: str) -> dict[str, tuple[str, float]]:
    rows = open_predictions(out).table.to_pylist()
    return {row["uri"]: (row["label"], row["score"]) for row in rows}


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_list_names_several_stores_missing_files_are_rejects(
    name: str, location: str, tmp_path: Path, trained: Trained
) -> None:
    store = open_store(location)
    here = tmp_path / "here"
    here.mkdir()
    for number in range(3):
        (here / f"{number}.jpg").write_bytes(picture(number))
    store.put_if_absent("there/a b.jpg", picture(3))
    (here / "note.txt").write_bytes(b"not a picture, but named")
    there = [store.uri("there/a b.jpg"), "there/gone.jpg"]
    uris = [
        f"{here}/0.jpg",
        f"file://{here}/1.jpg",
        f"{here}/x/../2.jpg",
        f"{here}/note.txt",
        f"{here}/gone.jpg",
    ]
    listed = put_list(store, name, [*uris, *there, f"{here}//0.jpg", "there/a b.jpg"])
    out = str(tmp_path / "out")
    summary = label(listed, out, trained)
    assert (summary.listed, summary.labelled, summary.rejected, summary.skipped) == (7, 4, 3, 0)
    assert summary.rejects_by_reason == {"missing": 2, "unidentified": 1}
    assert any("2 of 9 rows" in note and "an earlier row names" in note for note in summary.notes)
    assert any("2 of 7 pictures" in note and "do not exist" in note for note in summary.notes)

    found = predictions_by_uri(out)
    assert sorted(found) == sorted([*(f"{here}/{number}.jpg" for number in range(3)), there[0]])
    model = open_model(trained.champion)
    for number, uri in [(0, f"{here}/0.jpg"), (1, f"{here}/1.jpg"), (3, there[0])]:
        scratch = tmp_path / "alone.jpg"
        scratch.write_bytes(picture(number))
        (alone,) = model.predict([scratch])
        assert found[uri][0] == max(alone, key=alone.__getitem__)
        assert found[uri][1] == pytest.approx(alone[found[uri][0]], abs=1e-6)
    rejects = {row["uri"]: row["reason"] for row in open_predictions(out).rejects.to_pylist()}
    assert rejects == {
        f"{here}/note.txt": "unidentified",
        f"{here}/gone.jpg": "missing",
        store.uri("there/gone.jpg"): "missing",
    }


def test_list_grows_only_new_and_changed_pictures_are_labelled(
    location: str, tmp_path: Path, trained: Trained
) -> None:
    store = open_store(location)
    for number in range(4):
        store.put_if_absent(f"scans/{number}.jpg", picture(number))
    out = str(tmp_path / "out")
    first = put_list(store, "first.csv", ["scans/0.jpg", "scans/1.jpg", "scans/late.jpg"])
    assert (label(first, out, trained).labelled, len(predictions_by_uri(out))) == (2, 2)
    store.delete("scans/1.jpg")
    store.put_if_absent("scans/1.jpg", picture(11))
    store.put_if_absent("scans/late.jpg", picture(5))
    executor = RecordingExecutor()
    second = label(first, out, trained, executor)
    assert executor.uris == [store.uri("scans/1.jpg"), store.uri("scans/late.jpg")], (
        "a missing picture is looked up again"
    )
    assert (second.listed, second.labelled) == (3, 2)
    assert (second.rejected, second.skipped) == (0, 1)
    whole = label(store.uri("scans"), out, trained)
    assert (whole.listed, whole.labelled, whole.skipped) == (5, 2, 3), (
        "etags are those of a listing"
    )
    (partition,) = read_manifest(open_store(out)).partitions.values()
    assert partition.sources == sorted([first, store.uri("scans")])


def test_list_is_interrupted_next_run_does_the_rest(
    location: str, tmp_path: Path, trained: Trained
) -> None:
    store = open_store(location)
    names = [f"{number:03d}.jpg" for number in range(100)]
    for number, name in enumerate(names):
        store.put_if_absent(name, picture(number))
    listed = put_list(store, "list.parquet", names)
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(listed, out, trained, InterruptedExecutor())
    executor = RecordingExecutor()
    summary = label(listed, out, trained, executor)
    assert len(executor.uris) == 36, "the second unit, not the first"
    assert (summary.listed, summary.labelled) == (100, 100)
    assert sorted(predictions_by_uri(out)) == [store.uri(name) for name in names]


@pytest.fixture
def scans(location: str) -> Store:
    """60 pictures and a broken one, in a folder or a bucket."""
    store = open_store(f"{location}/scans")
    for number in range(60):
        store.put_if_absent(f"{number:03d}.jpg", picture(number))
    store.put_if_absent("broken.jpg", b"rubbish")
    return store


def test_dataset_is_labelled_predictions_are_those_of_its_files(
    scans: Store, location: str, tmp_path: Path, trained: Trained
) -> None:
    dataset = f"{location}/dataset"
    ingest(scans.root, dataset, labels="none")
    shards, files = str(tmp_path / "shards"), str(tmp_path / "files")
    assert label(scans.root, files, trained).labelled == 60
    for info in list(scans.walk()):
        scans.delete(info.name)  # the dataset is labelled without its pictures
    summary = label(dataset, shards, trained)
    assert (summary.listed, summary.labelled, summary.rejected, summary.skipped) == (60, 60, 0, 0)

    from_shards, from_files = predictions_by_uri(shards), predictions_by_uri(files)
    assert from_shards.keys() == from_files.keys()
    for uri, (name, score) in from_files.items():
        assert from_shards[uri][0] == name
        assert from_shards[uri][1] == pytest.approx(score, abs=1e-6)
    columns = ["uri", "sample_id", "etag"]
    assert open_predictions(shards).table.select(columns) == open_predictions(files).table.select(
        columns
    )
    assert label(dataset, files, trained).skipped == 60, (
        "a sample that was labelled from its file is skipped"
    )


def test_dataset_grows_only_new_samples_are_labelled(
    scans: Store, location: str, tmp_path: Path, trained: Trained
) -> None:
    dataset, out = f"{location}/dataset", str(tmp_path / "out")
    ingest(scans.root, dataset, labels="none")
    label(dataset, out, trained)
    assert label(dataset, out, trained).units_run == 0
    scans.put_if_absent("new.jpg", picture(100))
    ingest(scans.root, dataset, labels="none")
    executor = RecordingExecutor()
    summary = label(dataset, out, trained, executor)
    assert executor.uris == [scans.uri("new.jpg")]
    assert (summary.listed, summary.labelled, summary.skipped) == (61, 1, 60)


def test_shards_are_replaced_after_an_interruption_next_run_plans_again(
    scans: Store, location: str, tmp_path: Path, trained: Trained
) -> None:
    dataset, out = f"{location}/dataset", str(tmp_path / "out")
    for number in range(60, 100):
        scans.put_if_absent(f"{number:03d}.jpg", picture(number))
    ingest(scans.root, dataset, labels="none")
    with pytest.raises(KeyboardInterrupt):
        label(dataset, out, trained, InterruptedExecutor())
    for number in range(1, 100, 2):  # so many that both shards are rewritten
        scans.delete(f"{number:03d}.jpg")
    before = set(open_dataset(dataset).shard_names)
    ingest(scans.root, dataset, labels="none")
    assert before.isdisjoint(open_dataset(dataset).shard_names)
    summary = label(dataset, out, trained)
    assert (summary.listed, summary.labelled + summary.skipped) == (50, 50)
    assert set(predictions_by_uri(out)) == {
        scans.uri(f"{number:03d}.jpg") for number in range(0, 100, 2)
    }
    assert list(open_store(out).walk("plans")) == []


def test_dataset_has_another_view_request_is_refused(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    for options in ({"size": 32}, {"size": 64, "fit": "crop"}, {"size": 64, "store": "jpeg"}):
        dataset = str(tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}")
        ingest(archive, dataset, **options)
        with pytest.raises(RequestError, match="--size 64 --fit pad --store pixels") as refused:
            label(dataset, out, trained)
        assert refused.value.exit_code == 2
        assert str(archive) in str(refused.value), "the message names the original pictures"
    assert not Path(out).exists()


def test_dataset_of_another_decoder_is_refused(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    """A model that has learned from one decoder's pixels must not label those of another."""
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    view = replace(find_model(trained.champion)[1].stored_view, decoder="pillow/2")
    config = LabelConfig(source=dataset, predictions="-", model="m@1")
    with pytest.raises(RequestError, match=r"pillow/3.*pillow/2.*or train a model") as refused:
        open_source(config, view)
    assert str(archive) in str(refused.value)


def test_kind_of_source_is_recognised(archive: Path, tmp_path: Path, trained: Trained) -> None:
    def kind_of(source: str) -> object:
        config = LabelConfig(source=source, predictions="-", model="m@1")
        return open_source(config, find_model(trained.champion)[1].stored_view)

    endings = tuple(DEFAULT_EXTENSIONS.split(","))
    assert kind_of(str(archive)) == FolderSource(str(archive), endings)
    assert kind_of(trained.dataset) == DatasetSource(trained.dataset, 1)
    assert kind_of(str(tmp_path / "list.csv")) == UriListSource(str(tmp_path / "list.csv"))
    (tmp_path / "pictures.csv" / "manifests").mkdir(parents=True)
    (tmp_path / "pictures.csv" / "manifests" / "00000001.json").write_bytes(b"a scanned manifest")
    assert kind_of(str(tmp_path / "pictures.csv")) == FolderSource(
        str(tmp_path / "pictures.csv"), endings
    )
