"""Two thousand pictures with broken ones strewn in: each answer is the one its picture gets alone."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from afinar import open_model, open_predictions
from afinar.config.base import Precision
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.execution.executor import RayExecutor
from afinar.ingest.driver import Ingest
from afinar.labelling.driver import Labelling
from afinar.models.registry.golden import REDUCED_TOLERANCE
from afinar.storage.folder_reader import FolderReader
from afinar.storage.objects import sha256
from afinar.units.executor import InlineExecutor
from PIL import Image

from tests.conftest import Trained, jpeg

COUNT = 2000
BROKEN = {"empty": b"", "unidentified": b"see the next box", "truncated": jpeg(0)[:700]}
EVERY = 50  # one in so many pictures is broken
KINDS = (
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
    """Pictures, and for each path what the model says when it is asked about nothing else."""

    folder: Path
    alone: dict[str, dict[str, float]]


def picture(number: int) -> bytes:
    """One of a kind between the classes, where the model wavers and every picture has a probability of its own."""
    rng = np.random.default_rng(number)
    share = 0.35 + 0.3 * rng.random()
    tint = share * np.array((60, 140, 60)) + (1 - share) * np.array((170, 80, 50))
    pixels = tint + rng.integers(-40, 40, (60 + number % 7, 80 + number % 5, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    kind, options = KINDS[number % len(KINDS)], {}
    if kind == "PNG of a palette":
        image = image.quantize(64)
    elif kind == "grey JPEG":
        image = image.convert("L")
    elif kind == "CMYK JPEG":
        image = image.convert("CMYK")
    elif kind == "PNG with alpha":
        image.putalpha(200)
    elif kind == "turned JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    sink = io.BytesIO()
    image.save(sink, format="PNG" if kind.startswith("PNG") else "JPEG", **options)
    return sink.getvalue()


@pytest.fixture(scope="module")
def archive(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("two thousand")
    model, alone = open_model(trained.champion), {}
    for number in range(COUNT):
        path = folder / f"{number:04d}.jpg"
        if number % EVERY == EVERY - 1:
            path.write_bytes(list(BROKEN.values())[number // EVERY % len(BROKEN)])
            continue
        path.write_bytes(picture(number))
        (alone[str(path)],) = model.predict([path])
    return Archive(folder, alone)


def require_as_alone(out: str, archive: Archive, tolerance: float) -> None:
    """Every good picture once, by uri and by content, with the label and the score that it has alone."""
    rows = open_predictions(out).table.to_pylist()
    assert [row["uri"] for row in rows] == sorted(archive.alone)
    for row in rows:
        scores = archive.alone[row["uri"]]
        assert row["sample_id"] == sha256(Path(row["uri"]).read_bytes())
        assert row["score"] == pytest.approx(scores[row["label"]], abs=tolerance)
        assert scores[row["label"]] >= max(scores.values()) - 2 * tolerance, (
            "the likeliest, or as good as that"
        )


def test_a_neighbours_answer_would_be_noticed(archive: Archive) -> None:
    moss = np.array([scores["moss"] for _, scores in sorted(archive.alone.items())])
    apart = np.abs(np.diff(moss))
    assert np.mean(apart > REDUCED_TOLERANCE) > 0.5
    assert np.mean(apart > 1e-3) > 0.75


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", REDUCED_TOLERANCE)]
)
def test_each_answer_is_the_one_its_picture_gets_alone(
    archive: Archive,
    trained: Trained,
    local_ray: None,
    tmp_path: Path,
    precision: Precision,
    tolerance: float,
) -> None:
    broken = COUNT - len(archive.alone)
    out = str(tmp_path / "files")
    config = LabelConfig(
        source=str(archive.folder), predictions=out, model=trained.champion, precision=precision
    )
    summary = Labelling(config, RayExecutor(None)).run()
    assert (summary.listed, summary.labelled, summary.rejected, summary.skipped) == (
        COUNT,
        COUNT - broken,
        broken,
        0,
    )
    assert set(summary.rejects_by_reason) == set(BROKEN)
    require_as_alone(out, archive, tolerance)


def test_from_shards_it_is_the_same_answer(
    archive: Archive, trained: Trained, local_ray: None, tmp_path: Path
) -> None:
    dataset, out = str(tmp_path / "dataset"), str(tmp_path / "shards")
    broken = COUNT - len(archive.alone)
    ingest = IngestConfig(
        source=str(archive.folder), dataset=dataset, size=64, labels="none", max_reject_rate=0.1
    )
    assert Ingest(ingest, RayExecutor(None)).run().rejects == broken
    summary = Labelling(
        LabelConfig(source=dataset, predictions=out, model=trained.champion, precision="float32"),
        RayExecutor(None),
    ).run()
    assert (summary.listed, summary.labelled, summary.rejected) == (
        COUNT - broken,
        COUNT - broken,
        0,
    )
    require_as_alone(out, archive, 1e-3)


def test_of_one_in_a_hundred_changed_only_those_are_read(
    archive: Archive, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = shutil.copytree(archive.folder, tmp_path / "scans")
    config = LabelConfig(
        source=str(scans),
        predictions=str(tmp_path / "out"),
        model=trained.champion,
        precision="float32",
    )
    Labelling(config, InlineExecutor()).run()
    before = {row["uri"]: row for row in open_predictions(config.predictions).table.to_pylist()}
    changed = [str(scans / f"{number:04d}.jpg") for number in range(7, COUNT, 100)]
    for number, path in enumerate(changed):
        Path(path).write_bytes(picture(10_000 + number))
    read: list[str] = []
    real = FolderReader.get

    def get(self: FolderReader, name: str, etag: str | None = None) -> bytes:
        if self.root == str(scans):
            read.append(self.uri(name))
        return real(self, name, etag)

    monkeypatch.setattr(FolderReader, "get", get)
    summary = Labelling(config, InlineExecutor()).run()
    assert sorted(read) == changed
    assert (summary.read, summary.labelled, summary.skipped) == (20, 20, len(before) - 20)
    after = {row["uri"]: row for row in open_predictions(config.predictions).table.to_pylist()}
    assert after.keys() == before.keys()
    assert {uri for uri in after if after[uri] != before[uri]} == set(changed)
