"""Clients of a bucket: obstore for reading objects, s3fs for everything else.

A GET of 100 KB costs s3fs 2.3 ms of processor time and obstore 0.4, the ETag check included (server
on loopback). A decode takes 2.5 ms, so with one object per picture the GET would limit ingest. Both
clients find endpoint, region, profile, credentials and certificates as boto does. Two variables
change what they send: AWS_NO_SIGN_REQUEST, as for the AWS command line, and
AFINAR_S3_REQUESTER_PAYS. Retries are bounded: if a store is lost, a job ends in less than two
minutes, and an object that always fails costs less than twenty seconds.
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
from typing import TYPE_CHECKING, Any, Final, NamedTuple
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

from afinar.config.base import without_user
from afinar.errors import ChangedError, ForbiddenError, NotFoundError, RequestError, StorageError
from afinar.storage.etags import EtagVerifier
from afinar.storage.s3_listing import ListedKey, install_parser

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Credential

CONNECT_S = 3.0
STALL_S = 5.0  # silence within the reply to a GET
READ_S = 120.0  # a whole GET: 128 MB at 1 MB/s
RETRY_S = 12.0  # no new attempt at a GET after this time; with the last attempt's STALL_S below 20
READ_ATTEMPTS = 7  # pauses of 0.1, 0.2, … 3.2 s: a throttling store gets six seconds
WRITE_S = 20.0  # silence after a PUT or while listing
WRITE_ATTEMPTS = 4
# A PUT, DELETE or page of a listing with all its attempts; one second more for each megabyte.
DEADLINE_S = 90.0

_IMPORTED_IN = os.getpid()
_RAISED: Final = (
    OSError,
    ClientError,
    BotoCoreError,
    BaseError,
    ClientPayloadError,
    *s3fs.core.S3_RETRYABLE_ERRORS,
)


def is_anonymous() -> bool:
    """Return True if AWS_NO_SIGN_REQUEST asks for requests without credentials."""
    return _is_set("AWS_NO_SIGN_REQUEST")


def is_requester_pays() -> bool:
    """Return True if AFINAR_S3_REQUESTER_PAYS accepts the costs of requests."""
    return _is_set("AFINAR_S3_REQUESTER_PAYS")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def s3fs_client(attempts: int, connect_s: float, read_s: float) -> Any:
    """Create an s3fs client with bounded retries.

    With its defaults s3fs sends 250 requests in 202 s to a server that resets connections. Raises
    RequestError if the settings of S3 in the environment or in ~/.aws are wrong. Sends nothing.
    """
    limits = {
        "retries": {"mode": "standard", "total_max_attempts": attempts},
        "connect_timeout": connect_s,
        "read_timeout": read_s,
        "max_pool_connections": 64,
    }
    client = s3fs.S3FileSystem(
        anon=is_anonymous(),
        requester_pays=is_requester_pays(),
        config_kwargs=limits,
        use_listings_cache=False,
        default_cache_type="none",
        skip_instance_cache=True,
    )
    client.retries = 1  # botocore retries; s3fs would multiply its attempts
    try:
        client.connect()
        _check_endpoint(client.s3.meta.endpoint_url)
    except (ValueError, BotoCoreError, OSError) as error:
        raise RequestError(
            f"the settings of S3 are wrong ({without_user(_summary(error))}): look at the AWS_… "
            "variables of the environment and at ~/.aws; an endpoint is such as http://HOST:9000"
        ) from error
    return client


def _check_endpoint(endpoint: str) -> None:
    """Raise ValueError for a wrong scheme or port, RequestError for a user in the URL."""
    parts = urlsplit(endpoint)
    _ = parts.port
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"Invalid endpoint: {endpoint}")
    if parts.username is not None:
        raise RequestError(
            f"the S3 endpoint {without_user(endpoint)} is given with a user and a password: leave "
            "them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def call_with_deadline(fs: Any, call: Callable[[], Awaitable[Any]], size_bytes: int = 0) -> Any:
    """Run an asynchronous call of the s3fs client `fs` and wait for it, at most until its deadline.

    aiohttp itself has no time limit for a server that stops reading a request's body.
    """

    async def run() -> Any:
        return await asyncio.wait_for(call(), DEADLINE_S + size_bytes / 2**20)

    return sync(fs.loop, run)


def _disable_expect_header(fs: Any) -> None:
    """Omit `Expect: 100-continue` of a PUT: aiohttp has no time limit for that answer either."""
    fs.s3.meta.events.register("before-send.s3.PutObject", _drop_expect)


def _drop_expect(request: Any, **_: object) -> None:
    request.headers.pop("Expect", None)  # not covered by the signature


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of one bucket in one process. `reader` is None if only s3fs can be used."""

    fs: Any
    reader: ObstoreS3 | None
    verifier: EtagVerifier = field(default_factory=EtagVerifier)


