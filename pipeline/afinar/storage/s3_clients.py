"""The two clients behind a bucket: s3fs for all that is rare, obstore for reading objects.

A GET of 100 KB costs s3fs 2.3 ms of processor time and obstore 0.4, its check included (server on loopback), beside
a decode of 2.5: at one object per picture that is what limits ingest. Both find endpoint, region, profile,
credentials and certificates as boto does. Their patience is bounded, so that a store that is gone ends a job in
less than two minutes and one object that always fails costs less than twenty seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import botocore.session
import obstore
import s3fs
from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from fsspec.asyn import sync
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store as ObstoreS3

from afinar.errors import ChangedError, ForbiddenError, NotFoundError, StorageError
from afinar.storage.etags import EtagVerifier
from afinar.storage.s3_listing import parse_fast

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Credential

CONNECT_S = 3.0
STALL_S = 5.0  # silence in the middle of a reply to a GET
READ_S = 120.0  # a whole GET: 128 MB at 1 MB/s
RETRY_S = 12.0  # no new attempt at a GET after that; with the last attempt's STALL_S below 20
READ_ATTEMPTS = 7  # pauses of 0.1, 0.2, … 3.2 s: a throttling store gets six seconds
WRITE_S = 20.0  # silence after a PUT or while listing
WRITE_ATTEMPTS = 4
DEADLINE_S = 90.0  # a PUT, DELETE or page of a listing with all its attempts, and a second more for each megabyte

_PROCESS = os.getpid()


def s3fs_client(attempts: int, connect_s: float, read_s: float) -> Any:
    """A client with bounded patience: with its defaults s3fs meets a resetting server with 250 requests, 202 s."""
    limits = {
        "retries": {"mode": "standard", "total_max_attempts": attempts},
        "connect_timeout": connect_s,
        "read_timeout": read_s,
        "max_pool_connections": 64,
    }
    client = s3fs.S3FileSystem(
        config_kwargs=limits,
        use_listings_cache=False,
        default_cache_type="none",
        skip_instance_cache=True,
    )
    client.retries = 1  # botocore's are enough: s3fs would multiply them
    return client


def call_with_deadline(fs: Any, call: Callable[[], Awaitable[Any]], size_bytes: int = 0) -> Any:
    """Run an asynchronous call of `fs` here, within its deadline.

    aiohttp has no time limit for a server that stops reading a body, and would wait for ever.
    """

    async def run() -> Any:
        return await asyncio.wait_for(call(), DEADLINE_S + size_bytes / 2**20)

    return sync(fs.loop, run)


def _send_bodies_at_once(fs: Any) -> None:
    """Leave out `Expect: 100-continue`: aiohttp waits for that answer without a time limit, too."""
    fs.s3.meta.events.register("before-send.s3.PutObject", _drop_expect)


def _drop_expect(request: Any, **_: object) -> None:
    request.headers.pop("Expect", None)  # no part of the signature


@dataclass(frozen=True, slots=True)
class Clients:
    """What one process knows of one bucket. `reader` is None where only s3fs can speak to it."""

    fs: Any
    reader: ObstoreS3 | None
    check: EtagVerifier = field(default_factory=EtagVerifier)


def clients(bucket: str) -> Clients:
    """The process's clients for `bucket`; made anew when the environment that they come from differs."""
    environment = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return _clients(bucket, environment, os.getpid())


@lru_cache(maxsize=16)
def _clients(bucket: str, _environment: frozenset[tuple[str, str]], process: int) -> Clients:
    fs = s3fs_client(WRITE_ATTEMPTS, CONNECT_S, WRITE_S)
    with translate_errors(f"s3://{bucket}"):
        fs.connect()
        parse_fast(fs.s3)
        _send_bodies_at_once(fs)
        # obstore's threads do not survive a fork, and a child that calls it waits for ever.
        return Clients(fs, _reader(fs, bucket) if process == _PROCESS else None)


