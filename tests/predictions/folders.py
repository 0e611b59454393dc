"""An archive between two classes, and looks into a prediction folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from afinar.predictions.manifest import Partition, read_manifest
from afinar.storage.open import open_store
from afinar.storage.store import Store
from tests.conftest import jpeg

COUNT = 60
BELOW = 0.8  # a threshold that some of the pictures reach


def uncertain_archive(folder: Path) -> Path:
    """Write 60 pictures that change from one class to the other, and an empty file."""
    folder.mkdir()
    for number in range(COUNT):
        share = 0.2 + 0.6 * number / (COUNT - 1)
        red, green, blue = (
            round(share * moss + (1 - share) * rust)
            for moss, rust in ((60, 170), (140, 80), (60, 50))
        )
        picture = jpeg(30_000 + number, tint=(red, green, blue))
        (folder / f"{number:03d}.jpg").write_bytes(picture)
    (folder / "empty.jpg").write_bytes(b"")
    return folder


class NamedPartition(NamedTuple):
    """A partition and its name."""

    name: str
    partition: Partition


def current_partition(out: str) -> NamedPartition:
    """Return the partition that was written last."""
    manifest = read_manifest(open_store(out))
    assert manifest.current is not None
    return NamedPartition(manifest.current, manifest.partitions[manifest.current])


def names_in(store: Store, folder: str = "") -> list[str]:
    return sorted(info.name for info in store.walk(folder))
