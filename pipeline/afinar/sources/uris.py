"""URIs that people write in tables, as a listing writes them.

`find .`, a notebook or pathlib write `./a.jpg`, `../p/a.jpg`, `p//a.jpg` or `file:///p/a%20b.jpg`.
Everything stays in Arrow columns, except for the URIs that have to be rewritten.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from afinar.storage.arrow import concat_columns
from afinar.storage.open import local_path

_CHUNK: Final = 8192  # URIs that are Python objects at a time

_SCHEME: Final = "^[A-Za-z][A-Za-z0-9+.-]*://"
_IS_FILE_URI: Final = "(?i)^file:/"
_IS_RELATIVE: Final = "^[^/]"
_TO_NORMALIZE: Final = r"//|(^|/)\.\.?(/|$)|/$"


class Candidates(NamedTuple):
    """Places of the pictures that a table names: `uri`, otherwise `fallback`, which may be null.

    `uri` is what the documentation says. The fallback of a path is its meaning from the current
    folder, that of a key is the key without `.`, `..` and empty parts, which a key may have.
    """

    uri: pa.ChunkedArray
    fallback: pa.ChunkedArray


def resolve(uris: pa.ChunkedArray, base: str) -> Candidates:
    """Return the candidates of URIs in a table; relative ones are relative to `base`.

    Example with base `/p` and the current folder `/jobs`: `./a.jpg` may be `/p/a.jpg` or
    `/jobs/a.jpg`; `file:///p/a%20b.jpg` is `/p/a b.jpg`, without a fallback.
    """
    uris = pc.cast(uris, pa.large_string())
    uris = _rewrite(uris, pc.match_substring_regex(uris, _IS_FILE_URI), local_path)
    absolute = absolute_uris(uris, base)
    normalized = _normalize(absolute)
    is_key = pc.starts_with(absolute, "s3://")
    uri = pc.if_else(is_key, absolute, normalized)

    fallback = pc.if_else(is_key, normalized, _from_current_folder(uris, base))
    none = pa.scalar(None, pa.large_string())
    return Candidates(uri, pc.if_else(pc.equal(uri, fallback), none, fallback))


def absolute_uris(uris: pa.ChunkedArray, base: str) -> pa.ChunkedArray:
    """Return complete URIs; a relative one is relative to `base`."""
    absolute = concat_columns(base.rstrip("/"), uris, separator="/")
    return pc.if_else(_is_relative(uris), absolute, uris)


def _is_relative(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    has_scheme = pc.match_substring_regex(uris, _SCHEME)
    return pc.and_not(pc.match_substring_regex(uris, _IS_RELATIVE), has_scheme)


def _from_current_folder(uris: pa.ChunkedArray, base: str) -> pa.ChunkedArray:
    none = pa.scalar(None, pa.large_string())
    if base.startswith("s3://"):
        return pc.if_else(pc.is_valid(uris), none, none)
    local = _normalize(absolute_uris(uris, os.getcwd()))  # noqa: PTH109
    return pc.if_else(_is_relative(uris), local, none)


def _normalize(absolute: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return complete URIs without `.`, `..` and empty parts."""
    tails = pc.replace_substring_regex(absolute, "^s3://", "")
    has_scheme = pc.match_substring_regex(tails, _SCHEME)
    to_normalize = pc.and_not(pc.match_substring_regex(tails, _TO_NORMALIZE), has_scheme)
    return _rewrite(absolute, to_normalize, _normalize_one)


def _normalize_one(uri: str) -> str:
    if not uri.startswith("s3://"):
        return f"/{os.path.normpath(uri).lstrip('/')}"
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    path = os.path.normpath("/" + key.lstrip("/"))
    return f"s3://{bucket}{path}"


def _rewrite(
    uris: pa.ChunkedArray, is_affected: pa.ChunkedArray, function: Callable[[str], str]
) -> pa.ChunkedArray:
    """Return the URIs with `function` applied to those that are affected."""
    if not pc.any(is_affected).as_py():
        return uris
    table = pa.table({"uri": uris, "is_affected": is_affected})
    chunks = [
        pa.array(
            [
                function(uri) if flag else uri
                for uri, flag in zip(*(column.to_pylist() for column in batch.columns), strict=True)
            ],
            pa.large_string(),
        )
        for batch in table.to_batches(max_chunksize=_CHUNK)
    ]
    return pa.chunked_array(chunks, pa.large_string())
