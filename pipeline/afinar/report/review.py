"""Page of the review queue: the least certain pictures, for people to label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from afinar.pictures.preprocessing import StoredView
from afinar.predictions.review_queue import FORM, TABLE, ReviewQueue
from afinar.report.pieces import data_uri, read_thumbnails
from afinar.report.rendering import file_link, template

PICTURES: Final = 200
"""Pictures on a page, the least certain of the queue: about 3 MB."""

_GUESSES: Final = 5
# The whole picture, padded with a grey for light and dark pages.
_VIEW: Final = StoredView(size=240, fit="pad", background=(127, 127, 127))


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
        _candidate(row, image)
        for row, image in zip(rows, read_thumbnails(rows, _VIEW), strict=True)
    ]
    model = queue.model.rpartition("@")[2]
    return template("review.html.j2").render(
        title="Pictures to review",
        queue=queue,
        candidates=candidates,
        table=TABLE,
        form=FORM,
        saved=f"{Path(FORM).stem}-{model}.csv",  # so that downloads of several reviews differ
    )


def _candidate(row: dict[str, Any], image: bytes | None) -> Candidate:
    uri: str = row["uri"]
    return Candidate(
        uri=uri,
        name="/".join(uri.rsplit("/", 2)[-2:]),
        link=file_link(uri) or None,
        image=None if image is None else data_uri(image, "jpeg"),
        label=row["label"],
        score=row["score"],
        guesses=list(zip(row["top_labels"], row["top_scores"], strict=True))[:_GUESSES],
    )
