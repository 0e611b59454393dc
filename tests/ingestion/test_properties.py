"""Properties of every dataset: random archives after random changes, units in any order."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from afinar import open_dataset
from afinar.config.ingest import StoreKind
from afinar.dataset.gc import verify_dataset
from afinar.dataset.manifest import get_manifests
from afinar.ingestion.compaction import MAX_DEAD, count_live
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.archives import ingest
from tests.conftest import make_archive
from tests.datasets import assert_pixels_match_files, object_hashes


def file_content(number: int) -> bytes:
    """Return a small PNG; one number in five gives a file that is no picture."""
    if number % 5 == 4:
        return f"no picture {number}".encode()
    sink = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


names = st.sampled_from(
    [f"{label}/{number}.png" for label in ("a", "b", "c") for number in range(7)]
)
changes = st.one_of(
    st.tuples(st.just("write"), names, st.integers(0, 30)),
    st.tuples(st.just("remove"), names, st.just(0)),
    st.tuples(st.just("rename"), names, names),
)
rounds_of_changes = st.lists(st.lists(changes, min_size=1, max_size=12), min_size=2, max_size=4)


def apply(source: Path, change: tuple[str, str, Any]) -> None:
    """Write content to a file, remove it, or rename it; nothing if it does not exist."""
    action, name, other = change
    path = source / name
    if action == "write":
        path.write_bytes(file_content(other))
    elif path.exists() and action == "remove":
        path.unlink()
    elif path.exists():
        path.rename(source / other)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(rounds_of_changes, st.sampled_from(["pixels", "jpeg"]))
def test_samples_and_rejects_are_the_listing_after_any_changes(
    rounds: list[list[Any]], store: StoreKind
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(folder, "source"), str(Path(folder, "dataset"))
        for label in ("a", "b", "c"):
            (source / label).mkdir(parents=True)
            (source / label / "stays.png").write_bytes(file_content(100 + 5 * ord(label)))
        options = {"size": 8, "store": store, "extensions": ".png", "max_reject_rate": 1.0}
        splits: dict[str, str] = {}
        for batch in rounds:
            for change in batch:
                apply(source, change)
            ingest(source, dataset, **options)
            splits = assert_consistent(source, dataset, splits)


def assert_consistent(source: Path, dataset: str, before: dict[str, str]) -> dict[str, str]:
    """Require a dataset that matches its source; return the split of every content.

    Index and rejects are the files, pixels are those of the files, no content has changed its
    split since `before`, the version before, and no shard has too many dead rows. A content that
    was held out or removed may be assigned anew when it comes back.
    """
    opened = open_dataset(dataset)
    files = {str(path): path.read_bytes() for path in source.rglob("*.png")}
    rows, rejects = opened.index.to_pylist(), opened.rejects.to_pylist()
    assert sorted(row["uri"] for row in [*rows, *rejects]) == sorted(files)
    for row in rows:
        assert row["sample_id"] == sha256(files[row["uri"]])
        assert row["label"] == Path(row["uri"]).parent.name
    assert_pixels_match_files(opened)
    assert all(files[row["uri"]].startswith(b"no picture") for row in rejects)

    splits = {row["sample_id"]: row["split"] for row in rows if row["split"]}
    assert all(splits[content] == split for content, split in before.items() if content in splits)
    store = open_store(dataset)
    live = count_live(opened.index)
    for shard in opened.objects_of("shard"):
        assert shard.rows - live[shard.path] <= MAX_DEAD * shard.rows
    assert verify_dataset(store, get_manifests(store)).damaged == []
    return splits


class ShufflingExecutor(InlineExecutor):
    """Runs units in a random order, half of them twice, as can happen on a cluster."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def run(self, make_work: Any, tasks: Iterable[Any], policy: Any = None) -> Iterator[Any]:
        work, waiting = make_work(), list(tasks)
        again = self._rng.sample(waiting, len(waiting) // 2)
        self._rng.shuffle(waiting)
        done = [work(task) for task in waiting]
        for task in again:
            work(task)
        yield from done


def test_units_in_any_order_and_run_twice_give_the_same_dataset(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 120)
    datasets = []
    for seed in range(3):
        dataset = str(tmp_path / f"dataset-{seed}")
        ingest(archive, dataset, ShufflingExecutor(seed), size=16)
        datasets.append((open_dataset(dataset).index, object_hashes(dataset, "shards")))
    assert len(datasets[0][1]) == 5
    assert datasets[0] == datasets[1] == datasets[2]
