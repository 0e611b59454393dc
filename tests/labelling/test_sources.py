"""Labelling from a list of URIs and from an ingested dataset: the same answers as from a folder, each picture once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from afinar import open_dataset, open_model, open_predictions
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.errors import RequestError
from afinar.ingest.driver import Ingest
from afinar.labelling.driver import Labelling, LabelSummary
from afinar.labelling.source import Folder, Shards, UriList, open_source
from afinar.models.registry.versions import find_model
from afinar.sources.uri_list import MISSING, list_named
from afinar.storage.arrow import to_parquet
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_store
from afinar.storage.store import ObjectInfo, Store
from afinar.storage.versions import latest
from afinar.units.executor import InlineExecutor

from tests.conftest import Trained, jpeg


class Dying(InlineExecutor):
    """Loses its driver after one unit."""

    def run_with_state(self, make_work: Any, tasks: Any, care: Any = None) -> Iterator[Any]:
        work = make_work()
        yield work(next(iter(tasks)))
        raise KeyboardInterrupt


class Counting(InlineExecutor):
    """Remembers which pictures were handed out."""

    def __init__(self) -> None:
        self.uris: list[str] = []

    def run_with_state(self, make_work: Any, tasks: Any, care: Any = None) -> Iterator[Any]:
        tasks = list(tasks)
        self.uris += [entry.uri for task in tasks for entry in task.entries]
        return super().run_with_state(make_work, tasks)


def label(source: str, out: str, trained: Trained, executor: Any = None) -> LabelSummary:
    config = LabelConfig(
        source=source, predictions=out, model=trained.champion, precision="float32"
    )
    return Labelling(config, executor or InlineExecutor()).run()


def picture(number: int) -> bytes:
    return jpeg(30_000 + number, tint=(60, 140, 60) if number % 2 else (170, 80, 50))


def put_list(store: Store, name: str, uris: list[str]) -> str:
    """Write a list, as CSV or Parquet by its name."""
    if name.endswith(".parquet"):
        store.put_if_absent(name, to_parquet(pa.table({"box": ["7"] * len(uris), "uri": uris})))
    else:
        sink = io.StringIO()
        csv.writer(sink).writerows([["box", "uri"], *(["7", uri] for uri in uris)])
        store.put_if_absent(name, sink.getvalue().encode())
    return store.uri(name)


def answers(out: str) -> dict[str, tuple[str, float]]:
    rows = open_predictions(out).table.to_pylist()
    return {row["uri"]: (row["label"], row["score"]) for row in rows}


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_list_mixes_places_and_says_what_is_not_there(
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
    found = answers(out)
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
        f"{here}/note.txt": "unidentified", f"{here}/gone.jpg": "missing", store.uri("there/gone.jpg"): "missing",
    }  # fmt: skip


def test_only_what_is_new_on_a_list_or_changed_is_labelled(
    location: str, tmp_path: Path, trained: Trained
) -> None:
    store = open_store(location)
    for number in range(4):
        store.put_if_absent(f"scans/{number}.jpg", picture(number))
    out = str(tmp_path / "out")
    first = put_list(store, "first.csv", ["scans/0.jpg", "scans/1.jpg", "scans/late.jpg"])
    assert (label(first, out, trained).labelled, len(answers(out))) == (2, 2)
    store.delete("scans/1.jpg")
    store.put_if_absent("scans/1.jpg", picture(11))
    store.put_if_absent("scans/late.jpg", picture(5))
    executor = Counting()
    next_attempt = label(first, out, trained, executor)
    assert executor.uris == [store.uri("scans/1.jpg"), store.uri("scans/late.jpg")], (
        "what was missing is looked for"
    )
    assert (
        next_attempt.listed,
        next_attempt.labelled,
        next_attempt.rejected,
        next_attempt.skipped,
    ) == (3, 2, 0, 1)
    whole = label(store.uri("scans"), out, trained)
    assert (whole.listed, whole.labelled, whole.skipped) == (5, 2, 3), (
        "change marks are those of a listing"
    )
    (record,) = latest(open_store(out), "manifests")[1]["partitions"].values()  # type: ignore[index]
    assert record["sources"] == sorted([first, store.uri("scans")])


def test_a_list_that_was_interrupted_is_continued(
    location: str, tmp_path: Path, trained: Trained
) -> None:
    store = open_store(location)
    names = [f"{number:03d}.jpg" for number in range(100)]
    for number, name in enumerate(names):
        store.put_if_absent(name, picture(number))
    listed = put_list(store, "list.parquet", names)
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label(listed, out, trained, Dying())
    executor = Counting()
    summary = label(listed, out, trained, executor)
    assert len(executor.uris) == 52, "the second unit, not the first"
    assert (summary.listed, summary.labelled) == (100, 100)
    assert sorted(answers(out)) == [store.uri(name) for name in names]


def test_dense_folders_of_a_bucket_are_listed_and_give_the_same(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.sources import uri_list

    store = open_store(bucket)
    names = [f"dense/{number}" for number in range(6)] + [
        f"sparse-{number}/x" for number in range(2)
    ]
    for name in [*names, "dense/not-named", "dense/.hidden"]:
        store.put_if_absent(name, name.encode())
    listed = put_list(store, "list.csv", [*names, "dense/.hidden", "dense/gone"])
    one_by_one, notes = list_named(listed)
    assert notes == [f"1 of 10 pictures of {listed} do not exist"]
    looked_at = []
    real = MultiStore.stat

    def stat(self: MultiStore, uri: str) -> ObjectInfo:
        looked_at.append(uri)
        return real(self, uri)

    monkeypatch.setattr(uri_list, "_LIST_FROM", 5)
    monkeypatch.setattr(MultiStore, "stat", stat)
    assert list_named(listed)[0] == one_by_one
    assert {uri.removeprefix(f"{bucket}/") for uri in looked_at} == {
        "sparse-0/x", "sparse-1/x", "dense/.hidden", "dense/gone",
    }  # fmt: skip
    marks = dict(
        zip(
            one_by_one.column("uri").to_pylist(), one_by_one.column("etag").to_pylist(), strict=True
        )
    )
    expected = {info.uri: info.etag for info in store.walk() if info.name in names}
    assert {uri: marks[uri] for uri in expected} == expected
    assert marks[f"{bucket}/dense/gone"] == MISSING


def test_lists_that_cannot_serve_say_why(tmp_path: Path, s3_server: str) -> None:
    store = open_store(str(tmp_path))
    store.put_if_absent("no-uri.csv", b"name\na.jpg\n")
    for uris, sentence in (
        (["https://example.org/a.jpg"], "https://example.org/a.jpg"),
        (["s3://bucket-alone"], "only files and s3://BUCKET/KEY"),
        ([""], "names no picture"),
    ):
        store.delete("list.csv")
        with pytest.raises(RequestError, match=sentence):
            list_named(put_list(store, "list.csv", uris))
    with pytest.raises(RequestError, match="no column 'uri'"):
        list_named(f"{tmp_path}/no-uri.csv")
    with pytest.raises(RequestError, match="no such table"):
        list_named(f"{tmp_path}/nothing.csv")
    store.delete("list.csv")
    listing, _ = list_named(
        put_list(store, "list.csv", ["s3://there-is-no-such-bucket/a.jpg", ".", "a.jpg"])
    )
    assert set(listing.column("etag").to_pylist()) == {MISSING}, "no bucket, a folder, no file"


def test_a_store_that_does_not_answer_ends_the_looking_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.errors import StorageError
    from afinar.storage.folder_reader import FolderReader

    def silent(self: FolderReader, name: str) -> Any:
        raise StorageError("no answer in time")

    monkeypatch.setattr(FolderReader, "stat", silent)
    store = open_store(str(tmp_path))
    few = put_list(store, "few.csv", [f"{number}.jpg" for number in range(5)])
    assert set(list_named(few)[0].column("etag").to_pylist()) == {"unreadable"}, (
        "a few may be read all the same"
    )
    many = put_list(store, "many.csv", [f"{number}.jpg" for number in range(50)])
    with pytest.raises(RequestError, match="no answer in time"):
        list_named(many)


def ingest(source: str, dataset: str, **options: Any) -> None:
    Ingest(
        IngestConfig(source=source, dataset=dataset, size=64, labels="none", **options),
        InlineExecutor(),
    ).run()


@pytest.fixture
def scans(location: str) -> Store:
    """60 pictures and a broken one, in a folder or a bucket."""
    store = open_store(f"{location}/scans")
    for number in range(60):
        store.put_if_absent(f"{number:03d}.jpg", picture(number))
    store.put_if_absent("broken.jpg", b"rubbish")
    return store


def test_a_dataset_is_labelled_as_its_files_are(
    scans: Store, location: str, tmp_path: Path, trained: Trained
) -> None:
    dataset = f"{location}/dataset"
    ingest(scans.root, dataset)
    shards, files = str(tmp_path / "shards"), str(tmp_path / "files")
    assert label(scans.root, files, trained).labelled == 60
    copies = {info.name: scans.get(info.name) for info in scans.walk()}
    for name in copies:
        scans.delete(name)
    summary = label(dataset, shards, trained)
    assert (summary.listed, summary.labelled, summary.rejected, summary.skipped) == (
        60,
        60,
        0,
        0,
    ), "without its pictures"
    from_shards, from_files = answers(shards), answers(files)
    assert from_shards.keys() == from_files.keys()
    for uri, (name, score) in from_files.items():
        assert from_shards[uri][0] == name
        assert from_shards[uri][1] == pytest.approx(score, abs=1e-6)
    columns = ["uri", "sample_id", "etag"]
    assert open_predictions(shards).table.select(columns) == open_predictions(files).table.select(
        columns
    )
    assert label(dataset, files, trained).skipped == 60, (
        "labelled from its file, a sample is not labelled again"
    )


def test_only_new_samples_of_a_dataset_are_labelled(
    scans: Store, location: str, tmp_path: Path, trained: Trained
) -> None:
    dataset, out = f"{location}/dataset", str(tmp_path / "out")
    ingest(scans.root, dataset)
    label(dataset, out, trained)
    assert label(dataset, out, trained).units_run == 0
    scans.put_if_absent("new.jpg", picture(100))
    ingest(scans.root, dataset)
    executor = Counting()
    summary = label(dataset, out, trained, executor)
    assert executor.uris == [scans.uri("new.jpg")]
    assert (summary.listed, summary.labelled, summary.skipped) == (61, 1, 60)


def test_an_interrupted_labelling_of_shards_outlives_a_new_version(
    scans: Store, location: str, tmp_path: Path, trained: Trained
) -> None:
    dataset, out = f"{location}/dataset", str(tmp_path / "out")
    for number in range(60, 100):
        scans.put_if_absent(f"{number:03d}.jpg", picture(number))
    ingest(scans.root, dataset)
    with pytest.raises(KeyboardInterrupt):
        label(dataset, out, trained, Dying())
    for number in range(1, 100, 2):  # so many that both shards are rewritten
        scans.delete(f"{number:03d}.jpg")
    before = set(open_dataset(dataset).shard_names)
    ingest(scans.root, dataset)
    assert before.isdisjoint(open_dataset(dataset).shard_names)
    summary = label(dataset, out, trained)
    assert (summary.listed, summary.labelled + summary.skipped) == (50, 50)
    assert set(answers(out)) == {scans.uri(f"{number:03d}.jpg") for number in range(0, 100, 2)}
    assert list(open_store(out).walk("plans")) == []


def test_a_dataset_of_another_view_is_refused(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    for options in ({"size": 32}, {"size": 64, "fit": "pad"}, {"size": 64, "store": "jpeg"}):
        dataset = str(tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}")
        Ingest(
            IngestConfig(source=str(archive), dataset=dataset, **options), InlineExecutor()
        ).run()
        with pytest.raises(RequestError, match="--size 64 --fit crop --store pixels") as refused:
            label(dataset, out, trained)
        assert refused.value.exit_code == 2
        assert str(archive) in str(refused.value), (
            "it says which pictures could be labelled instead"
        )
    assert not Path(out).exists()


def test_pixels_serve_a_model_that_has_learned_from_jpegs(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    """Its golden samples are not the matter here: only that both ways give it the same pixels."""
    from dataclasses import replace

    from afinar.pictures.decode import decode
    from afinar.units.progress import PhaseTimer

    dataset = str(tmp_path / "dataset")
    Ingest(IngestConfig(source=str(archive), dataset=dataset, size=64), InlineExecutor()).run()
    view = replace(find_model(trained.champion)[1].stored_view, store="jpeg")
    source = open_source(LabelConfig(source=dataset, predictions="-", model="-"), view)
    from afinar.units.cut import even_sizes, is_up_to_date, iter_units, plan_units

    listing, _ = source.listing()
    plan = plan_units(
        listing, is_up_to_date(listing, listing.slice(0, 0)), "x", partial(even_sizes, 512)
    )
    ((_, entries),) = iter_units(plan, source.root)
    with source.open(view).read(entries, PhaseTimer()) as seen:
        for entry, found in zip(entries, seen, strict=True):
            assert not isinstance(found, Exception)
            assert (found.image == decode(Path(entry.uri).read_bytes(), view).image).all()


def test_what_a_source_is_can_be_told(archive: Path, tmp_path: Path, trained: Trained) -> None:
    def told(source: str) -> object:
        config = LabelConfig(source=source, predictions="-", model="-")
        return open_source(config, find_model(trained.champion)[1].stored_view)

    assert told(str(archive)) == Folder(str(archive), (".jpg", ".jpeg", ".png"))
    assert told(trained.dataset) == Shards(trained.dataset, 1)
    assert told(str(tmp_path / "list.csv")) == UriList(str(tmp_path / "list.csv"))
    (tmp_path / "pictures.csv" / "manifests").mkdir(parents=True)
    (tmp_path / "pictures.csv" / "manifests" / "00000001.json").write_bytes(b"a scanned manifest")
    assert told(str(tmp_path / "pictures.csv")) == Folder(
        str(tmp_path / "pictures.csv"), (".jpg", ".jpeg", ".png")
    )
