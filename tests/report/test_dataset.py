"""Page and run folder of an ingest."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig
from afinar.dataset.reader import Dataset
from afinar.ingestion.driver import run_ingest
from afinar.ingestion.forget import run_forget
from afinar.report import gallery
from afinar.report.dataset import dataset_page, explained_by_class, measure_pictures, record_ingest
from afinar.report.gallery import class_gallery, sampled_shards
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import jpeg
from tests.report.html import NASTY, RIGHT_TO_LEFT, Reader, assert_sound, section

CLASS = NASTY.replace("/", "\N{FRACTION SLASH}")


def flat(level: int, size: tuple[int, int] = (80, 60)) -> bytes:
    """Return a picture of nearly one grey level."""
    noise = np.random.default_rng(level).integers(0, 9, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.clip(noise + level, 0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> IngestConfig:
    """The ingest of two classes of which one is dark, with two rejects and a copy."""
    folder = tmp_path_factory.mktemp("ingest")
    for name, level in ((CLASS, 20), ("rust", 180)):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            file = folder / "pictures" / name / f"{RIGHT_TO_LEFT}-{number}.png"
            file.write_bytes(flat(level + number))
    copy = (folder / "pictures" / "rust" / f"{RIGHT_TO_LEFT}-0.png").read_bytes()
    (folder / "pictures" / "rust" / "copy.png").write_bytes(copy)
    (folder / "pictures" / "rust" / f"{NASTY[:8]}.jpg").write_bytes(b"")
    (folder / "pictures" / "rust" / "cut.jpg").write_bytes(jpeg(1)[:300])
    return IngestConfig(
        source=str(folder / "pictures"), dataset=str(folder / "dataset"), size=32, seed=1
    )


@pytest.fixture(scope="module")
def page(config: IngestConfig) -> str:
    """The page that the ingest wrote into its run folder."""
    summary = record_ingest(config, run_ingest(config, InlineExecutor()))
    return Path(summary["report"]).read_text()


def test_page_is_sound_and_names_stay_text(page: str, config: IngestConfig) -> None:
    reader = assert_sound(page)
    assert CLASS in reader.text
    assert f"{config.source}/rust/{RIGHT_TO_LEFT}-0.png" in reader.titles
    assert "b" not in Reader(section(page, "pictures") + section(page, "rejects")).tags


def test_page_has_counts_balance_duplicates_and_rejects(page: str, config: IngestConfig) -> None:
    reader = Reader(page)
    assert "43 listed = 41 added + 0 changed + 0 unchanged + 2 rejected" in reader.words
    rows = {row[0]: row for row in reader.table_below("class", "", "train", "validation", "test")}
    assert rows["rust"][-1] == "51.2 %"
    assert sum(int(count) for count in rows["rust"][2:-1]) == 21
    assert "exact copies of another picture1" in reader.words
    rejects = {row[0]: row[1] for row in reader.table_below("reason", "pictures")}
    assert rejects == {"empty": "1", "truncated": "1"}
    assert f"afinar ingest {config.source}" in reader.words
    assert "--size 32" in reader.words


def test_gallery_shows_pictures_of_each_class(page: str) -> None:
    assert Reader(section(page, "pictures")).text.count("png") == 16
    assert 'id="class-0"' in page
    assert 'href="#class-0"' in section(page, "classes")


def test_unusual_pictures_and_what_the_class_explains(page: str) -> None:
    unusual = Reader(section(page, "unusual"))
    assert "The class explains" in unusual.words
    assert "differences in brightness" in unusual.words
    assert f"{CLASS}, brightness 2" in unusual.words, "the darkest"
    assert section(page, "unusual").count("<svg") == 2, "sizes and brightness"


def test_measures_find_dark_and_sharp_pictures(config: IngestConfig, page: str) -> None:
    del page
    dataset = open_dataset(config.dataset)
    measured = measure_pictures(dataset)
    assert len(measured.rows) == len(dataset.index)
    assert measured.brightness.min() == pytest.approx(24, abs=2)
    sizes = dataset.original_sizes(measured.rows)
    assert set(sizes) == {(80, 60)}


def test_share_of_variance_between_classes() -> None:
    classes = np.array([0, 0, 1, 1, -1])
    assert explained_by_class(np.array([0.0, 0, 9, 9, 500]), classes) == 1
    assert explained_by_class(np.array([0.0, 9, 0, 9, 500]), classes) == 0
    assert explained_by_class(np.array([1.0, 1, 1, 1, 1]), classes) == 0
    assert explained_by_class(np.empty(0), np.empty(0, np.int64)) == 0
    rng = np.random.default_rng(0)
    by_chance = [
        explained_by_class(rng.normal(size=40), rng.integers(0, 20, 40)) for _ in range(200)
    ]
    assert np.mean(by_chance) < 0.15, "many small classes explain little by chance"


def test_few_shards_are_read(
    config: IngestConfig, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del page
    dataset = open_dataset(config.dataset)
    assert len(sampled_shards(dataset)) == len(dataset.shards)
    monkeypatch.setattr(gallery, "_LOCAL_BYTES", dataset.shards[0].bytes)
    assert len(sampled_shards(dataset)) == 1


def test_gallery_of_many_classes_is_bounded(config: IngestConfig, page: str) -> None:
    del page
    dataset = open_dataset(config.dataset)
    names = [*dataset.classes, *(f"class {number}" for number in range(400))]
    many = Dataset(dataset.store, replace(dataset.manifest, classes=names))
    shown = class_gallery(many)
    assert (len(shown.classes), shown.shown, shown.left_out) == (2, 2, 400)


def test_ingest_that_changes_nothing_writes_no_page(config: IngestConfig, page: str) -> None:
    del page
    before = sorted(Path(config.dataset).glob("runs/*"))
    summary = record_ingest(config, run_ingest(config, InlineExecutor()))
    assert summary["report"] is None
    assert sorted(Path(config.dataset).glob("runs/*")) == before


def test_page_of_a_dataset_without_labels_renders(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    config = IngestConfig(
        source=str(tmp_path / "pictures"),
        dataset=str(tmp_path / "dataset"),
        size=32,
        labels="none",
    )
    summary = record_ingest(config, run_ingest(config, InlineExecutor()))
    reader = assert_sound(Path(summary["report"]).read_text())
    assert "(no label)" in reader.text
    assert "The class explains" not in reader.text


def test_index_lists_the_runs_the_newest_first(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    config = IngestConfig(
        source=str(tmp_path / "pictures"), dataset=str(tmp_path / "dataset"), size=32, labels="none"
    )
    for number in range(2):
        (tmp_path / "pictures" / "a" / f"{number}.jpg").write_bytes(jpeg(number))
        record_ingest(config, run_ingest(config, InlineExecutor()))
    damaged = next((tmp_path / "dataset" / "runs").iterdir()) / "summary.json"
    versions = {
        json.loads(file.read_text())["version"]
        for file in damaged.parent.parent.rglob("summary.json")
    }
    assert versions == {1, 2}

    index = assert_sound((tmp_path / "dataset" / "index.html").read_text())
    rows = index.table_below("run (UTC)", "job", "version", "listed")
    assert sorted(row[1:4] for row in rows) == [["ingest", "1", "1"], ["ingest", "2", "2"]]
    assert sum(address.endswith("/report.html") for address in index.addresses) == 2

    damaged.write_text("{")
    (tmp_path / "pictures" / "a" / "2.jpg").write_bytes(jpeg(2))
    record_ingest(config, run_ingest(config, InlineExecutor()))
    rows = Reader((tmp_path / "dataset" / "index.html").read_text()).table_below("run (UTC)")
    assert len(rows) == 3, "a damaged summary costs its numbers"


def test_erasure_deletes_pages_that_may_show_the_picture(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "pictures" / "a" / f"{number}.jpg").write_bytes(jpeg(number))
    config = IngestConfig(
        source=str(tmp_path / "pictures"), dataset=str(tmp_path / "dataset"), size=32, labels="none"
    )
    record_ingest(config, run_ingest(config, InlineExecutor()))
    store = open_store(config.dataset)
    assert [info for info in store.walk("runs") if info.name.endswith("report.html")]
    run_forget(ForgetConfig(path=config.dataset, uris=("a/1.jpg",)), InlineExecutor())
    assert not [info for info in store.walk("runs") if info.name.endswith(".html")]


def test_page_names_the_version_before(config: IngestConfig, page: str) -> None:
    del page
    dataset = open_dataset(config.dataset)
    later = Dataset(dataset.store, replace(dataset.manifest, version=2, parent=1))
    summary = {
        "listed": 41,
        "added": 0,
        "changed": 0,
        "unchanged": 41,
        "rejects": 0,
        "removed": 2,
        "relabelled": 0,
        "renamed": 0,
        "left_out": {"of other formats": 7},
        "notes": [NASTY],
        "seconds": 1.0,
        "stages": {},
    }
    text = assert_sound(dataset_page(later, summary, config)).words
    assert "Since version 1: 2 removed" in text
    assert "Left out of the source: 7 of other formats" in text
    assert NASTY in text
