"""An ingest killed at each step of the commit: afterwards the same command ends where it would have ended."""

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
from afinar.config.ingest import IngestConfig
from afinar.dataset.gc import verify_dataset
from afinar.dataset.manifest import get_manifests, list_objects
from afinar.ingest.driver import run_ingest
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import jpeg, make_archive

REPOSITORY = Path(__file__).parents[2]

STEPS = [
    *(("plans", 1, when) for when in ("before", "after")),
    *(
        (folder, nth, when)
        for folder in ("shards", "facts", "units")
        for nth in (1, 2)
        for when in ("before", "after")
    ),
    *(
        (folder, 3, when) for folder in ("shards", "units") for when in ("before", "after")
    ),  # those of compaction
    *(
        (folder, 1, when)
        for folder in ("index", "rejects", "lists", "manifests")
        for when in ("before", "after")
    ),
]


@dataclass(frozen=True)
class Scene:
    """A source that changed since version 1, version 1, and the index and shards that version 2 must have."""

    source: Path
    first: Path
    index: pa.Table
    shards: dict[str, str]


def run(source: Path, dataset: Path) -> None:
    run_ingest(IngestConfig(source=str(source), dataset=str(dataset), size=32), InlineExecutor())


def shards_of(dataset: Path) -> dict[str, str]:
    """Names and hashes of the current version's shards."""
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
    run(source, folder / "first")
    for number in range(20):
        (source / "moss" / f"{number:03d}.jpg").unlink()
    for number in range(100):
        (source / "rust" / f"new-{number}.jpg").write_bytes(jpeg(40_000 + number))
    shutil.copytree(folder / "first", folder / "undisturbed")
    run(source, folder / "undisturbed")
    return Scene(
        source,
        folder / "first",
        open_dataset(str(folder / "undisturbed")).index,
        shards_of(folder / "undisturbed"),
    )


def test_the_scene_takes_every_step(scene: Scene) -> None:
    versions = {name.split("/")[1][:8] for name in scene.shards}
    assert versions == {"00000001", "00000002"}
    assert len([name for name in scene.shards if "/00000002-" in name]) == 3, (
        "two of new pictures, one compacted"
    )


@pytest.mark.parametrize(("folder", "nth", "when"), STEPS)
def test_killed_at_a_step_of_the_commit(
    scene: Scene, tmp_path: Path, folder: str, nth: int, when: str
) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(scene.first, dataset)
    published = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    words = [
        sys.executable,
        "-m",
        "tests.ingest.killed_at",
        folder,
        str(nth),
        when,
        str(scene.source),
        str(dataset),
    ]
    killed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    done = open_dataset(str(dataset)).manifest.version
    assert done == (2 if (folder, when) == ("manifests", "after") else 1)
    assert len(open_dataset(str(dataset), version=1).read(range(120))) == 120, (
        "the version before is whole"
    )
    run(scene.source, dataset)
    assert open_dataset(str(dataset)).manifest.version == 2
    assert open_dataset(str(dataset)).index == scene.index
    assert shards_of(dataset) == scene.shards, "shard for shard what an undisturbed run writes"
    store = open_store(str(dataset))
    assert verify_dataset(store, get_manifests(store)).damaged == []
    assert {path: path.read_bytes() for path in published} == published, (
        "no published object changed"
    )
