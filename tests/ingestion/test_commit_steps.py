"""An ingest killed at each step of a commit: the same command then completes the version."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.dataset.gc import verify_dataset
from afinar.dataset.manifest import get_manifests, list_objects
from afinar.storage.open import open_store
from tests.archives import ingest
from tests.conftest import jpeg, make_archive

REPOSITORY = Path(__file__).parents[2]

# Number of objects that the second version puts into each folder; compaction puts the third ones.
PUTS = {
    "plans": 1, "shards": 3, "facts": 2, "units": 3,
    "index": 1, "rejects": 1, "lists": 1, "manifests": 1,
}  # fmt: skip
STEPS = [
    (folder, nth, when)
    for folder, puts in PUTS.items()
    for nth in range(1, puts + 1)
    for when in ("before", "after")
]


@dataclass(frozen=True)
class Scene:
    """A source that changed since version 1, and what version 2 must contain.

    `first` is a dataset with version 1, `shards` are the hashes of version 2's shards by name.
    """

    source: Path
    first: Path
    index: pa.Table
    shards: dict[str, str]


def current_shards(dataset: Path) -> dict[str, str]:
    """Return the hash of each shard of the current version, by name."""
    store = open_store(str(dataset))
    return {
        ref.path: ref.sha256
        for kind, ref in list_objects(store, get_manifests(store)[-1])
        if kind == "shard"
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("commit")
    source = make_archive(folder / "pictures", 60)
    (source / "moss" / "empty.jpg").write_bytes(b"")
    ingest(source, folder / "first")
    for number in range(20):
        (source / "moss" / f"{number:03d}.jpg").unlink()
    for number in range(100):
        (source / "rust" / f"new-{number}.jpg").write_bytes(jpeg(40_000 + number))

    undisturbed = folder / "undisturbed"
    shutil.copytree(folder / "first", undisturbed)
    ingest(source, undisturbed)
    index = open_dataset(str(undisturbed)).index
    return Scene(source, folder / "first", index, current_shards(undisturbed))


def test_second_version_adds_two_shards_and_compacts_one(scene: Scene) -> None:
    versions = {name.split("/")[1][:8] for name in scene.shards}
    assert versions == {"00000001", "00000002"}
    assert len([name for name in scene.shards if "/00000002-" in name]) == 3


@pytest.mark.parametrize(("folder", "nth", "when"), STEPS)
def test_ingest_killed_at_a_step_next_run_completes_the_version(
    scene: Scene, tmp_path: Path, folder: str, nth: int, when: str
) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(scene.first, dataset)
    published = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "tests.ingestion.killed_at"]
    arguments = [folder, str(nth), when, str(scene.source), str(dataset)]
    killed = subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    version = open_dataset(str(dataset)).manifest.version
    assert version == (2 if (folder, when) == ("manifests", "after") else 1)
    assert len(open_dataset(str(dataset), version=1).read(range(120))) == 120, "version 1 is whole"

    ingest(scene.source, dataset)
    assert open_dataset(str(dataset)).manifest.version == 2
    assert open_dataset(str(dataset)).index == scene.index
    assert current_shards(dataset) == scene.shards, "the same shards as without interruption"
    store = open_store(str(dataset))
    assert verify_dataset(store, get_manifests(store)).damaged == []
    unchanged = {path: path.read_bytes() for path in published}
    assert unchanged == published, "no published object changed"
