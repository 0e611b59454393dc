"""Arrow schemas of a prediction folder's files, and the names of its objects."""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa

PREDICTIONS: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("sample_id", pa.string()),
        ("etag", pa.string()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("top_labels", pa.list_(pa.string())),
        ("top_scores", pa.list_(pa.float32())),
        ("model_version", pa.string()),
    ]
)
"""One labelled picture. `score` is the probability of `label`; `top_labels` and `top_scores` hold
the k most probable classes, best first."""

REJECTS: Final = pa.schema(
    [("uri", pa.string()), ("etag", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
"""One picture that could not be labelled."""

SCHEMAS: Final = {"part": PREDICTIONS, "rejects": REJECTS}
"""Schema of each kind of object."""

PUBLISHED: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("etag", pa.large_string()),
        ("reason", pa.string()),
        ("part", pa.int32()),
    ]
)
"""One published picture, in memory only. `reason` is null if the picture is labelled, else why it
was rejected; `part` is the position of its object in the partition's list of objects."""

ABSTAINED: Final = pa.field("abstained", pa.bool_())

_PART_NAME: Final = re.compile(r"part-([^-/]+)-[^-/]+\.parquet")


def object_folder(kind: str, partition: str) -> str:
    """Return the folder of a partition's objects of one kind."""
    return f"{'parts' if kind == 'part' else 'rejects'}/model={partition}"


def object_template(kind: str, partition: str, unit: str) -> str:
    """Return the name of an object that `unit` writes, with `{hash}` for its content hash."""
    return f"{object_folder(kind, partition)}/part-{unit}-{{hash}}.parquet"


def writer_unit(path: str) -> str | None:
    """Return the unit that wrote an object, from the object's name; None for any other name.

    `parts/model=1-0a1b2c3d/part-77aa-beef.parquet` was written by unit `77aa`.
    """
    match = _PART_NAME.fullmatch(path.rsplit("/", 1)[-1])
    return match[1] if match else None
