"""A bucket as a store.

Endpoint, region and credentials come from the environment of the process (AWS_ENDPOINT_URL,
AWS_PROFILE, instance roles, …), as boto reads them. They never pass through arguments, recipes or
job metadata.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync

from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.storage.files import require_at_most
from afinar.storage.files import translate_errors as translate_file_errors
from afinar.storage.left_out import HIDDEN, LeftOut, system_label, system_place
from afinar.storage.names import is_safe_name, split_name
from afinar.storage.parallel_listing import ParallelLister
from afinar.storage.s3_clients import (
    Body,
    Clients,
    bucket_clients,
    call_with_deadline,
    head_object,
    http_status,
    quote_etag,
    read_object,
    s3fs_client,
    translate_errors,
)
from afinar.storage.s3_listing import ListedKey, ListingPage, page_of
from afinar.storage.store import S3_HINT, Buffer, NewObject, ObjectInfo, Reader, Store

if TYPE_CHECKING:
    from obstore.store import S3Store as ObstoreS3

_SINGLE_PUT_BYTES = 2**32  # up to this size one request, so If-None-Match covers the whole object
_PIECE_BYTES = 32 * 2**20  # of an upload in pieces; the limit of 10,000 pieces is 320 GB
_PIECES_IN_FLIGHT = 4
_PUT_ATTEMPTS = 7
_LIST_THREADS = 16
_FOLDER_LEVELS = 3  # below the root of a walk, in which folders are listed one by one
_ENOUGH_FOLDERS = 16  # to keep all threads busy


class _Prefix(NamedTuple):
    """A key prefix to list. `levels`: so many levels of folders may be listed one by one."""

    key: str
    levels: int


class S3Reader(Reader):
    """Objects of a bucket below a prefix, for reading."""

    parallel_reads = 32
    is_remote = True
    hint = S3_HINT

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._bucket, _, key = root.removeprefix("s3://").partition("/")
        self._base = f"{key}/" if key else ""

    @cached_property
    def _clients(self) -> Clients:
        return bucket_clients(self._bucket)

    def _key(self, name: str) -> str:
        return self._base + name

    @property
    def _fs(self) -> Any:
        return self._clients.fs

    def walk(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[ObjectInfo]:
        """List all keys below `prefix`, several folders at a time."""
        folder = prefix.strip("/")
        start = _Prefix(self._base + (f"{folder}/" if folder else ""), _FOLDER_LEVELS)
        list_item = partial(self._list_item, left_out or LeftOut())
        for page in ParallelLister(list_item, _LIST_THREADS).pages([start]):
            yield from page

    def _list_item(
        self, left_out: LeftOut, prefix: _Prefix, lister: ParallelLister[_Prefix]
    ) -> Iterator[list[ObjectInfo]]:
        """List one prefix.

        One request lists either one level of folders or all keys below a prefix, page after page.
        With 3 folders at the root, each is listed level by level, to find more folders to list at
        the same time. With 16 folders or more in a prefix, each is listed with all keys below it.
        """
        folders: dict[str, None] = {}  # an ordered set
        system_places: set[str] = set()
        for page in self._pages(prefix.key, **({"Delimiter": "/"} if prefix.levels else {})):
            folders |= dict.fromkeys(page.prefixes)
            yield self._infos(page.objects, system_places)

        shown = []
        for folder in folders:
            if (place := system_place(folder, len(prefix.key))) is None:
                shown.append(folder)
            else:
                system_places.add(place)
        for place in system_places:
            left_out.add(system_label(place.rpartition("/")[2]) or HIDDEN)

        levels = prefix.levels - 1 if len(shown) < _ENOUGH_FOLDERS else 0
        for folder in shown:
            lister.add(_Prefix(folder, levels))

    def _call(self, operation: str, **options: str) -> Any:
        return call_with_deadline(
            self._fs, lambda: self._fs._call_s3(operation, Bucket=self._bucket, **options)
        )

    def _pages(self, prefix: str, **options: str) -> Iterator[ListingPage]:
        token: dict[str, str] = {}
        while True:
            with translate_errors(f"s3://{self._bucket}/{prefix}"):
                response = self._call("list_objects_v2", Prefix=prefix, **options, **token)
            page = page_of(response)
            yield page
            if page.next_token is None:
                return
            token = {"ContinuationToken": page.next_token}

    def _infos(self, objects: list[ListedKey], system_places: set[str]) -> list[ObjectInfo]:
        """Return the objects of a page. What systems left there is added to `system_places`."""
        skip, head = len(self._base), f"s3://{self._bucket}/"
        infos = []
        for key, size, etag in objects:
            if key[-1] == "/":
                continue
            if (place := system_place(key, skip)) is None:
                infos.append(ObjectInfo(key[skip:], head + key, size, etag))
            else:
                system_places.add(place)
        return infos

    def get(self, name: str, etag: str | None = None, *, max_bytes: int | None = None) -> bytes:
        """Read an object with one GET, conditional on `etag` where given."""
        uri = self.uri(name)
        with translate_errors(uri):
            return self._clients.verifier.read(uri, lambda: self._fetch(name, etag, max_bytes))

    def _obstore_for(self, key: str) -> ObstoreS3 | None:
        """Return the obstore client, or None for a key that begins or ends with a slash.

        obstore would strip the slash, and raises ValueError for a key with empty or dotted parts.
        s3fs reads both kinds of keys.
        """
        return self._clients.reader if key.strip("/") == key else None

    def _fetch(self, name: str, etag: str | None, max_bytes: int | None = None) -> Body:
        key = self._key(name)
        check_size = partial(require_at_most, max_bytes=max_bytes, uri=self.uri(name))
        if (reader := self._obstore_for(key)) is not None:
            with suppress(ValueError):
                return read_object(reader, key, etag, check_size)
        return self._fetch_with_s3fs(key, etag, check_size)

    def _fetch_with_s3fs(
        self, key: str, etag: str | None, check_size: Callable[[int], None]
    ) -> Body:
        condition = {"IfMatch": quote_etag(etag)} if etag else {}

        async def read() -> Body:
            response = await self._fs._call_s3(
                "get_object", Bucket=self._bucket, Key=key, **condition
            )
            async with response["Body"] as body:
                check_size(response["ContentLength"])
                return Body(await body.read(), response["ETag"])

        # s3fs and botocore retry requests, but not a body that breaks off.
        for _ in range(2):
            with suppress(ClientPayloadError):
                return cast("Body", sync(self._fs.loop, read))
        return cast("Body", sync(self._fs.loop, read))

    def stat(self, name: str) -> ObjectInfo:
        """Return the listing entry of one object, with one HEAD."""
        key, uri = self._key(name), self.uri(name)
        with translate_errors(uri):
            if (reader := self._obstore_for(key)) is not None:
                with suppress(ValueError):
                    entry = head_object(reader, key)
                    return ObjectInfo(name, uri, entry.size_bytes, entry.etag)
            head = self._call("head_object", Key=key)
            return ObjectInfo(name, uri, head["ContentLength"], head["ETag"].strip('"'))

    def exists(self) -> bool:
        """Return True if the bucket answers. A wrong endpoint fails within seconds."""
        quick = s3fs_client(attempts=2, connect_s=2, read_s=3)
        try:
            with translate_errors(self.root):
                quick.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._base, MaxKeys=1)
        except NotFoundError:
            return False
        return True


class S3Store(S3Reader, Store):
    """Objects of a bucket below a prefix, for writing. Put-if-absent is `If-None-Match: *`."""

    def _key(self, name: str) -> str:
        split_name(name)
        return super()._key(name)

    def walk(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[ObjectInfo]:
        """List as S3Reader does, without keys that no store writes (see `split_name`)."""
        if prefix:
            split_name(prefix)
        return (info for info in super().walk(prefix, left_out) if is_safe_name(info.name))

    def get_unverified(self, name: str, max_bytes: int | None = None) -> bytes:
        """Read an object without comparing its bytes with its ETag."""
        with translate_errors(self.uri(name)):
            return self._fetch(name, None, max_bytes).data

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Send a conditional PUT."""
        if isinstance(data, memoryview):
            data = data.tobytes()  # botocore takes no views; copying 128 MB takes 40 ms
        options = {"mode": "create", "chunksize": _SINGLE_PUT_BYTES}
        path = f"{self._bucket}/{self._key(name)}"
        return self._create(name, lambda: self._fs._pipe_file(path, data, **options), len(data))

    def _create(self, name: str, send: Callable[[], Awaitable[object]], size: int) -> bool:
        """Send a conditional request of `size` bytes; return False if the name is taken (412).

        A concurrent writer makes the store answer 409. The request is then sent again.
        """
        for attempt in range(_PUT_ATTEMPTS):
            if attempt:
                # 1.6 to 3.2 s in all. The random factor spreads attempts of concurrent writers.
                time.sleep(random.uniform(0.5, 1) * 0.05 * 2 ** (attempt - 1))
            try:
                call_with_deadline(self._fs, send, size)
            except (OSError, ClientError, BotoCoreError) as error:
                status = http_status(error)
                if status == 412 or (status is None and isinstance(error, FileExistsError)):
                    return False
                if status != 409:
                    with translate_errors(self.uri(name)):
                        raise
            else:
                return True
        raise StorageError(f"{self.uri(name)}: the store kept answering 409 to a conditional put")

    def new_large_object(self, folder: str) -> NewObject:
        """Begin an object that is kept on this machine's disk and uploaded in pieces."""
        split_name(folder)
        return _OnDisk(self)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        """Upload a file, in pieces if it is large; the condition then applies to the last request.

        A store that ignores the condition there would replace the object: use it only for names
        that contain the hash of the content.
        """
        options = {
            "chunksize": _PIECE_BYTES,
            "max_concurrency": _PIECES_IN_FLIGHT,
            "mode": "create",
        }
        key = f"{self._bucket}/{self._key(name)}"
        return self._create(
            name, lambda: self._fs._put_file(str(path), key, **options), path.stat().st_size
        )

    def delete(self, name: str) -> None:
        with translate_errors(self.uri(name)):
            self._call("delete_object", Key=self._key(name))

    def require_target(self) -> None:
        """Raise RequestError unless the bucket exists and answers. A probe tests writing later."""
        try:
            exists = self.exists()
        except StorageError as error:
            raise RequestError(f"cannot reach {error}{self.hint}") from error
        if not exists:
            raise RequestError(
                f"{self.root}: there is no such bucket. Make it, or choose another target."
            )


class _OnDisk(NewObject):
    def __init__(self, store: S3Store) -> None:
        self._store = store
        with translate_file_errors(tempfile.gettempdir()):
            # `discard` closes it.
            self._file = tempfile.NamedTemporaryFile(prefix="afinar-")  # noqa: SIM115

    def write(self, data: Buffer) -> None:
        with translate_file_errors(self._file.name):
            self._file.write(data)

    def save_as(self, name: str) -> bool:
        with translate_file_errors(self._file.name):
            self._file.flush()
        return self._store.put_file_if_absent(name, Path(self._file.name))

    def discard(self) -> None:
        self._file.close()
