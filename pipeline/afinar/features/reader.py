"""Open cached features: rows of numbers by content hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.errors import RequestError
from afinar.features.key import FeatureSpec
from afinar.features.manifest import (
    FeatureManifest,
    FeatureVersion,
    feature_keys,
    open_features_store,
    read_features,
)
from afinar.features.shards import read_shard
from afinar.storage.open import normalize_uri
from afinar.storage.store import Store


class Features:
    """Features of one key, as one version has them."""

    def __init__(self, store: Store, version: FeatureVersion) -> None:
        assert version.manifest is not None, "the caller has checked that there is a version"
        self.store = store
        self.manifest: FeatureManifest = version.manifest
        self.index = version.index
        self._shards = {ref.path: ref for ref in version.shards}

    @property
    def spec(self) -> FeatureSpec:
        """Specification of the features: backbone, weights, cut, pooling, views, precision."""
        return self.manifest.spec

    @property
    def key(self) -> str:
        """Name of the folder of these features."""
        return self.spec.key

    @cached_property
    def sample_ids(self) -> pa.ChunkedArray:
        """Content hashes of the pictures that have features, each once."""
        return self.index.column("sample_id").unique()

    def has(self, sample_ids: Sequence[str] | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return True for each picture that has features."""
        known: NDArray[np.bool_] = np.asarray(
            pc.is_in(_as_array(sample_ids), self.index.column("sample_id")).to_numpy(
                zero_copy_only=False
            ),
            dtype=np.bool_,
        )
        return known

    def iter_shards(self) -> Iterator[tuple[str, NDArray[np.floating]]]:
        """Yield the name of each shard with its features [rows, width], as they are stored.

        They are views of mapped files: no memory is taken until they are used.
        """
        for name, ref in self._shards.items():
            yield name, read_shard(self.store, ref, self.manifest.width, self.spec.stored_as)

    def read(self, sample_ids: Sequence[str] | pa.ChunkedArray) -> NDArray[np.float32]:
        """Return the features of these pictures, float32 [n, width], in their order.

        Raises RequestError for a picture without features.
        """
        wanted = _as_array(sample_ids)
        places = pc.index_in(wanted, self.index.column("sample_id"))
        if places.null_count:
            raise RequestError(
                f"{places.null_count} of {len(wanted)} pictures have no features in "
                f"{self.store.root}: compute them with `afinar features`"
            )
        rows = self.index.column("row").take(places).to_numpy()
        shards = self.index.column("shard").take(places)
        names = shards.unique().to_pylist()
        numbers = pc.index_in(shards, pa.array(names, pa.string())).to_numpy()

        # Sorted by shard: each is mapped once.
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(len(names)), side="right").tolist()
        values: NDArray[np.float32] | None = None
        for name, start, end in zip(names, [0, *ends], ends, strict=False):
            ref, positions = self._shards[name], order[start:end]
            shard = read_shard(self.store, ref, self.manifest.width, self.spec.stored_as)
            if values is None:  # not before a shard has confirmed the width
                values = np.empty((len(wanted), shard.shape[1]), dtype=np.float32)
            values[positions] = shard[rows[positions]]
        return np.empty((0, self.manifest.width), np.float32) if values is None else values


def _as_array(sample_ids: Sequence[str] | pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if isinstance(sample_ids, pa.ChunkedArray | pa.Array):
        return sample_ids
    return pa.array(sample_ids, pa.string())


def open_key(dataset: str, key: str) -> Features | None:
    """Open the features of one key of a dataset, None if there are none."""
    store = open_features_store(normalize_uri(dataset), key)
    version = read_features(store)
    return None if version.manifest is None else Features(store, version)


def list_all(dataset: str) -> list[Features]:
    """Open the features of all keys of a dataset but those of augmented views."""
    opened = [open_key(dataset, key) for key in feature_keys(normalize_uri(dataset))]
    return [features for features in opened if features is not None and not features.spec.augmented]


def open_features(
    dataset: str, *, backbone: str = "", cut: str = "", pool: str = "", key: str = ""
) -> Features:
    """Open the cached features of a dataset that have this backbone, cut and pooling, or this key.

    What is left out is not compared. Raises RequestError if no features, or several, are meant.
    """
    wanted = {"backbone": backbone, "cut": cut, "pool": pool, "key": key}
    found = [
        features
        for features in list_all(dataset)
        if all(
            not value or value == (features.key if name == "key" else getattr(features.spec, name))
            for name, value in wanted.items()
        )
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RequestError(
            f"{dataset} has no such features: compute them with `afinar features {dataset}`"
        )
    names = ", ".join(
        f"{features.key} ({features.spec.backbone} at {features.spec.cut_name})"
        for features in found
    )
    raise RequestError(f"{dataset} has several such features: {names}; give backbone, cut or key")
