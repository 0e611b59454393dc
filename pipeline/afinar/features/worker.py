"""The features worker: read the pictures of one unit, compute, and commit a shard for each key."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from afinar.dataset.reader import open_dataset
from afinar.features.key import FeatureSpec
from afinar.features.manifest import open_features_store
from afinar.features.network import load_feature_network
from afinar.features.shards import put_shard
from afinar.inference.cpu import use_worker_cores
from afinar.inference.device import CpuDevice, CudaDevice, Device, Images
from afinar.inference.picture_batches import PictureBatches, Pictures, ShardPictures
from afinar.inference.pipeline import Pipeline, SubmittedBatch
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
_DECODERS: Final = {"cpu": 1, "cuda": 4}  # threads: a GPU is faster than one core decodes


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureJobSpec:
    """Values that all units of one job share. `specs` have one backbone and one input view."""

    dataset: str
    version: int
    weights: str
    specs: tuple[FeatureSpec, ...]
    batch_size: int = 0


@dataclass(frozen=True)
class FeatureWorker:
    """The unit function of one worker process.

    Several threads may run units. Their pictures go through the one `pipeline`, a unit at a time.
    """

    job: FeatureJobSpec
    pipeline: Pipeline[list[NDArray[np.floating]]]
    pictures: Pictures

    def __call__(self, task: UnitTask) -> UnitResult:
        """Run one unit. Running it twice cannot change a published object."""
        timer = PhaseTimer()
        outputs = self._compute(task.entries, timer)

        sample_ids = pa.array([entry.sample_id for entry in task.entries], pa.string())
        with timer.phase("write"):
            for number, spec in enumerate(self.job.specs):
                store = open_features_store(self.job.dataset, spec.key)
                features = np.concatenate([output[number] for output in outputs])
                ref = put_shard(store, task.unit, sample_ids, features, spec.stored_as)
                _commit(store, task.unit, ref)
        return UnitResult(task.unit, len(task.entries), 0, timer.seconds)

    def _compute(
        self, entries: Sequence[Entry], timer: PhaseTimer
    ) -> list[list[NDArray[np.floating]]]:
        """Return the features of each batch."""
        with timer.phase("fetch"):
            self.pictures.prefetch(entries)
        size, most = self.pipeline.batch_size, self.pipeline.device.batches
        pending: deque[SubmittedBatch[list[NDArray[np.floating]]]] = deque()
        outputs: list[list[NDArray[np.floating]]] = []

        def collect() -> None:
            with timer.phase("forward"):
                outputs.append(pending.popleft().result())

        try:
            with self.pipeline.filling(), self.pictures.batches(entries, timer) as batches:
                for start in range(0, len(entries), size):
                    if len(pending) == most:
                        collect()
                    fill = partial(_fill, batches, entries[start : start + size])
                    batch = self.pipeline.submit(fill)
                    assert batch is not None, "every row of a shard is a picture"
                    pending.append(batch)
            while pending:
                collect()
        finally:
            for batch in pending:
                batch.discard()
        return outputs


def _fill(batches: PictureBatches, entries: Sequence[Entry], images: Images) -> int:
    return len(batches.fill(entries, images))


def _commit(store: Store, unit: str, ref: ObjectRef) -> None:
    """Write the marker. The shard of a worker that comes second is deleted."""
    committed = commit_unit(store, UnitMarker(unit=unit, objects={"shard": ref}))
    if committed.objects["shard"].path != ref.path:
        store.delete(ref.path)


def make_feature_worker(job: FeatureJobSpec) -> FeatureWorker:
    """Load the network and open the dataset: the entry point of a worker process.

    Limits torch to the cores of the worker.
    """
    use_worker_cores()
    configure_pillow()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_feature_network(job.specs, job.weights, device)
    dataset = open_dataset(job.dataset, version=job.version, cache_bytes=_CACHE_BYTES)
    chosen: Device[list[NDArray[np.floating]]] = (
        CudaDevice(device, network.compute, network.finish)
        if device.type == "cuda"
        else CpuDevice(network)
    )
    batch_size = job.batch_size or _BATCH[device.type]
    return FeatureWorker(
        job=job,
        pipeline=Pipeline(chosen, batch_size, dataset.view.size),
        pictures=ShardPictures(dataset, dataset.view, _DECODERS[device.type]),
    )
