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
"""The outcome of one picture: the place of its sample, or (shard null) a reason."""

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
"""One sample, with everything that may change without reading a pixel.

`split` is null for a sample that is held out."""

INDEX_REQUIRED: Final = ["uri", "etag", "sample_id", "shard", "row"]
"""Columns of an index that are never null."""

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
"""One object of a version: `kind` is "shard", "index", "rejects" or "labels" ("part"
in predictions)."""


def shard_schema(size: int, store: StoreKind) -> pa.Schema:
    """Return the schema of a shard: what never changes about a sample.

    `image` is uint8 [size, size, 3] in a `pixels` store, the bytes of a JPEG file in a `jpeg`
    store."""
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
