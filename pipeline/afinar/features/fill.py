"""Keep features that a training has computed, so that no later job computes them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.dataset.manifest import require_not_erased
from afinar.features.gc import collect_key
from afinar.features.key import FeatureSpec
from afinar.features.manifest import NewShard, add_shards, open_features_store
from afinar.features.shards import put_shard
from afinar.storage.open import open_store
from afinar.storage.versions import new_owner, probe_conditional_put
from afinar.units.cut import PLAN
from afinar.units.plans import delete_plan, store_plan

_SHARD_BYTES: Final = 64 * 2**20


def keep_features(
    dataset: str,
    version: int,
    spec: FeatureSpec,
    sample_ids: list[str],
    values: NDArray[np.floating],
) -> None:
    """Publish features [n, width] of pictures of a dataset's version, which have the stored type.

    A content that occurs several times is stored once. Raises StorageError or RequestError if the
    dataset cannot be written, ShortfallError if pictures were erased from it meanwhile.
    """
    shared, store = open_features_store(dataset), open_features_store(dataset, spec.key)
    shared.require_target()
    probe_conditional_put(shared)
    owner = new_owner()
    units = list(_units(sample_ids, values))

    # The plan is a lease: garbage collection leaves its objects alone.
    table = pa.Table.from_pylist([{"uri": unit, "unit": unit} for unit, _, _ in units], schema=PLAN)
    plan = store_plan(shared, f"plans/training-{owner[:12]}.parquet", table)
    try:
        shards = [
            NewShard(put_shard(store, unit, ids, rows, spec.stored_as), ids)
            for unit, ids, rows in units
        ]
        require_not_erased(open_store(dataset), version)
        add_shards(store, spec, values.shape[1], shards, owner)
    finally:
        delete_plan(shared, plan)
    collect_key(dataset, spec.key)


def _units(
    sample_ids: list[str], values: NDArray[np.floating]
) -> Iterator[tuple[str, pa.Array, NDArray[np.floating]]]:
    """Yield name, content hashes and features of each shard; the name is a digest of the hashes."""
    first = {sample_id: row for row, sample_id in reversed(list(enumerate(sample_ids)))}
    rows = np.array(sorted(first.values()), dtype=np.int64)
    size = max(1, _SHARD_BYTES // (values.shape[1] * values.itemsize))
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        ids = [sample_ids[row] for row in chosen]
        unit = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]
        yield unit, pa.array(ids, pa.string()), values[chosen]
