"""The features worker: read the pictures of one unit, compute, and commit a shard for each key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from afinar.dataset.reader import open_dataset
from afinar.dataset.shards import MappedShard
from afinar.features.key import FeatureSpec
from afinar.features.manifest import open_features_store
from afinar.features.network import FeatureNetwork, load_feature_network
from afinar.features.shards import put_shard
from afinar.pictures.decode import configure_pillow
from afinar.sources.entry import Entry
from afinar.storage.markers import UnitMarker, commit_unit
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store
from afinar.units.progress import PhaseTimer
from afinar.units.results import UnitResult
from afinar.units.tasks import UnitTask

_CACHE_BYTES: Final = 8 * 2**30  # of a remote dataset's shards on one machine: each is read once
_BATCH: Final = {"cpu": 8, "cuda": 256}
_READERS: Final = {"cpu": 1, "cuda": 4}  # threads: a GPU is faster than one core reads


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureJobSpec:
    """Values that all units of one job share. `specs` have one backbone and one input view."""

    dataset: str
    version: int
    weights: str
    specs: tuple[FeatureSpec, ...]
    batch_size: int = 0


class ShardRows:
    """Pictures of a dataset by shard and row. A shard stays mapped until another one is read."""

    def __init__(self, dataset: str, version: int) -> None:
        self._dataset = open_dataset(dataset, version=version, cache_bytes=_CACHE_BYTES)
        self._mapped: tuple[str, MappedShard] | None = None

    def shards_of(self, entries: Sequence[Entry]) -> list[MappedShard]:
        """Map the shards of these entries, one after the other."""
        return [self._shard(str(entry.shard)) for entry in entries]

    def _shard(self, path: str) -> MappedShard:
        if self._mapped is None or self._mapped[0] != path:
            self._mapped = (path, self._dataset.map_shard(path))
        return self._mapped[1]


@dataclass(frozen=True)
class FeatureWorker:
    """The unit function of one worker process."""

    job: FeatureJobSpec
    network: FeatureNetwork
    pictures: ShardRows

    def __call__(self, task: UnitTask) -> UnitResult:
        """Run one unit. Running it twice cannot change a published object."""
        timer = PhaseTimer()
        parts: list[list[NDArray[np.floating]]] = [[] for _ in self.job.specs]
        for images in self._batches(task.entries, timer):
            with timer.phase("forward"):
                for part, values in zip(parts, self.network(images), strict=True):
                    part.append(values)

        sample_ids = pa.array([entry.sample_id for entry in task.entries], pa.string())
        with timer.phase("write"):
            for spec, part in zip(self.job.specs, parts, strict=True):
                store = open_features_store(self.job.dataset, spec.key)
                ref = put_shard(store, task.unit, sample_ids, np.concatenate(part), spec.stored_as)
                _commit(store, task.unit, ref)
        return UnitResult(task.unit, len(task.entries), 0, timer.seconds)

    def _batches(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[NDArray[np.uint8]]:
        """Yield the stored views of the entries, uint8 [n, size, size, 3], read ahead in threads.

        Only the wait for a batch counts as `fetch`.
        """
        device = self.network.device.type
        size = self.job.batch_size or _BATCH.get(device, _BATCH["cpu"])
        groups = [entries[start : start + size] for start in range(0, len(entries), size)]
        readers = _READERS.get(device, 1)
        with ThreadPoolExecutor(readers) as pool:
            waiting: list[Future[NDArray[np.uint8]]] = []
            for group in groups:
                # Shards are mapped in this thread, in order: each is fetched once.
                with timer.phase("fetch"):
                    shards = self.pictures.shards_of(group)
                waiting.append(pool.submit(_gather, shards, group))
                if len(waiting) > readers:
                    with timer.phase("fetch"):
                        images = waiting.pop(0).result()
                    yield images
            for future in waiting:
                with timer.phase("fetch"):
                    images = future.result()
                yield images


def _gather(shards: Sequence[MappedShard], entries: Sequence[Entry]) -> NDArray[np.uint8]:
    rows = [int(entry.row or 0) for entry in entries]
    return np.stack([shard.picture(row) for shard, row in zip(shards, rows, strict=True)])


def _commit(store: Store, unit: str, ref: ObjectRef) -> None:
    """Write the marker. The shard of a worker that comes second is deleted."""
    committed = commit_unit(store, UnitMarker(unit=unit, objects={"shard": ref}))
    if committed.objects["shard"].path != ref.path:
        store.delete(ref.path)


def make_feature_worker(job: FeatureJobSpec) -> FeatureWorker:
    """Load the network and open the dataset: the entry point of a worker process.

    Limits torch to one thread, since a worker has one core.
    """
    torch.set_num_threads(1)
    configure_pillow()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_feature_network(job.specs, job.weights, device)
    return FeatureWorker(job, network, ShardRows(job.dataset, job.version))
