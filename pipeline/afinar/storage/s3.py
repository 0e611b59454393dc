"""A bucket as a store, through s3fs, and for reading objects through obstore.

Endpoint, region and credentials come from the process's own environment (AWS_ENDPOINT_URL, AWS_PROFILE,
instance roles, …), as boto reads them, so that they never pass through arguments, recipes or job metadata.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync

from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.storage.names import is_safe_name, split_name
from afinar.storage.parallel_listing import ParallelLister
from afinar.storage.s3_clients import (
    Clients,
    call_with_deadline,
    clients,
    http_status,
    look_at_object,
    quoted,
    read_object,
    s3fs_client,
    translate_errors,
)
from afinar.storage.s3_listing import ListingPage, page_of
from afinar.storage.store import Buffer, NewObject, ObjectInfo, Reader, Store

_SINGLE_PUT_BYTES = 2**32  # below this one request, so that If-None-Match covers the whole object
_PIECE_BYTES = (
    32 * 2**20
)  # of an upload in pieces, four of them in flight; ten thousand make 320 GB
_PUT_ATTEMPTS = 7
_LISTERS = 16
_LEVELS = 3  # of folders, looked through for ones to list at the same time
_ENOUGH = 16

_Prefix: TypeAlias = tuple[str, int]  # key prefix, how many levels below it may be looked through


class S3Reader(Reader):
    """Objects of a bucket below a prefix, for reading."""

    parallel_reads = 32
    is_remote = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._bucket, _, key = root.removeprefix("s3://").partition("/")
        self._base = f"{key}/" if key else ""

    @cached_property
    def _clients(self) -> Clients:
        return clients(self._bucket)

    def _key(self, name: str) -> str:
        return self._base + name

    @property
    def _fs(self) -> Any:
        return self._clients.fs

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List recursively, folders at the same time; hidden names are left out as in a folder."""
        start = self._base + (f"{prefix.strip('/')}/" if prefix.strip("/") else "")
        for page in ParallelLister(self._visit, _LISTERS).pages([(start, _LEVELS)]):
            yield from page

    def _visit(self, item: _Prefix, walk: ParallelLister[_Prefix]) -> Iterator[list[ObjectInfo]]:
        """List one prefix: its own level, handing out the folders there, or where there are enough, all below it."""
        prefix, levels = item
        below: dict[str, None] = {}
        for page in self._pages(prefix, **({"Delimiter": "/"} if levels else {})):
            below |= dict.fromkeys(page.prefixes)
            yield self._infos(page.objects)
        shown = [folder for folder in below if not folder[len(prefix) :].startswith(".")]
        for folder in shown:
            walk.add((folder, levels - 1 if len(shown) < _ENOUGH else 0))

    def _call(self, operation: str, **options: str) -> Any:
        return call_with_deadline(
            self._fs, lambda: self._fs._call_s3(operation, Bucket=self._bucket, **options)
        )

    def _pages(self, prefix: str, **options: str) -> Iterator[ListingPage]:
        more: str | None = ""
        while more is not None:
            token = {"ContinuationToken": more} if more else {}
            with translate_errors(f"s3://{self._bucket}/{prefix}"):
                response = self._call("list_objects_v2", Prefix=prefix, **options, **token)
            page = page_of(response)
            yield page
            more = page.more

    def _infos(self, objects: list[tuple[str, int, str]]) -> list[ObjectInfo]:
        skip, head = len(self._base), f"s3://{self._bucket}/"
        return [
            ObjectInfo(key[skip:], head + key, size, etag)
            for key, size, etag in objects
            if key[-1] != "/" and "/." not in f"/{key[skip:]}"
        ]

    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read an object with one GET, conditional on `etag` where given."""
        uri = self.uri(name)
        with translate_errors(uri):
            return self._clients.check.read(uri, lambda: self._fetch(name, etag))

    def _fetch(self, name: str, etag: str | None) -> tuple[bytes, str]:
        key, reader = self._key(name), self._clients.reader
        # obstore takes keys for paths: it would strip slashes at the ends, and refuses empty and dotted parts.
        if reader is not None and key.strip("/") == key:
            try:
                return read_object(reader, key, etag)
            except ValueError:
                pass  # such a key
        return self._fetch_any(key, etag)

    def _fetch_any(self, key: str, etag: str | None) -> tuple[bytes, str]:
        """One GET through s3fs, which reads any key."""
        condition = {"IfMatch": quoted(etag)} if etag else {}

        async def read() -> tuple[bytes, str]:
            response = await self._fs._call_s3(
                "get_object", Bucket=self._bucket, Key=key, **condition
            )
            async with response["Body"] as body:
                return await body.read(), response["ETag"]

        for _ in range(2):
            with suppress(
                ClientPayloadError
            ):  # a body that breaks off: s3fs and botocore retry requests only
                return cast("tuple[bytes, str]", sync(self._fs.loop, read))
        return cast("tuple[bytes, str]", sync(self._fs.loop, read))

    def stat(self, name: str) -> ObjectInfo:
        """Look at one object with one HEAD."""
        key, reader = self._key(name), self._clients.reader
        with translate_errors(self.uri(name)):
            if reader is not None and key.strip("/") == key:
                with suppress(ValueError):  # a key that obstore refuses
                    size, etag = look_at_object(reader, key)
                    return ObjectInfo(name, self.uri(name), size, etag)
            head = self._call("head_object", Key=key)
            return ObjectInfo(name, self.uri(name), head["ContentLength"], head["ETag"].strip('"'))

    def exists(self) -> bool:
        """Whether the bucket answers these credentials: a wrong endpoint is found out in seconds, not retried."""
        quick = s3fs_client(attempts=2, connect_s=2, read_s=3)
        try:
            with translate_errors(self.root):
                quick.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._base, MaxKeys=1)
        except NotFoundError:
            return False
        return True


class S3Store(S3Reader, Store):
    """Objects of a bucket below a prefix that are ours to write; put-if-absent is `If-None-Match: *`."""

    def _key(self, name: str) -> str:
        split_name(name)
        return super()._key(name)

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List recursively as S3Reader does. Keys that are no names of a store are left out: others wrote them."""
        if prefix:
            split_name(prefix)
        return (info for info in super().walk(prefix) if is_safe_name(info.name))

    def get_unverified(self, name: str) -> bytes:
        """Read an object without holding it against its ETag."""
        with translate_errors(self.uri(name)):
            return self._fetch(name, None)[0]

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """One conditional PUT. 412 means taken; 409 means a rival is writing, so ask again."""
        if isinstance(data, memoryview):
            data = data.tobytes()  # botocore takes no views; 128 MB are copied in 40 ms
        for attempt in range(_PUT_ATTEMPTS):
            try:
                self._put(name, data)
                return True
            except (OSError, ClientError, BotoCoreError) as error:
                status = http_status(error)
                if status == 412 or (status is None and isinstance(error, FileExistsError)):
                    return False
                if status != 409:
                    with translate_errors(self.uri(name)):
                        raise
            time.sleep(
                random.uniform(0.5, 1) * 0.05 * 2**attempt
            )  # 3 to 6 s in all, and rivals drift apart
        raise StorageError(f"{self.uri(name)}: the store kept answering 409 to a conditional put")

    def _put(self, name: str, data: Buffer) -> None:
        options = {"mode": "create", "chunksize": _SINGLE_PUT_BYTES}
        path = f"{self._bucket}/{self._key(name)}"
        call_with_deadline(self._fs, lambda: self._fs._pipe_file(path, data, **options), len(data))

    def new_large_object(self, folder: str) -> NewObject:
        """Begin an object that grows on this machine's disk and is uploaded piece by piece."""
        split_name(folder)
        return _OnDisk(self)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        """Upload a file, in pieces where it is large; the condition is then that of completing the upload.

        A store that does not know the condition there would replace the object: for names that say the content only.
        """
        options = {"chunksize": _PIECE_BYTES, "max_concurrency": 4, "mode": "create"}
        key = f"{self._bucket}/{self._key(name)}"
        try:
            call_with_deadline(
                self._fs, lambda: self._fs._put_file(str(path), key, **options), path.stat().st_size
            )
        except (OSError, ClientError, BotoCoreError) as error:
            if http_status(error) == 412 or isinstance(error, FileExistsError):
                return False
            with translate_errors(self.uri(name)):
                raise
        return True

    def delete(self, name: str) -> None:
        """Remove an object."""
        with translate_errors(self.uri(name)):
            self._call("delete_object", Key=self._key(name))

    def require_target(self) -> None:
        """The bucket must exist and answer; that it takes conditional puts is proved by a probe later."""
        try:
            there = self.exists()
        except StorageError as error:
            raise RequestError(
                f"cannot reach {error}. Check the endpoint and the credentials."
            ) from error
        if not there:
            raise RequestError(
                f"{self.root}: there is no such bucket. Make it, or choose another target."
            )


class _OnDisk(NewObject):
    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._file = tempfile.NamedTemporaryFile(prefix="afinar-")  # noqa: SIM115  (`discard` closes it)

    def write(self, data: Buffer) -> None:
        self._file.write(data)

    def publish(self, name: str) -> bool:
        self._file.flush()
        return self._store.put_file_if_absent(name, Path(self._file.name))

    def discard(self) -> None:
        self._file.close()
