"""Tiles of pictures on the pages: thumbnails, bounded in size and number."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from PIL import Image, ImageOps

from afinar.dataset.reader import Dataset
from afinar.errors import StorageError
from afinar.pictures.decode import decode
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError
from afinar.pictures.resize import Pixels
from afinar.report.rendering import file_link
from afinar.storage.multi_store import MultiStore

PICTURES: Final = 200
"""Thumbnails of a gallery: about 1.5 MB of a page."""
THUMBNAIL_PX: Final = 160
LARGE_PX: Final = 320

_READS: Final = 4  # pictures in memory at once
_BLOCK: Final = 16


@dataclass(frozen=True)
class Tile:
    """One picture: its URI as title, and a caption. `image` is a data URI, empty if it is gone.

    `alt` describes the picture to those who do not see it: by default the caption.
    """

    image: str
    title: str
    caption: str
    alt: str = ""

    @property
    def link(self) -> str:
        """Address of the picture, if it is a local file."""
        return file_link(self.title)


def data_uri(data: bytes, image_format: str) -> str:
    """Return the bytes of an image ("png" or "jpeg") as a URI that a page can contain."""
    return f"data:image/{image_format};base64,{base64.b64encode(data).decode()}"


def thumbnail(image: Pixels, size_px: int = THUMBNAIL_PX, *, stretch: bool = False) -> bytes:
    """Return a picture uint8 [height, width, 3] as a JPEG with sides of at most `size_px`.

    With `stretch`, the middle 98 % of its brightness spans black to white.
    """
    picture = Image.fromarray(image)
    if stretch:
        picture = ImageOps.autocontrast(picture, cutoff=1, preserve_tone=True)
    picture.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
    sink = io.BytesIO()
    picture.save(sink, format="JPEG", quality=82)
    return sink.getvalue()


def tiles(
    dataset: Dataset,
    rows: Sequence[int],
    captions: Sequence[str],
    size_px: int = THUMBNAIL_PX,
    *,
    alts: Sequence[str] = (),
    stretch: bool = False,
) -> list[Tile]:
    """Return a tile for each of `rows` (positions in the index), titled with its uri."""
    uris = dataset.index.column("uri").take(pa.array(rows, pa.int64())).to_pylist()
    images = [
        data_uri(thumbnail(image, size_px, stretch=stretch), "jpeg")
        for start in range(0, len(rows), _BLOCK)
        for image in dataset.read(rows[start : start + _BLOCK])
    ]
    texts = zip(images, uris, captions, alts or captions, strict=True)
    return [Tile(image, uri, caption, alt) for image, uri, caption, alt in texts]


def read_thumbnails(rows: list[dict[str, Any]], view: StoredView) -> Iterator[bytes | None]:
    """Yield the picture of each row (uri, etag) as a JPEG, None if it was changed or deleted.

    A page is worth having without its pictures: if the store does not answer, the rest are None.
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
            return thumbnail(decode(data, view).image, view.size)
        except PictureError:
            return None
        except StorageError:
            is_store_lost = True
            return None

    with ThreadPoolExecutor(_READS) as pool:
        yield from pool.map(read, rows)


def file_tiles(
    rows: list[dict[str, Any]], captions: Sequence[str], alts: Sequence[str]
) -> list[Tile]:
    """Return a tile of the picture of each row (uri, etag), read whole from its source."""
    view = StoredView(size=THUMBNAIL_PX, fit="pad", background=(127, 127, 127))
    images = read_thumbnails(rows, view)
    return [
        Tile(data_uri(image, "jpeg") if image else "", row["uri"], caption, alt)
        for row, caption, alt, image in zip(rows, captions, alts, images, strict=True)
    ]
