"""Arrow schemas of what lies on disk, and the nouns behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed picture: its object's name below the source, its full URI, its change mark, its size in bytes."""

    name: str
    uri: str
    etag: str
    size: int


LISTING: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("name", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("label", pa.string()),
    ]
)
"""One listed picture; `label` is null where none is known."""

FACTS: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
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
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("sample_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ]
)
"""One sample: the facts that may change without a pixel being read."""

REJECTS: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
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


def shard_schema(size: int) -> pa.Schema:
    """Schema of a `pixels` shard: what never changes about a sample. `image` is uint8 [size, size, 3]."""
    image = pa.fixed_shape_tensor(pa.uint8(), (size, size, 3))
    return pa.schema([("sample_id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("image", image)])
