"""Loading of batches by threads, and prefetching of shards."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from afinar.config.ingest import IngestConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.ingestion.driver import run_ingest
from afinar.storage.cache import Cache
from afinar.training.loading import ShardWindows, load_batches
from afinar.training.sampler import epoch_order, global_batches
from afinar.units.executor import InlineExecutor
from tests.conftest import many_pictures
from tests.storage.test_cache import RemoteStore


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_load_batches_keeps_the_order(threads: int) -> None:
    loaded = list(load_batches(lambda number: number * number, range(50), threads))
    assert loaded == [(number, number * number) for number in range(50)]


def test_load_batches_closed_early_stops_loading() -> None:
    requested: list[int] = []
    loading = load_batches(requested.append, range(1000), 2)
    next(loading)
    loading.close()
    assert len(requested) < 20
    assert threading.active_count() < 50


def test_load_batches_raises_the_error_of_a_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        list(load_batches(lambda number: 1 // number, [1, 0, 1], 2))


def test_prefetch_windows_fetches_each_shard_once_within_the_cache_limit(tmp_path: Path) -> None:
    source = many_pictures(tmp_path / "pictures", 400)
    config = IngestConfig(source=str(source), dataset=str(tmp_path / "dataset"), size=32)
    run_ingest(config, InlineExecutor())
    local = open_dataset(config.dataset)
    assert len(local.shards) >= 6
    largest = max(ref.bytes for ref in local.shards)
    store = RemoteStore(config.dataset)
    dataset = Dataset(store, local.manifest, Cache(tmp_path / "cache", 4 * largest))
    rows = np.arange(len(dataset.index))

    windows = ShardWindows.of(dataset, rows, 2 * largest)
    assert windows.size == 2
    epoch = epoch_order(windows.shards, 0, 0, windows.size)
    batches = global_batches(epoch.order, 10)
    with windows.prefetch_windows(epoch, batches) as on_batch:
        for number, batch in enumerate(batches):
            on_batch(number)
            np.testing.assert_array_equal(dataset.read(batch), local.read(batch))

    reads = Path(store.root, "reads").read_text().splitlines()
    fetched = [name for name in reads if name.startswith("shards/")]
    assert sorted(fetched) == [ref.path for ref in local.shards], "each shard once"
    files = (tmp_path / "cache").iterdir()
    sizes = [path.stat().st_size for path in files if not path.name.startswith("lock-")]
    assert sum(sizes) <= 4 * largest
