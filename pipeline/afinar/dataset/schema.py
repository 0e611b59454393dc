"""Arrow schemas of a dataset's files."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from afinar.config.ingest import StoreKind

OUTCOMES: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("etag", pa.large_string()),
        ("sample_id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""What became of one picture: where its sample lies, or (shard null) why it was rejected."""

INDEX: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("etag", pa.large_string()),
        ("sample_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ]
)
"""One sample: the facts that may change without a pixel being read. `split` is null for one that is held out."""

REJECTS: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("etag", pa.large_string()),
        ("label", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One picture that could not be used."""

OBJECTS: Final = pa.schema(
    [
        ("kind", pa.string()),
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""The objects of one version: its shards, index files and rejects, by `kind`."""


def shard_schema(size: int, store: StoreKind) -> pa.Schema:
    """Schema of a shard: what never changes about a sample.

    `image` is uint8 [size, size, 3] in a `pixels` store, the bytes of a JPEG file in a `jpeg` store.
    """
    image = (
        pa.fixed_shape_tensor(pa.uint8(), (size, size, 3))
        if store == "pixels"
        else pa.large_binary()
    )
    return pa.schema(
        [
            ("sample_id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("image", image),
        ]
    )