def _reader(fs: Any, bucket: str) -> ObstoreS3 | None:
    if ((fs.s3.meta.config.s3 or {}).get("addressing_style")) == "virtual":
        return None  # the bucket stands in the host name there; rare enough to leave to s3fs
    endpoint, region = _resolve_endpoint(fs, bucket)
    session = botocore.session.get_session()
    client: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=STALL_S),
        "timeout": timedelta(seconds=READ_S),
    }
    if bundle := session.get_config_variable("ca_bundle"):
        client["root_certificate"] = Path(bundle).read_bytes()
    retry: RetryConfig = {
        "max_retries": READ_ATTEMPTS - 1,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=4),
            "base": 2,
        },
    }
    return ObstoreS3(
        bucket,
        endpoint=endpoint,
        region=region,
        virtual_hosted_style_request=False,
        credential_provider=_Credentials(session),
        client_options=client,
        retry_config=retry,
    )


def _resolve_endpoint(fs: Any, bucket: str) -> tuple[str, str]:
    """Endpoint and region to read from. AWS redirects to a bucket's own region, which boto follows and obstore not."""
    endpoint: str = fs.s3.meta.endpoint_url
    region: str = fs.s3.meta.region_name or "us-east-1"
    if not (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com"):
        return endpoint, region
    try:
        home = fs.call_s3("head_bucket", Bucket=bucket).get("BucketRegion")
    except (OSError, ClientError, BotoCoreError):
        return endpoint, region  # not ours to judge: what is wrong will show when it is read
    if not home or home == region:
        return endpoint, region
    return f"https://s3.{home}.amazonaws.com", home


class _Credentials:
    """boto's credentials, asked for again while they last.

    boto renews those that expire ten minutes before they do, so what it hands out holds for ten; obstore asks
    anew five minutes before the end that it is told.
    """

    def __init__(self, session: botocore.session.Session) -> None:
        self._credentials = session.get_credentials()
        if self._credentials is None:
            raise NoCredentialsError

    def __call__(self) -> S3Credential:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=10),
        }


def quoted(etag: str) -> str:
    """An ETag as requests carry it."""
    return etag if '"' in etag else f'"{etag}"'


def read_object(reader: ObstoreS3, key: str, etag: str | None) -> tuple[bytes, str]:
    """One GET with its retries: the body and its ETag."""
    condition: GetOptions = {} if etag is None else {"if_match": quoted(etag)}
    result = obstore.get(reader, key, options=condition)
    return result.bytes().to_bytes(), result.meta["e_tag"] or ""


def look_at_object(reader: ObstoreS3, key: str) -> tuple[int, str]:
    """One HEAD with its retries: size in bytes, and the ETag as listings write it."""
    meta = obstore.head(reader, key)
    return meta["size"], (meta["e_tag"] or "").strip('"')


def http_status(error: BaseException | None) -> int | None:
    """HTTP status behind an s3fs error; servers differ in the XML, not in the status."""
    while error is not None:
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        error = error.__cause__
    return None


_RAISED = (
    OSError,
    ClientError,
    BotoCoreError,
    BaseError,
    ClientPayloadError,
    *s3fs.core.S3_RETRYABLE_ERRORS,
)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn what either client raises into this project's errors about `uri`."""
    try:
        yield
    except (
        OSError,
        ClientError,
        BotoCoreError,
        BaseError,
        ClientPayloadError,
        *s3fs.core.S3_RETRYABLE_ERRORS,
    ) as error:
        status = http_status(error)
        if status == 412 or isinstance(error, PreconditionError):
            raise ChangedError(f"{uri} changed since it was listed") from error
        if status == 404 or isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{uri}: no such object") from error
        said = f"{uri}: {_words(error)}"
        if status in {401, 403} or isinstance(
            error, PermissionError | PermissionDeniedError | UnauthenticatedError
        ):
            raise ForbiddenError(said) from error
        raise StorageError(said) from error


def _words(error: BaseException) -> str:
    """The error in a line: obstore's own go on for forty, with the types of every layer below."""
    line = " ".join(str(error).split("\n\nDebug source")[0].split())
    return f"{type(error).__name__}: {line[:400] or 'no answer in time'}"
