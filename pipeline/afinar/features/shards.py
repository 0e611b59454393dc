"""Write and read shards of features. Needs no torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.config.features import StoredType
from afinar.features.schema import shard_schema
from afinar.storage.arrow import conform, from_ipc, to_ipc
from afinar.storage.cache import Cache, map_file, open_verified
from afinar.storage.objects import ObjectRef, put_object
from afinar.storage.store import Store


def put_shard(
    store: Store,
    unit: str,
    sample_ids: pa.Array,
    values: NDArray[np.floating],
    stored_as: StoredType,
) -> ObjectRef:
    """Write features [n, width], which have the stored type, as an Arrow file of a unit."""
    width = values.shape[1]
    numbers = pa.array(np.ascontiguousarray(values).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(numbers, width)
    table = pa.Table.from_arrays([sample_ids, column], schema=shard_schema(width, stored_as))
    return put_object(store, f"shards/{unit}-{{hash}}.arrow", to_ipc(table), len(table))


def read_shard(
    store: Store, ref: ObjectRef, width: int, stored_as: StoredType
) -> NDArray[np.floating]:
    """Return the features of a shard, [rows, width], as they are stored.

    Raises RecordError for a shard with another width or type.
    """
    uri = store.uri(ref.path)
    with open_verified(store, ref, Cache()) as file:
        table = from_ipc(map_file(file), uri=uri, rows=ref.rows)
    schema = shard_schema(width, stored_as)
    table = conform(table, schema, uri, required=schema.names)
    column = table.column("features")
    # Without a copy: one batch is what `put_shard` writes.
    rows = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    numbers = rows.flatten()
    array: NDArray[np.floating] = numbers.to_numpy(zero_copy_only=False)
    return array.reshape(len(table), width)
