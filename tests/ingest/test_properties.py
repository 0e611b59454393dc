"""What holds of every archive: generated ones, changed at random, ingested each time."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.dataset.gc import verify_dataset
from afinar.dataset.manifest import get_manifests
from afinar.dataset.schema import OUTCOMES
from afinar.ingest.compaction import MAX_DEAD, count_live
from afinar.ingest.driver import run_ingest
from afinar.ingest.plan import make_plan
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.sources.listing import list_pictures
from afinar.storage.folder_reader import FolderReader
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.storage.store import ObjectInfo
from afinar.units.executor import InlineExecutor


def picture(content: int) -> bytes:
    """A small PNG; one content in five is no picture."""
    if content % 5 == 4:
        return f"no picture {content}".encode()
    sink = io.BytesIO()
    pixels = np.random.default_rng(content).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


names = st.sampled_from(
    [f"{label}/{number}.png" for label in ("a", "b", "c") for number in range(7)]
)
contents = st.integers(0, 30)
changes = st.one_of(
    st.tuples(st.just("write"), names, contents),
    st.tuples(st.just("remove"), names, st.just(0)),
    st.tuples(st.just("rename"), names, names),
)
archives = st.lists(st.lists(changes, min_size=1, max_size=12), min_size=2, max_size=4)


def apply(source: Path, change: tuple[str, str, Any]) -> None:
    kind, name, other = change
    path = source / name
    if kind == "write":
        path.write_bytes(picture(other))
    elif path.exists() and kind == "remove":
        path.unlink()
    elif path.exists():
        path.rename(source / other)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(archives, st.sampled_from(["pixels", "jpeg"]))
def test_samples_and_rejects_are_the_listing_after_any_changes(
    rounds: list[list[Any]], store: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(folder, "source"), str(Path(folder, "dataset"))
        for label in ("a", "b", "c"):
            (source / label).mkdir(parents=True)
            (source / label / "stays.png").write_bytes(picture(100 + 5 * ord(label)))
        config = IngestConfig(
            source=str(source),
            dataset=dataset,
            size=8,
            store=store,
            extensions=".png",
            max_reject_rate=1.0,
        )
        before: dict[str, str] = {}
        for batch in rounds:
            for change in batch:
                apply(source, change)
            run_ingest(config, InlineExecutor())
            before = require_exact(source, dataset, before)


def require_exact(source: Path, dataset: str, before: dict[str, str]) -> dict[str, str]:
    """Index + rejects = files, pixels = files, splits stable, no shard worn; the splits by content."""
    opened = open_dataset(dataset)
    files = {str(path): path.read_bytes() for path in source.rglob("*.png")}
    rows, rejects = opened.index.to_pylist(), opened.rejects.to_pylist()
    assert sorted(row["uri"] for row in [*rows, *rejects]) == sorted(files)
    images = opened.read(range(len(rows)))
    for row, image in zip(rows, images, strict=True):
        assert row["sample_id"] == sha256(files[row["uri"]])
        assert row["label"] == Path(row["uri"]).parent.name
        np.testing.assert_array_equal(image, decode(files[row["uri"]], opened.view).image)
    assert all(files[row["uri"]].startswith(b"no picture") for row in rejects)
    splits = {row["sample_id"]: row["split"] for row in rows if row["split"]}
    assert all(splits[content] == split for content, split in before.items() if content in splits)
    store = open_store(dataset)
    live = count_live(opened.index)
    for shard in opened.objects_of("shard"):
        assert shard.rows - live[shard.path] <= MAX_DEAD * shard.rows
    assert verify_dataset(store, get_manifests(store)).damaged == []
    return before | splits


@given(
    st.sets(st.text("abcdefgh/01", min_size=1, max_size=9), min_size=1, max_size=50), st.randoms()
)
def test_a_plan_depends_on_no_order_of_listing(found: set[str], rng: random.Random) -> None:
    infos = [ObjectInfo(name, f"/archive/{name}", len(name), f"e{name}") for name in sorted(found)]
    plans = []
    for _ in range(2):
        rng.shuffle(infos)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderReader, "exists", lambda _: True)
            patch.setattr(FolderReader, "walk", lambda *_: iter(infos))
            listing = list_pictures("/archive", None)
        plans.append(make_plan(listing, OUTCOMES.empty_table(), StoredView(size=32, fit="crop"), 1))
    assert plans[0].equals(plans[1])


class Shuffled(InlineExecutor):
    """Runs units in an order of its own, some of them twice, as a cluster may."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def run(self, work: Any, tasks: Any) -> Iterator[Any]:
        waiting = list(tasks)
        again = self._rng.sample(waiting, len(waiting) // 2)
        self._rng.shuffle(waiting)
        done = [work(task) for task in waiting]
        for task in again:
            work(task)
        yield from done


def test_units_in_any_order_and_twice_give_the_same_dataset(tmp_path: Path) -> None:
    from tests.conftest import make_archive

    archive = make_archive(tmp_path / "pictures", 120)
    datasets = []
    for seed in range(3):
        dataset = str(tmp_path / f"dataset-{seed}")
        run_ingest(IngestConfig(source=str(archive), dataset=dataset, size=16), Shuffled(seed))
        store = open_store(dataset)
        shards = {info.name: sha256(store.get(info.name)) for info in store.walk("shards")}
        datasets.append((open_dataset(dataset).index, shards))
    assert len(datasets[0][1]) == 5
    assert datasets[0] == datasets[1] == datasets[2]
