"""The review queue as a page: the least certain pictures, on which people say what they show."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from afinar.errors import StorageError
from afinar.pictures.decode import decode
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError
from afinar.predictions.review_queue import FORM, TABLE, ReviewQueue
from afinar.report.page import data_uri
from afinar.report.plots import thumbnail
from afinar.report.rendering import template
from afinar.storage.open import open_reader

PICTURES: Final = 200
"""Pictures on a page, the least certain of the queue: about 3 MB."""

_GUESSES: Final = 5
_VIEW: Final = StoredView(
    size=240, fit="pad", background=(238, 241, 244)
)  # the page's own grey: the whole picture
_AT_ONCE: Final = 4  # pictures in memory


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One picture of the page; `image` is None for one that can no longer be read as it was labelled."""

    uri: str
    name: str
    link: str | None
    image: str | None
    label: str
    score: float
    guesses: list[tuple[str, float]]


def review_page(queue: ReviewQueue) -> str:
    """Render the least certain pictures of a queue: one self-contained page that saves what was decided as CSV."""
    rows = queue.table.slice(0, PICTURES).to_pylist()
    return template("review.html.j2").render(
        title="Pictures to review",
        queue=queue,
        candidates=[
            _candidate(row, image) for row, image in zip(rows, _thumbnails(rows), strict=True)
        ],
        table=TABLE,
        form=FORM,
    )


def _candidate(row: dict[str, Any], image: bytes | None) -> Candidate:
    uri: str = row["uri"]
    return Candidate(
        uri=uri,
        name="/".join(uri.rsplit("/", 2)[-2:]),
        link=f"file://{quote(uri)}" if uri.startswith("/") else None,
        image=None if image is None else data_uri(image, "jpeg"),
        label=row["label"],
        score=row["score"],
        guesses=list(zip(row["top_labels"], row["top_scores"], strict=True))[:_GUESSES],
    )


def _thumbnails(rows: list[dict[str, Any]]) -> Iterator[bytes | None]:
    """JPEGs of the pictures as they were labelled, in their order; None for one that changed since or is gone."""
    source = _Pictures()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda row: source.thumbnail(row["uri"], row["etag"]), rows)


class _Pictures:
    """Pictures by their uri, wherever that is. Of a store that does not answer no more is asked."""

    def __init__(self) -> None:
        self._readers: dict[str, PictureReader] = {}
        self._lock = threading.Lock()
        self._gone = threading.Event()

    def thumbnail(self, uri: str, etag: str) -> bytes | None:
        if self._gone.is_set():
            return None
        root, name = _split(uri)
        try:
            return thumbnail(
                decode(self._reader(root).read(PictureRef(name, etag, 0)), _VIEW).image
            )
        except PictureError:
            return None
        except StorageError:
            self._gone.set()
            return None

    def _reader(self, root: str) -> PictureReader:
        with self._lock:
            if root not in self._readers:
                self._readers[root] = PictureReader(open_reader(root))
            return self._readers[root]


def _split(uri: str) -> tuple[str, str]:
    """A store's root and an object's name in it: the bucket, or the root of the file system."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    return "/", uri.removeprefix("/")
