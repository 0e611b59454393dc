"""Opening a location: as a store that this project writes, or as a source that it reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from afinar.errors import RequestError
from afinar.storage.files import as_text
from afinar.storage.names import is_unicode
from afinar.storage.store import Reader, Store

_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")


def normalize_uri(uri: str) -> str:
    """Return a location in canonical form: `s3://bucket/key` or an absolute path.

    It has no trailing slash. Raises RequestError for other schemes and for an empty location.
    """
    scheme = uri[:5].lower()
    if scheme == "s3://":
        if not uri[5:].strip("/"):
            raise RequestError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        bucket = uri[5:].partition("/")[0]
        if not _BUCKET.fullmatch(bucket):
            raise RequestError(
                f"{uri!r}: {bucket!r} is no name of a bucket, which has letters, digits, dots, "
                "hyphens and underscores: write s3://BUCKET/PREFIX"
            )
        return f"s3://{uri[5:]}".rstrip("/")
    if scheme.startswith("s3:/"):  # what pathlib makes of a URI
        raise RequestError(f"{uri!r}: write s3://BUCKET/PREFIX, with two slashes")

    uri = local_path(uri)
    if "://" in uri:
        raise RequestError(f"{uri!r}: only folders and s3:// are supported")
    if not uri.strip():
        raise RequestError("an empty location was given: name a folder or s3://BUCKET/PREFIX")
    if not is_unicode(uri):
        raise RequestError(f"{as_text(uri)}: the name is not UTF-8. Rename it, or link to it.")
    # Path.absolute would keep `..`.
    return os.path.abspath(Path(uri).expanduser())  # noqa: PTH100


_FILE_URI: Final = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)


def local_path(uri: str) -> str:
    """Return the path of a file:// URI, in which `%20` stands for a blank; any other text as is."""
    match = _FILE_URI.match(uri)
    if match is None:
        return uri
    return as_text(os.fsdecode(unquote_to_bytes(uri[match.end() :])))


def open_store(uri: str) -> Store:
    """Open a dataset, models or predictions at `uri`, confined to that root.

    Costs no request. Credentials come from the environment of the process.
    """
    root = normalize_uri(uri)
    if root.startswith("s3://"):
        from afinar.storage.s3 import S3Store  # 0.4 s of imports that a folder does not need

        return S3Store(root)

    from afinar.storage.local import LocalStore

    return LocalStore(root)


def split_uri(uri: str) -> tuple[str, str]:
    """Split a normalized URI into the root of a store (its bucket or folder) and the name there.

    `s3://bucket/a/b.jpg` gives `s3://bucket` and `a/b.jpg`, `/data/a/b.jpg` gives `/data/a` and
    `b.jpg`.
    """
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    folder, _, name = uri.rpartition("/")
    return folder or "/", name


def read_uri(uri: str) -> bytes:
    """Read one object or file that a user named. Raises StorageError if it cannot be read."""
    root, name = split_uri(normalize_uri(uri))
    return open_reader(root).get(name)


def open_reader(uri: str) -> Reader:
    """Open a location for reading that a user named (pictures, a table, weights).

    Links are followed and any name is taken. Costs no request.
    """
    root = normalize_uri(uri)
    if root.startswith("s3://"):
        from afinar.storage.s3 import S3Reader  # 0.4 s of imports that a folder does not need

        return S3Reader(root)

    from afinar.storage.folder_reader import FolderReader

    return FolderReader(root)
