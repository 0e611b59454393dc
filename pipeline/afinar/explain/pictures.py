"""Pictures to explain: files, objects of a store, folders of them, or rows of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.config.base import parse_extensions
from afinar.config.formats import DEFAULT_EXTENSIONS
from afinar.dataset.reader import Dataset, open_current, open_dataset
from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.pictures.decode import decode
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.jpeg import decode_stored, encode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError
from afinar.sources.listing import list_pictures
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import normalize_uri, open_reader, open_store, split_uri

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """One picture: a listed file, or row `row` of version `version` of a dataset.

    `key` identifies its content as far as that is known before it is read.
    """

    uri: str
    key: str
    etag: str = ""
    dataset: str = ""
    version: int = 0
    row: int = 0
    label: str | None = None

    def load(self, view: StoredView) -> Pixels:
        """Return the stored view, uint8 [size, size, 3].

        Raises PictureError for a file that cannot be used.
        """
        if self.dataset:
            dataset = _open(self.dataset, self.version)
            (image,) = dataset.read([self.row])
            # As in labelling: a model of a `jpeg` store has learned from compressed pixels.
            if view.store == "jpeg" and dataset.view.store == "pixels":
                image = decode_stored(encode_stored(image))
            return np.array(image)
        reader = PictureReader(MultiStore(remote=self.uri.startswith("s3://")))
        try:
            return decode(reader.read(PictureRef(self.uri, self.etag, 0)), view).image
        except PictureError as error:
            raise PictureError(error.reason, f"{self.uri}: {error.detail}") from error


@lru_cache(maxsize=2)
def _open(uri: str, version: int) -> Dataset:
    return open_dataset(uri, version=version)


def find_dataset(locations: Sequence[str]) -> Dataset | None:
    """Return the dataset that is the only location, None if there are pictures.

    Raises RequestError for a dataset among other locations.
    """
    opened = [_dataset_at(normalize_uri(location)) for location in locations]
    if len(opened) > 1 and any(opened):
        raise RequestError("give pictures, or one dataset alone")
    return opened[0]


def _dataset_at(uri: str) -> Dataset | None:
    if not uri.startswith("s3://") and not Path(uri).is_dir():
        return None
    store = open_store(uri)
    try:
        return open_current(store) if store.exists() else None
    except StorageError:
        return None


def list_inputs(locations: Sequence[str]) -> list[PictureInput]:
    """Return the pictures of files, objects and folders, each once.

    Raises RequestError for a location without pictures.
    """
    found = {entry.uri: entry for location in locations for entry in _inputs(location)}
    return list(found.values())


def _inputs(location: str) -> Iterator[PictureInput]:
    uri = normalize_uri(location)
    root, name = split_uri(uri)
    if name and (uri.startswith("s3://") or not Path(uri).is_dir()):
        try:
            info = open_reader(root).stat(name)
        except NotFoundError:
            if not uri.startswith("s3://"):
                raise RequestError(f"there is no picture {uri}") from None
        except StorageError as error:
            raise RequestError(f"cannot read {uri}: {error}") from error
        else:
            yield PictureInput(uri=uri, key=f"{uri} {info.etag}", etag=info.etag)
            return
    listing = list_pictures(uri, parse_extensions(DEFAULT_EXTENSIONS)).listing
    for row in listing.select(["uri", "etag"]).to_pylist():
        key = f"{row['uri']} {row['etag']}"
        yield PictureInput(uri=row["uri"], key=key, etag=row["etag"])


def dataset_inputs(dataset: Dataset, rows: NDArray[np.int64] | Sequence[int]) -> list[PictureInput]:
    """Return rows of a dataset's index as pictures."""
    table = dataset.index.take(pa.array(rows, pa.int64()))
    columns = [table.column(name).to_pylist() for name in ("uri", "sample_id", "label")]
    return [
        PictureInput(
            uri=uri,
            key=f"{sample_id} {label}",
            dataset=dataset.store.root,
            version=dataset.manifest.version,
            row=int(row),
            label=label,
        )
        for row, uri, sample_id, label in zip(rows, *columns, strict=True)
    ]


def sample_rows(dataset: Dataset, split: str, label: str, limit: int) -> NDArray[np.int64]:
    """Return at most `limit` rows of a split ("" for all) with a label ("" for any).

    Each content is taken once, those with the smallest content hashes: as good as random, and the
    same in each run.
    """
    index = dataset.index
    ids = index.column("sample_id").to_numpy(zero_copy_only=False).astype(str)
    is_wanted = np.ones(len(ids), dtype=np.bool_)
    for name, value in (("split", split), ("label", label)):
        if value:
            is_wanted &= index.column(name).to_numpy(zero_copy_only=False) == value
    _, first = np.unique(ids, return_index=True)
    rows = np.sort(first[is_wanted[first]])
    order: NDArray[np.int64] = rows[np.argsort(ids[rows], kind="stable")[:limit]]
    return order
