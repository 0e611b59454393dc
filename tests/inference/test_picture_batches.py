"""Batches of pictures: files, shards and blocks give the same stored views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afinar.config.label import LabelConfig
from afinar.inference.picture_batches import BlockBatches, FilePictures, Outcome, make_block
from afinar.labelling.source import Source, open_source
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.pictures.resize import Pixels
from afinar.sources.entry import Entry
from afinar.storage.objects import sha256
from afinar.storage.open import open_reader
from afinar.units.cut import is_up_to_date, iter_units, plan_units
from afinar.units.progress import PhaseTimer
from tests.archives import BROKEN, flat_archive, ingest
from tests.conftest import Trained

VIEW = StoredView(size=32, fit="pad")


def entries_of(source: Source) -> tuple[Entry, ...]:
    """All pictures of a source, as one unit."""
    pictures = source.listing().listing
    up_to_date = is_up_to_date(pictures, pictures.slice(0, 0))
    plan = plan_units(pictures, up_to_date, "x", lambda count: [count])
    ((_, entries),) = iter_units(plan, source.root)
    return entries


def read_all(source: Source, view: StoredView) -> tuple[NDArray[np.uint8], list[Outcome]]:
    """Images and outcomes of all pictures of a source."""
    entries = entries_of(source)
    images = np.zeros((len(entries), view.size, view.size, 3), np.uint8)
    with source.open_pictures(view).batches(entries, PhaseTimer()) as batches:
        return images, batches.fill(entries, images)


def test_model_has_learned_from_jpegs_shards_of_pixels_give_the_same_input(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    view = replace(find_model(trained.champion)[1].stored_view, store="jpeg")
    source = open_source(LabelConfig(source=dataset, predictions="-", model="m@1"), view)
    images, outcomes = read_all(source, view)
    for entry, image, outcome in zip(entries_of(source), images, outcomes, strict=True):
        data = Path(entry.uri).read_bytes()
        assert outcome == sha256(data)
        np.testing.assert_array_equal(image, decode(data, view).image)


def test_unit_is_prepared_in_blocks_pictures_are_those_of_the_files(tmp_path: Path) -> None:
    folder = flat_archive(tmp_path / "scans", 5)
    (folder / "002.jpg").write_bytes(BROKEN["unidentified"])
    pictures = FilePictures(open_reader(str(folder)), VIEW)
    entries = entries_of(
        open_source(LabelConfig(source=str(folder), predictions="-", model="m@1"), VIEW)
    )
    blocks = [make_block(pictures, entries[:3], 32), make_block(pictures, entries[3:], 32)]
    assert blocks[0].images.shape == (2, 32, 32, 3)

    timer = PhaseTimer()
    batches, images = BlockBatches(blocks, timer), np.zeros((4, 32, 32, 3), np.uint8)
    items: list[tuple[Pixels, str] | PictureError] = []
    for batch in (entries[:1], entries[1:5]):  # the blocks have 3 and 2
        stored = iter(images)
        for outcome in batches.fill(batch, images):
            if isinstance(outcome, PictureError):
                items.append(outcome)
            else:
                items.append((next(stored).copy(), outcome))
    assert timer.seconds.keys() == {"feed", "copy"}
    for entry, item in zip(entries, items, strict=True):
        data = Path(entry.uri).read_bytes()
        if entry.name == "002.jpg":
            assert isinstance(item, PictureError)
            assert item.reason == Reason.UNIDENTIFIED
            continue
        assert isinstance(item, tuple)
        assert item[1] == sha256(data)
        np.testing.assert_array_equal(item[0], decode(data, VIEW).image)


def test_rows_of_shards_are_copied_they_are_those_of_the_files(
    archive: Path, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset, size=32)
    source = open_source(LabelConfig(source=dataset, predictions="-", model="m@1"), VIEW)
    entries = entries_of(source)
    pictures = source.open_pictures(VIEW)
    images = np.zeros((len(entries), 32, 32, 3), np.uint8)
    pictures.prefetch(entries)
    with pictures.batches(entries, PhaseTimer()) as batches:
        outcomes = batches.fill(entries[:5], images) + batches.fill(entries[5:], images[5:])
    for entry, outcome, image in zip(entries, outcomes, images, strict=True):
        data = Path(entry.uri).read_bytes()
        assert outcome == sha256(data)
        np.testing.assert_array_equal(image, decode(data, VIEW).image)
