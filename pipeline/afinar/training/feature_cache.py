"""Features of a frozen backbone: read from the dataset's cache, or computed and kept there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.dataset.reader import Dataset
from afinar.errors import RequestError, ShortfallError, StorageError
from afinar.features.fill import keep_features
from afinar.features.key import ComputePrecision, FeatureSpec
from afinar.features.network import to_stored, weights_hash
from afinar.features.reader import Features, open_key
from afinar.models.networks.network import Network
from afinar.training.distributed import Group
from afinar.training.inputs import AugmentedView, FeatureExtractor, PixelInputs
from afinar.training.sampler import RowNumbers
from afinar.training.task import TrainTask

logger = logging.getLogger(__name__)

_PRECISIONS: Final[dict[torch.dtype, ComputePrecision]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_STORED_AS: Final[Literal["float16"]] = "float16"


def feature_spec(
    task: TrainTask, network: Network, dataset: Dataset, precision: torch.dtype
) -> FeatureSpec:
    """Return what determines the features of a network on the plain pictures of a dataset."""
    architecture = task.architecture
    return FeatureSpec(
        backbone=architecture.backbone,
        weights=weights_hash(network.backbone.state_dict()),
        cut=architecture.cut,
        pool=architecture.pool,
        stored_view=dataset.view,
        input_view=task.input_view,
        precision=_PRECISIONS[precision],
        stored_as=_STORED_AS,
    )


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Features of the pictures of a dataset, for all workers of a training.

    `network` is in the state of its initial weights, on every worker. `pixels` are its inputs.
    """

    task: TrainTask
    network: Network
    dataset: Dataset
    pixels: PixelInputs
    group: Group
    precision: torch.dtype
    threads: int

    @cached_property
    def _plain(self) -> FeatureSpec:
        return feature_spec(self.task, self.network, self.dataset, self.precision)

    def _spec(self, view: int | None) -> FeatureSpec:
        """Return what determines the features of an augmented view, or of the plain pictures."""
        if view is None:
            return self._plain
        config = self.task.config
        return replace(
            self._plain,
            augmented=f"{config.augmentation.describe()}, seed {config.seed}, view {view}",
        )

    def load(self, rows: RowNumbers, view: int | None = None) -> Tensor:
        """Return the features of dataset rows, float32 [n, width], on every worker.

        `view` is the number of an augmented view, None for the pictures as they are.

        Those that the cache has are read by rank 0. The others are computed by all workers and kept
        in the cache. Both are rounded to the type in which the cache stores them, so that a
        training gets the same numbers whether it fills the cache or reads it.
        """
        group, known = self.group, torch.zeros(len(rows), device=self.group.device)
        spec, stored, ids = None, None, pa.array([], pa.string())
        if group.is_rank_zero:
            spec = self._spec(view)
            stored = open_key(self.dataset.store.root, spec.key)
            ids = self.dataset.index.column("sample_id").take(pa.array(rows)).combine_chunks()
            if stored is not None:
                known += torch.from_numpy(stored.has(ids).astype(np.float32)).to(known)
        is_known = group.all_reduce_sum(known).cpu().numpy() > 0

        if is_known.all():
            features = self._read(stored, ids, is_known, width=None)
            if spec is not None:
                logger.info(
                    f"features{_of(spec)}: all {len(rows)} pictures from the cache, key {spec.key}"
                )
            return features

        # At least one picture per worker.
        chosen = _padded(np.flatnonzero(~is_known), len(rows), group.size)
        computed = FeatureExtractor(
            network=self.network,
            pixels=self.pixels if view is None else AugmentedView(self.pixels, view),
            group=group,
            precision=self.precision,
            threads=self.threads,
        ).compute(rows[chosen])
        features = self._read(stored, ids, is_known, width=computed.shape[1])
        rounded = computed.half().float()
        fits = bool(rounded.isfinite().all())
        features[torch.from_numpy(chosen).to(group.device)] = rounded if fits else computed
        if spec is not None:
            new = np.flatnonzero(~is_known[chosen])
            values = rounded[torch.from_numpy(new).to(group.device)] if fits else None
            self._keep(spec, ids.take(pa.array(chosen[new])), values, len(rows))
        return features

    def _read(
        self,
        stored: Features | None,
        ids: pa.Array,
        is_known: NDArray[np.bool_],
        width: int | None,
    ) -> Tensor:
        """Return the known rows on every worker; the others are zero. `width` None: ask rank 0."""
        group = self.group
        if width is None:
            number = torch.zeros((), dtype=torch.int64, device=group.device)
            number += stored.manifest.width if stored is not None else 0
            width = int(group.all_reduce_sum(number))
        features = torch.zeros(len(is_known), width, device=group.device)
        if not is_known.any():
            return features
        if stored is not None:
            positions = np.flatnonzero(is_known)
            values = torch.from_numpy(stored.read(ids.take(pa.array(positions))))
            features[torch.from_numpy(positions).to(group.device)] = values.to(features)
        return group.all_reduce_sum(features)

    def _keep(self, spec: FeatureSpec, ids: pa.Array, rounded: Tensor | None, rows: int) -> None:
        """Write computed features to the cache, and log in one line what became of them.

        `rounded` is None if they exceed the stored type. A dataset that cannot be written is no
        reason to end a training.
        """
        line = f"features{_of(spec)}: {len(ids)} of {rows} pictures computed"
        if rounded is None:
            logger.info(f"{line}; not kept, because they exceed {_STORED_AS}")
            return
        values, uri = to_stored(rounded, _STORED_AS), self.dataset.store.root
        try:
            keep_features(uri, self.task.dataset_version, spec, ids.to_pylist(), values)
        except (StorageError, RequestError, ShortfallError) as error:
            logger.info(f"{line}; not kept in the cache: {error}")
        else:
            logger.info(f"{line} and kept in the cache, key {spec.key}")


def _of(spec: FeatureSpec) -> str:
    """Return which pictures features are of, for a line of the log: "" for the plain ones."""
    return f" ({spec.augmented})" if spec.augmented else ""


def _padded(missing: RowNumbers, rows: int, workers: int) -> RowNumbers:
    """Return the missing positions, or at least one position per worker that include them."""
    if len(missing) >= workers:
        return missing
    others = np.setdiff1d(np.arange(min(rows, 2 * workers)), missing)
    return np.sort(np.concatenate([missing, others[: workers - len(missing)]]))
