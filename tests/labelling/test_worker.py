"""The worker: the prediction of every picture is the one that the picture gets alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afinar import open_model, open_predictions
from afinar.config.base import Precision
from afinar.execution.executor import RayExecutor
from afinar.inference.openvino import OpenVinoNetwork
from afinar.labelling.source import FolderSource
from afinar.labelling.tasks import LabelSpec
from afinar.labelling.worker import Labeller, make_labeller
from afinar.models.registry.golden import REDUCED_TOLERANCE
from afinar.sources.entry import Entry
from afinar.storage.folder_reader import FolderReader
from afinar.storage.markers import committed_units
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from afinar.units.tasks import UnitTask
from tests.archives import BROKEN, flat_archive, ingest, label
from tests.conftest import Trained, jpeg

COUNT = 2000
EVERY = 50  # one in so many pictures is broken
FORMATS = (
    "JPEG",
    "JPEG",
    "PNG of a palette",
    "grey JPEG",
    "CMYK JPEG",
    "PNG with alpha",
    "turned JPEG",
)


@dataclass(frozen=True)
class Archive:
    """Pictures, and for each path the scores that the model gives to the picture alone."""

    folder: Path
    alone: dict[str, dict[str, float]]


def mixed_picture(number: int) -> bytes:
    """Return a picture between the two classes, in one of several formats.

    The model is uncertain about it, so that every picture has scores of its own.
    """
    rng = np.random.default_rng(number)
    share = 0.35 + 0.3 * rng.random()
    tint = share * np.array((60, 140, 60)) + (1 - share) * np.array((170, 80, 50))
    pixels = tint + rng.integers(-40, 40, (60 + number % 7, 80 + number % 5, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    file_format, options = FORMATS[number % len(FORMATS)], {}
    if file_format == "PNG of a palette":
        image = image.quantize(64)
    elif file_format == "grey JPEG":
        image = image.convert("L")
    elif file_format == "CMYK JPEG":
        image = image.convert("CMYK")
    elif file_format == "PNG with alpha":
        image.putalpha(200)
    elif file_format == "turned JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    sink = io.BytesIO()
    image.save(sink, format="PNG" if file_format.startswith("PNG") else "JPEG", **options)
    return sink.getvalue()


@pytest.fixture(scope="module")
def mixed_archive(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """2,000 pictures, one in 50 of them broken."""
    folder = tmp_path_factory.mktemp("two thousand")
    model, alone = open_model(trained.champion), dict[str, dict[str, float]]()
    for number in range(COUNT):
        path = folder / f"{number:04d}.jpg"
        if number % EVERY == EVERY - 1:
            path.write_bytes(list(BROKEN.values())[number // EVERY % len(BROKEN)])
            continue
        path.write_bytes(mixed_picture(number))
        (alone[str(path)],) = model.predict([path])
    return Archive(folder, alone)


def require_as_alone(out: str, archive: Archive, tolerance: float) -> None:
    """Require every good picture once, by uri and content, with its label and score alone."""
    rows = open_predictions(out).table.to_pylist()
    assert [row["uri"] for row in rows] == sorted(archive.alone)
    for row in rows:
        scores = archive.alone[row["uri"]]
        assert row["sample_id"] == sha256(Path(row["uri"]).read_bytes())
        assert row["score"] == pytest.approx(scores[row["label"]], abs=tolerance)
        assert scores[row["label"]] >= max(scores.values()) - 2 * tolerance


def test_archive_is_sorted_scores_of_neighbours_differ(mixed_archive: Archive) -> None:
    """The tests below would notice a prediction that belongs to another picture."""
    moss = np.array([scores["moss"] for _, scores in sorted(mixed_archive.alone.items())])
    differences = np.abs(np.diff(moss))
    assert np.mean(differences > REDUCED_TOLERANCE) > 0.5
    assert np.mean(differences > 1e-3) > 0.75


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", REDUCED_TOLERANCE)]
)
def test_files_are_labelled_on_ray_predictions_are_those_of_each_picture_alone(
    mixed_archive: Archive,
    trained: Trained,
    local_ray: None,
    tmp_path: Path,
    precision: Precision,
    tolerance: float,
) -> None:
    broken = COUNT - len(mixed_archive.alone)
    out = str(tmp_path / "files")
    summary = label(mixed_archive.folder, out, trained, RayExecutor(None), precision=precision)
    assert (summary.listed, summary.skipped) == (COUNT, 0)
    assert (summary.labelled, summary.rejected) == (COUNT - broken, broken)
    assert set(summary.rejects_by_reason) == set(BROKEN)
    require_as_alone(out, mixed_archive, tolerance)


def test_shards_are_labelled_on_ray_predictions_are_those_of_each_picture_alone(
    mixed_archive: Archive, trained: Trained, local_ray: None, tmp_path: Path
) -> None:
    dataset, out = str(tmp_path / "dataset"), str(tmp_path / "shards")
    broken = COUNT - len(mixed_archive.alone)
    options = {"labels": "none", "max_reject_rate": 0.1}
    assert ingest(mixed_archive.folder, dataset, RayExecutor(None), **options).rejects == broken
    summary = label(dataset, out, trained, RayExecutor(None), precision="float32")
    assert (summary.labelled, summary.rejected) == (COUNT - broken, 0)
    assert summary.listed == summary.labelled
    require_as_alone(out, mixed_archive, 1e-3)


def test_one_in_a_hundred_pictures_changed_only_those_are_read(
    mixed_archive: Archive, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = shutil.copytree(mixed_archive.folder, tmp_path / "scans")
    out = str(tmp_path / "out")
    label(scans, out, trained, precision="float32")
    before = {row["uri"]: row for row in open_predictions(out).table.to_pylist()}
    changed = [str(scans / f"{number:04d}.jpg") for number in range(7, COUNT, 100)]
    for number, path in enumerate(changed):
        Path(path).write_bytes(mixed_picture(10_000 + number))

    read: list[str] = []
    real = FolderReader.get

    def get(self: FolderReader, name: str, etag: str | None = None) -> bytes:
        if self.root == str(scans):
            read.append(self.uri(name))
        return real(self, name, etag)

    monkeypatch.setattr(FolderReader, "get", get)
    summary = label(scans, out, trained, precision="float32")
    assert sorted(read) == changed
    assert (summary.read, summary.labelled, summary.skipped) == (20, 20, len(before) - 20)
    after = {row["uri"]: row for row in open_predictions(out).table.to_pylist()}
    assert after.keys() == before.keys()
    assert {uri for uri in after if after[uri] != before[uri]} == set(changed)


def test_unit_is_committed_already_late_duplicate_leaves_no_object(
    tmp_path: Path, trained: Trained
) -> None:
    scans, out = flat_archive(tmp_path / "scans", 120), str(tmp_path / "out")
    label(scans, out, trained)
    store = open_store(out)
    before = {info.name for info in store.walk()}
    (*_, unit) = sorted(committed_units(store))
    spec = LabelSpec(
        source=FolderSource(str(scans)),
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
    make_labeller(spec)(UnitTask(unit, (Entry(late.name, late.uri, late.etag, late.size),)))
    assert {info.name for info in store.walk()} == before


class ThreadExecutor:
    """Runs three units at a time in threads, as a worker with a GPU does."""

    def run(self, make_work: Any, tasks: Any, policy: Any = None) -> Iterator[Any]:
        with ThreadPoolExecutor(3) as pool:
            yield from pool.map(make_work(), list(tasks))


@pytest.mark.parametrize("from_shards", [False, True])
def test_units_overlap_in_threads_predictions_are_the_same(
    trained: Trained, tmp_path: Path, from_shards: bool
) -> None:
    source = flat_archive(tmp_path / "scans", 280)
    if from_shards:
        ingest(source, tmp_path / "dataset", labels="none")
        source = tmp_path / "dataset"
    else:
        (source / "bad.jpg").write_bytes(BROKEN["truncated"])
    for name, executor in (("threads", ThreadExecutor()), ("inline", InlineExecutor())):
        summary = label(
            source, tmp_path / name, trained, executor, precision="float32", scores=True
        )
        assert (summary.labelled, summary.rejected) == (280, 0 if from_shards else 1)
        assert summary.units_run > 3
    threads, inline = (open_predictions(str(tmp_path / name)) for name in ("threads", "inline"))
    assert threads.table == inline.table
    assert threads.rejects == inline.rejects


def openvino_labeller(folder: Path, scans: Path, model: str) -> Labeller:
    """Return a labeller whose job has enough pictures for OpenVINO."""
    labeller = make_labeller(
        LabelSpec(
            source=FolderSource(str(scans)),
            predictions=str(folder),
            partition="other",
            model=model,
            top_k=5,
            batch_size=8,
            precision="auto",
            pictures=10**9,
        )
    )
    assert isinstance(labeller.predictor.network, OpenVinoNetwork)
    return labeller


@pytest.mark.parametrize("attempt", [0, 1])
def test_job_of_many_pictures_is_computed_by_openvino_with_the_same_answers(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    scans, out = flat_archive(tmp_path / "scans", 21), str(tmp_path / "out")
    label(scans, out, trained, precision="float32")
    expected = {row["uri"]: row for row in open_predictions(out).table.to_pylist()}
    labeller = openvino_labeller(tmp_path / "other", scans, trained.champion)
    if attempt:
        # OpenVINO may have killed the worker of the first attempt.
        monkeypatch.setattr(OpenVinoNetwork, "_block", lambda *_: pytest.fail("OpenVINO again"))
    entries = tuple(
        Entry(info.name, str(scans / info.name), info.etag, info.size)
        for info in open_store(str(scans)).walk()
    )
    unit = committed_units(open_store(out)).pop()
    labeller(UnitTask(unit, entries, attempt=attempt))

    (part,) = (tmp_path / "other" / "parts").rglob("*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert len(rows) == len(expected) == 21
    for row in rows:
        assert row["score"] == pytest.approx(expected[row["uri"]]["score"], abs=REDUCED_TOLERANCE)
