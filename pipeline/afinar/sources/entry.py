"""One listed picture, and the Arrow schema of a listing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed picture: its object's name below the source, its full URI, its change mark, its size in bytes.

    `sample_id`, `shard` and `row` say where a picture lies that this one may turn out to be, unchanged but for its
    name or its change mark: if its content has that hash it need not be decoded.
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
"""One listed picture; `label`, `split` and `group` are null where the source does not state them. Uris of ten million
pictures pass the 2 GB that `string` can address: hence `large_string`."""
