"""Page of the review queue: the least certain pictures, for people to label."""

from __future__ import annotations

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
from afinar.report.pieces import data_uri
from afinar.report.plots import thumbnail
from afinar.report.rendering import template
from afinar.storage.multi_store import MultiStore

PICTURES: Final = 200
"""Pictures on a page, the least certain of the queue: about 3 MB."""

_GUESSES: Final = 5
_READS: Final = 4  # pictures in memory at once
# The whole picture, padded with the grey of the page.
_VIEW: Final = StoredView(size=240, fit="pad", background=(238, 241, 244))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One picture of the page; `image` is None if the labelled picture cannot be read any more."""

    uri: str
    name: str
    link: str | None
    image: str | None
    label: str
    score: float
    guesses: list[tuple[str, float]]


def review_page(queue: ReviewQueue) -> str:
    """Return a page with the least certain pictures of a queue; it saves people's labels as CSV."""
    rows = queue.table.slice(0, PICTURES).to_pylist()
    candidates = [
        _candidate(row, image) for row, image in zip(rows, _thumbnails(rows), strict=True)
    ]
    return template("review.html.j2").render(
        title="Pictures to review", queue=queue, candidates=candidates, table=TABLE, form=FORM
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
    """Yield each picture as a JPEG, None if it was changed or deleted after it was labelled.

    The page is worth having without its pictures: if the store does not answer, the rest are None.
    """
    remote = any(row["uri"].startswith("s3://") for row in rows)
    reader = PictureReader(MultiStore(remote=remote))
    is_store_lost = False

    def read(row: dict[str, Any]) -> bytes | None:
        nonlocal is_store_lost
        if is_store_lost:
            return None

        try:
            data = reader.read(PictureRef(row["uri"], row["etag"], 0))
            return thumbnail(decode(data, _VIEW).image)
        except PictureError:
            return None
        except StorageError:
            is_store_lost = True
            return None

    with ThreadPoolExecutor(_READS) as pool:
        yield from pool.map(read, rows)
