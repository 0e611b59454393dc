"""Writing a shard piece by piece, and taking rows out of a mapped one.

A shard is an Arrow file of record batches of a few megabytes: what a worker holds is one batch, however many
pictures the shard takes.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np
import pyarrow as pa

from afinar.dataset.schema import shard_schema
from afinar.pictures.decode import Pixels
from afinar.pictures.jpeg import decode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.storage.objects import ObjectRef, ObjectWriter
from afinar.storage.store import Store

FOLDER: Final = "shards"
_BATCH_BYTES: Final = (
    8 * 2**20
)  # of pixels: stays in a processor's cache between decoding, hashing and writing


def batch_rows(view: StoredView) -> int:
    """Pictures to a record batch."""
    return max(1, _BATCH_BYTES // (view.size * view.size * 3))


class ShardWriter:
    """Writes record batches into a new shard. A context manager; what was not committed is discarded."""

    def __init__(self, store: Store, view: StoredView) -> None:
        self._object = ObjectWriter(store, FOLDER)
        self._schema = shard_schema(view.size, view.store)
        self._file = pa.ipc.new_file(pa.PythonFile(self._object, mode="w"), self._schema)
        self.rows = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._object.__exit__(*exception)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch of the shard's schema."""
        self._file.write_batch(batch)
        self.rows += len(batch)

    def commit(self, unit: str) -> ObjectRef:
        """Publish the shard of `unit`."""
        self._file.close()
        return self._object.commit(f"{FOLDER}/{unit}-{{hash}}.arrow", self.rows)


class MappedShard:
    """The pictures of one shard, memory-mapped."""

    def __init__(self, data: memoryview, view: StoredView) -> None:
        chunks = pa.ipc.open_file(pa.py_buffer(data)).read_all().column("image").chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)]).tolist()
        # A numpy view of each batch for pixels; the files themselves for a `jpeg` store.
        self._chunks = (
            [chunk.to_numpy_ndarray() for chunk in chunks] if view.store == "pixels" else chunks
        )
        self._pixels = view.store == "pixels"

    def picture(self, row: int) -> Pixels:
        """One row's pixels, uint8 [size, size, 3]: a view of the mapped file, or decoded."""
        batch = bisect_right(self._starts, row) - 1
        found = self._chunks[batch][row - self._starts[batch]]
        pixels: Pixels = found if self._pixels else decode_stored(found.as_buffer())
        return pixels
