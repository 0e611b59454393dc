"""Opening a location: as a store that is ours to write, or as a source of pictures to read."""

from __future__ import annotations

import os
from pathlib import Path

from afinar.errors import RequestError
from afinar.storage.store import Reader, Store


def normalize_uri(uri: str) -> str:
    """Write a location one way: `s3://bucket/key` or an absolute path, no trailing slash.

    Raises RequestError for schemes that are neither.
    """
    if uri.startswith("s3://"):
        if not uri[5:].strip("/"):
            raise RequestError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        return uri.rstrip("/")
    if uri.startswith("file://"):
        uri = uri[len("file://") :]
    if "://" in uri:
        raise RequestError(f"{uri!r}: only folders and s3:// are supported")
    if not uri.strip():
        raise RequestError("an empty location was given: name a folder or s3://BUCKET/PREFIX")
    return os.path.abspath(Path(uri).expanduser())  # noqa: PTH100  (collapses `..`, which Path.absolute keeps)


def open_store(uri: str) -> Store:
    """Open a dataset, models or predictions at `uri`, confined to that root.

    Costs no request; credentials come from the process's environment.
    """
    root = normalize_uri(uri)
    if root.startswith("s3://"):
        from afinar.storage.s3 import S3Store  # 0.4 s of imports that a folder does not need

        return S3Store(root)
    from afinar.storage.local import LocalStore

    return LocalStore(root)


def open_reader(uri: str) -> Reader:
    """Open what a user named to be read (pictures, a table, weights): links are followed and any name is taken."""
    root = normalize_uri(uri)
    if root.startswith("s3://"):
        from afinar.storage.s3 import S3Reader  # 0.4 s of imports that a folder does not need

        return S3Reader(root)
    from afinar.storage.folder_reader import FolderReader

    return FolderReader(root)