def bucket_clients(bucket: str) -> Clients:
    """Return this process's clients for `bucket`; new ones if their environment has changed."""
    prefixes = ("AWS_", "AFINAR_S3_")
    environment = frozenset(item for item in os.environ.items() if item[0].startswith(prefixes))
    return _clients(bucket, environment, os.getpid())


@lru_cache(maxsize=16)
def _clients(bucket: str, _environment: frozenset[tuple[str, str]], process: int) -> Clients:
    fs = s3fs_client(WRITE_ATTEMPTS, CONNECT_S, WRITE_S)
    with translate_errors(f"s3://{bucket}"):
        install_parser(fs.s3)
        _disable_expect_header(fs)
        # obstore's threads do not survive a fork: a call in the child would never return.
        return Clients(fs, _create_reader(fs, bucket) if process == _IMPORTED_IN else None)


def _create_reader(fs: Any, bucket: str) -> ObstoreS3 | None:
    if ((fs.s3.meta.config.s3 or {}).get("addressing_style")) == "virtual":
        return None  # the bucket is a part of the host name: rare, so s3fs reads there

    endpoint = _resolve_endpoint(fs, bucket)
    session = botocore.session.get_session()
    client: ClientConfig = {
        "allow_http": endpoint.url.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=STALL_S),
        "timeout": timedelta(seconds=READ_S),
    }
    if bundle := session.get_config_variable("ca_bundle"):
        try:
            client["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise RequestError(
                f"AWS_CA_BUNDLE: the certificates {bundle} cannot be read ({error.strerror})"
            ) from error

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
        endpoint=endpoint.url,
        region=endpoint.region,
        virtual_hosted_style_request=False,
        skip_signature=is_anonymous(),
        request_payer=is_requester_pays(),
        credential_provider=None if is_anonymous() else _Credentials(session),
        client_options=client,
        retry_config=retry,
    )


class _Endpoint(NamedTuple):
    url: str
    region: str


def _resolve_endpoint(fs: Any, bucket: str) -> _Endpoint:
    """Return the endpoint to read from.

    AWS redirects requests to the region of a bucket. boto follows the redirect and obstore does
    not.
    """
    configured = _Endpoint(fs.s3.meta.endpoint_url, fs.s3.meta.region_name or "us-east-1")
    if not (urlsplit(configured.url).hostname or "").endswith(".amazonaws.com"):
        return configured
    try:
        region = fs.call_s3("head_bucket", Bucket=bucket).get("BucketRegion")
    except (OSError, ClientError, BotoCoreError):
        return configured  # what is wrong is reported by the first read
    if not region or region == configured.region:
        return configured
    return _Endpoint(f"https://s3.{region}.amazonaws.com", region)


class _Credentials:
    """Credentials of boto for obstore, valid for at least ten minutes.

    boto renews temporary credentials ten minutes before they expire, so the ones it returns are
    valid for that long. obstore asks again five minutes before the time that it is given here.
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


def quote_etag(etag: str) -> str:
    """Return an ETag as requests carry it, in quotes."""
    return etag if '"' in etag else f'"{etag}"'


class Body(NamedTuple):
    """The body of an object, and the ETag that came with it."""

    data: bytes
    etag: str


def read_object(
    reader: ObstoreS3, key: str, etag: str | None, check_size: Callable[[int], None]
) -> Body:
    """Send one GET with its retries, conditional on `etag` if it is given.

    `check_size` is called with the number of bytes before they are read.
    """
    condition: GetOptions = {} if etag is None else {"if_match": quote_etag(etag)}
    result = obstore.get(reader, key, options=condition)
    check_size(result.meta["size"])
    return Body(result.bytes().to_bytes(), result.meta["e_tag"] or "")


def head_object(reader: ObstoreS3, key: str) -> ListedKey:
    """Send one HEAD with its retries; return what a listing contains about the object."""
    meta = obstore.head(reader, key)
    return ListedKey(key, meta["size"], (meta["e_tag"] or "").strip('"'))


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an s3fs error. Servers differ in the XML, not in the status."""
    while error is not None:
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        error = error.__cause__
    return None


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise the errors of both clients as StorageError, with `uri` in the message."""
    try:
        yield
    except _RAISED as error:
        status = http_status(error)
        if status == 412 or isinstance(error, PreconditionError):
            raise ChangedError(f"{uri} changed since it was listed") from error
        if status == 404 or isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{uri}: no such object") from error

        message = f"{uri}: {_summary(error)}"
        forbidden = (PermissionError, PermissionDeniedError, UnauthenticatedError)
        if status in {401, 403} or isinstance(error, forbidden):
            raise ForbiddenError(message) from error
        raise StorageError(message) from error


def _summary(error: BaseException) -> str:
    """Return the error in one line. The text of an obstore error has forty."""
    line = " ".join(str(error).split("\n\nDebug source")[0].split())
    return f"{type(error).__name__}: {line[:400] or 'no answer in time'}"
