"""Objects named by their whole URIs, wherever they lie: what a list of pictures needs."""

from __future__ import annotations

from afinar.storage.open import open_reader
from afinar.storage.store import ObjectInfo, Reader


class MultiStore:
    """Reads objects of any bucket and any folder; `remote` says whether some of them lie in buckets.

    Opens one store for each bucket and folder that it meets, and remembers it: make one for some objects, not for all.
    """

    def __init__(self, *, remote: bool) -> None:
        self._stores: dict[str, Reader] = {}
        self._remote = remote

    @property
    def parallel_reads(self) -> int:
        """As of a Store. Files among objects of a bucket are read beside these."""
        if not self._remote:
            return 1
        from afinar.storage.s3 import S3Store  # 0.4 s of imports that folders do not need

        return S3Store.parallel_reads

    def get(self, uri: str, etag: str | None = None) -> bytes:
        """As Store.get, of a normalised URI."""
        store, name = self._place(uri)
        return store.get(name, etag)

    def stat(self, uri: str) -> ObjectInfo:
        """As Store.look_up, of a normalised URI. The name in it is the URI."""
        store, name = self._place(uri)
        return store.stat(name)._replace(name=uri, uri=uri)

    def prefetch(self, uri: str) -> None:
        """As Store.will_read."""
        store, name = self._place(uri)
        store.prefetch(name)

    def exists(self) -> bool:
        """Whether every bucket met so far answers us. Raises StorageError where one does not."""
        for root, store in list(self._stores.items()):
            if root.startswith("s3://"):
                store.exists()
        return True

    def _place(self, uri: str) -> tuple[Reader, str]:
        root, name = split_uri(uri)
        if root not in self._stores:
            self._stores[root] = open_reader(root)
        return self._stores[root], name


def split_uri(uri: str) -> tuple[str, str]:
    """Root of the store that holds the object of a normalised URI, and its name there: its bucket, or its folder."""
    if uri.startswith("s3://"):
        bucket, _, key = uri[len("s3://") :].partition("/")
        return f"s3://{bucket}", key
    folder, _, name = uri.rpartition("/")
    return folder or "/", name
