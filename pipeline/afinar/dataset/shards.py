"""Write a shard batch by batch, and read rows of a memory-mapped one.

A shard is an Arrow file of record batches of a few megabytes. So a worker holds one batch in
memory, however many pictures the shard has.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from afinar.dataset.schema import shard_schema
from afinar.pictures.jpeg import decode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.resize import Pixels
from afinar.storage.arrow import conform, from_ipc
from afinar.storage.objects import ObjectRef, ObjectWriter
from afinar.storage.store import Store

FOLDER: Final = "shards"
# Pixels of a record batch: they stay in the CPU cache between decoding, hashing and writing.
_BATCH_BYTES: Final = 8 * 2**20


def batch_rows(view: StoredView) -> int:
    """Return the number of pictures in a record batch."""
    return max(1, _BATCH_BYTES // (view.size * view.size * 3))


class ShardWriter:
    """Writes record batches to a new shard. As a context manager it discards an uncommitted one."""

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

    def save(self, unit: str) -> ObjectRef:
        """Write the shard under its final name, which holds `unit` and its hash."""
        self._file.close()
        return self._object.save(f"{FOLDER}/{unit}-{{hash}}.arrow", self.rows)


class OriginalSize(NamedTuple):
    """Width and height of a picture before it was resized; None if a shard lacks them."""

    width: int | None
    height: int | None


class MappedShard:
    """The pictures of one memory-mapped shard; `data` is the whole file.

    Raises RecordError, which names `uri`, if it is not a shard of this view with `rows` rows.
    """

    def __init__(self, data: memoryview, view: StoredView, uri: str, rows: int) -> None:
        schema = shard_schema(view.size, view.store)
        table = conform(from_ipc(data, uri=uri, rows=rows), schema, uri, ["image"], ["image"])
        self._sides = table.select(["width", "height"])
        batches = table.column("image").chunks
        # Row number of the first picture of each batch, and the number of all rows.
        self._starts = np.cumsum([0, *(len(batch) for batch in batches)]).tolist()

        # In a `pixels` store a numpy view of each batch, in a `jpeg` store the files themselves.
        self._is_pixels = view.store == "pixels"
        self._batches = (
            [batch.to_numpy_ndarray() for batch in batches] if self._is_pixels else batches
        )

    def picture(self, row: int) -> Pixels:
        """Return the pixels of a row: uint8 [size, size, 3], a view of the mapped file or decoded.

        Example: with batches of 10 and 7 rows, row 12 is row 2 of the second batch.
        """
        batch = bisect_right(self._starts, row) - 1
        picture = self._batches[batch][row - self._starts[batch]]
        pixels: Pixels = picture if self._is_pixels else decode_stored(picture.as_buffer())
        return pixels

    def original_size(self, row: int) -> OriginalSize:
        """Return the size in pixels of the picture that a row was made from."""
        width, height = (column[row].as_py() for column in self._sides.columns)
        return OriginalSize(width, height)
