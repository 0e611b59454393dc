"""Public and requester-pays buckets, and keys with empty folder names.

SeaweedFS knows neither kind of bucket, so a read-only server on loopback stands in for S3. It
answers 403 to a request that the bucket's kind does not permit.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from afinar.errors import ForbiddenError, RequestError
from afinar.sources.annotations import annotate
from afinar.sources.listing import list_pictures
from afinar.storage.open import open_reader

KEYS = ("a/cats/1.jpg", "a//dogs/2.jpg", "/a/rust/3.jpg")


class ReadOnlyS3(BaseHTTPRequestHandler):
    """Three buckets with the same keys; the content of an object is its key."""

    refusals: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path)[1:].partition("/")
        is_signed = "Authorization" in self.headers
        pays = self.headers.get("x-amz-request-payer") == "requester"
        permitted = {"public": not is_signed, "payer": is_signed and pays, "own": is_signed}
        if not permitted[bucket]:
            self.refusals.append(self.path)
            self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif key:
            self.reply(200, key.encode())
        else:
            self.reply(200, listing(parse_qs(url.query)).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 12:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


def listing(query: dict[str, list[str]]) -> str:
    """Return one page with all keys below a prefix, or one level of them."""
    (prefix,), delimiter = query.get("prefix", [""]), query.get("delimiter")
    rows: dict[str, None] = {}
    for key in sorted(KEYS):
        if not key.startswith(prefix):
            continue
        head, slash, _ = key[len(prefix) :].partition("/")
        if delimiter and slash:
            folder = quote(f"{prefix}{head}/")
            rows[f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"] = None
        else:
            etag = hashlib.md5(key.encode()).hexdigest()
            rows[
                f"<Contents><Key>{escape(quote(key))}</Key><ETag>{etag}</ETag>"
                f"<Size>{len(key)}</Size></Contents>"
            ] = None
    return f"<ListBucketResult><EncodingType>url</EncodingType>{''.join(rows)}</ListBucketResult>"


@pytest.fixture
def read_only_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve the buckets; return the paths of refused requests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ReadOnlyS3)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "K",
        "AWS_SECRET_ACCESS_KEY": "S",
    }.items():
        monkeypatch.setenv(name, value)
    ReadOnlyS3.refusals.clear()
    try:
        yield ReadOnlyS3.refusals
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("bucket", "variable"),
    [("public", "AWS_NO_SIGN_REQUEST"), ("payer", "AFINAR_S3_REQUESTER_PAYS")],
)
def test_bucket_of_a_kind_is_listed_and_read_by_both_clients(
    bucket: str, variable: str, read_only_s3: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match=f"{variable}=true"):
        list_pictures(f"s3://{bucket}", None)
    with pytest.raises(ForbiddenError):
        open_reader(f"s3://{bucket}").get("a/cats/1.jpg")

    monkeypatch.setenv(variable, "true")
    if bucket == "public":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    read_only_s3.clear()
    reader = open_reader(f"s3://{bucket}")
    infos = sorted(reader.walk())
    assert [info.name for info in infos] == sorted(KEYS)
    # obstore reads the first kind of key, s3fs those with empty folder names.
    assert [reader.get(info.name, info.etag).decode() for info in infos] == sorted(KEYS)
    assert [reader.stat(info.name).etag for info in infos] == [info.etag for info in infos]
    assert read_only_s3 == []


def test_folders_without_a_name_are_listed_and_passed_over_for_labels(
    read_only_s3: list[str],
) -> None:
    labels: dict[str, str] = {}
    for source in ("s3://own/a", "s3://own//a"):
        annotated = list_pictures(source, None)
        annotate(annotated, source, labels="folder", split_by_folder=False, group="")
        rows = annotated.listing.select(["uri", "label"]).to_pylist()
        labels |= {row["uri"]: row["label"] for row in rows}
    assert labels == {
        "s3://own/a/cats/1.jpg": "cats",
        "s3://own/a//dogs/2.jpg": "dogs",
        "s3://own//a/rust/3.jpg": "rust",
    }
