"""Arrow schemas of cached features."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from afinar.config.features import StoredType

INDEX: Final = pa.schema([("sample_id", pa.string()), ("shard", pa.string()), ("row", pa.int32())])
"""One row of features: the picture's content hash, and the place of its features."""


def shard_schema(width: int, stored_as: StoredType) -> pa.Schema:
    """Return the schema of a shard: content hash, and a list of `width` numbers."""
    number = pa.float16() if stored_as == "float16" else pa.float32()
    return pa.schema([("sample_id", pa.string()), ("features", pa.list_(number, width))])
