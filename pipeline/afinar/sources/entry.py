"""One listed picture, and the Arrow schema of a listing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed picture: its name below the source, its full URI, its etag, its size in bytes.

    `sample_id`, `shard` and `row` are the location of a sample that this file probably duplicates
    (renamed or touched). If the content hash matches, decoding is skipped.
    """

    name: str
    uri: str
    etag: str
    size: int
    sample_id: str | None = None
    shard: str | None = None
    row: int | None = None


LISTING: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("etag", pa.large_string()),
        ("size", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
    ]
)
"""One listed picture. `label`, `split` and `group` are null if the source does not state them. URIs
of ten million pictures exceed the 2 GB that `string` can address, hence `large_string`."""
