"""Objects by their URIs, in any bucket and folder: for lists without a common root."""

from __future__ import annotations

from afinar.storage.open import open_reader, split_uri
from afinar.storage.store import ObjectInfo, Reader


class MultiStore:
    """Reader of objects by normalized URI. Threads may share it.

    It keeps one Reader per bucket or folder and drops none: create one per batch of objects.
    `remote` is True if some of the objects lie in buckets.
    """

    def __init__(self, *, remote: bool) -> None:
        self._readers: dict[str, Reader] = {}
        self._remote = remote

    @property
    def parallel_reads(self) -> int:
        """Return the useful number of concurrent reads, that of a bucket if there is one."""
        if not self._remote:
            return 1
        from afinar.storage.s3 import S3Store  # 0.4 s of imports that folders do not need

        return S3Store.parallel_reads

    def get(self, uri: str, etag: str | None = None) -> bytes:
        reader, name = self._find(uri)
        return reader.get(name, etag)

    def stat(self, uri: str) -> ObjectInfo:
        """Return the listing entry of one object. Its `name` is the URI."""
        reader, name = self._find(uri)
        return reader.stat(name)._replace(name=uri, uri=uri)

    def prefetch(self, uri: str) -> None:
        reader, name = self._find(uri)
        reader.prefetch(name)

    def exists(self) -> bool:
        """Return True if every bucket used so far answers. Raises StorageError if one does not."""
        for root, reader in list(self._readers.items()):
            if root.startswith("s3://"):
                reader.exists()
        return True

    def _find(self, uri: str) -> tuple[Reader, str]:
        root, name = split_uri(uri)
        if "\\x" in root and root.startswith("/"):
            root, name = "/", uri[1:]  # a reader takes escapes in names, not in its root
        reader = self._readers.get(root)
        if reader is None:
            # Two threads may open one root at the same time; both then use the Reader that was
            # kept.
            reader = self._readers.setdefault(root, open_reader(root))
        return reader, name


def open_root(root: str, *, remote: bool) -> Reader | MultiStore:
    """Open what the names of entries are relative to: a folder or prefix, or "" for any place.

    `remote` is True if some of the objects lie in buckets.
    """
    return open_reader(root) if root else MultiStore(remote=remote)
