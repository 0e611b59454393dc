"""A bucket as a store, through s3fs.

Endpoint, region and credentials come from the process's own environment (AWS_ENDPOINT_URL, AWS_PROFILE,
instance roles, …), as boto reads them, so that they never pass through arguments, recipes or job metadata.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import IncompleteRead
from typing import Any, cast

import s3fs
from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync

from pipeline.errors import ChangedError, ForbiddenError, NotFoundError, RequestError, StorageError
from pipeline.storage.store import ObjectInfo, Store

_SINGLE_PUT_BYTES = 2**32  # below this one request, so that If-None-Match covers the whole object


def _client(attempts: int, connect_s: float, read_s: float) -> Any:
    """A client with bounded patience: with its defaults s3fs meets a resetting server with 250 requests, 202 s."""
    limits = {
        "retries": {"mode": "standard", "total_max_attempts": attempts},
        "connect_timeout": connect_s,
        "read_timeout": read_s,
    }
    client = s3fs.S3FileSystem(config_kwargs=limits, use_listings_cache=False, default_cache_type="none")
    client.retries = 2  # bodies that break off; whole requests are retried by botocore
    return client


class S3Store(Store):
    """Objects of a bucket below a prefix; put-if-absent is `If-None-Match: *`."""

    @cached_property
    def _fs(self) -> Any:
        return _client(attempts=6, connect_s=5, read_s=30)

    def _key(self, name: str) -> tuple[str, str]:
        bucket, key, _ = self._fs.split_path(self.uri(name))
        return bucket, key

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List recursively; hidden names are left out as in a folder."""
        root = self.root[len("s3://") :]
        with _translated(self.uri(prefix)):
            found = self._fs.find(self.uri(prefix), detail=True)
        for path, info in found.items():
            name = path[len(root) + 1 :]
            if info["type"] != "file" or path.endswith("/"):
                continue
            if any(part.startswith(".") for part in name.split("/")):
                continue
            yield ObjectInfo(name=name, uri=f"s3://{path}", size=info["size"], etag=info["ETag"].strip('"'))

    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read an object with one GET, conditional on `etag` where given."""
        bucket, key = self._key(name)
        condition = {"IfMatch": etag} if etag else {}

        async def read() -> bytes:
            response = await self._fs._call_s3("get_object", Bucket=bucket, Key=key, **condition)
            async with response["Body"] as body:
                return cast("bytes", await body.read())

        with _translated(self.uri(name)):
            return self._retried(read)

    def _retried(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        # A body that breaks off raises outside s3fs's own retry loop, which covers the request only. Timeouts have
        # been waited for often enough by then.
        for _ in range(2):
            try:
                return cast("bytes", sync(self._fs.loop, read))
            except (ClientPayloadError, IncompleteRead):
                continue
        return cast("bytes", sync(self._fs.loop, read))

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        """One conditional PUT. 412 means taken; 409 means a rival is writing, so ask again."""
        for _ in range(5):
            try:
                self._fs.pipe_file(self.uri(name), bytes(data), mode="create", chunksize=_SINGLE_PUT_BYTES)
                return True
            except (OSError, ClientError, BotoCoreError) as error:
                status = _http_status(error)
                if status == 412 or (status is None and isinstance(error, FileExistsError)):
                    return False
                if status != 409:
                    with _translated(self.uri(name)):
                        raise
        raise StorageError(f"{self.uri(name)}: the store kept answering 409 to a conditional put")

    def delete(self, name: str) -> None:
        """Remove an object."""
        bucket, key = self._key(name)
        with _translated(self.uri(name)):
            self._fs.call_s3("delete_object", Bucket=bucket, Key=key)

    def exists(self) -> bool:
        """Whether the bucket answers these credentials: a wrong endpoint is found out in seconds, not retried."""
        bucket, prefix = self._key("")
        quick = _client(attempts=2, connect_s=2, read_s=3)
        quick.retries = 1
        try:
            with _translated(self.root):
                quick.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except NotFoundError:
            return False
        return True

    def require_target(self) -> None:
        """The bucket must exist and answer; that it takes conditional puts is proved by a probe later."""
        try:
            there = self.exists()
        except StorageError as error:
            raise RequestError(f"cannot reach {error}. Check the endpoint and the credentials.") from error
        if not there:
            raise RequestError(f"{self.root}: there is no such bucket. Make it, or choose another target.")


def _http_status(error: BaseException | None) -> int | None:
    """HTTP status behind an s3fs error; servers differ in the XML, not in the status."""
    while error is not None:
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        error = error.__cause__
    return None


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ClientError, BotoCoreError, *s3fs.core.S3_RETRYABLE_ERRORS) as error:
        status = _http_status(error)
        if status == 412:
            raise ChangedError(f"{uri} changed since it was listed") from error
        if status == 404 or isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{uri}: no such object") from error
        if status in {401, 403} or isinstance(error, PermissionError):
            raise ForbiddenError(f"{uri}: {error}") from error
        raise StorageError(f"{uri}: {type(error).__name__}: {error}") from error
