"""The pictures of a dataset that are nearest to one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.analysis.features import picture_features, require_features
from afinar.config.similar import SimilarConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import NotFoundError, RequestError
from afinar.evaluation.neighbours import nearest_to
from afinar.features.reader import Features
from afinar.pictures.decode import decode
from afinar.pictures.profiles import require_colour_management
from afinar.pictures.rejects import PictureError
from afinar.storage.objects import sha256
from afinar.storage.open import normalize_uri, read_uri


def find_nearest(config: SimilarConfig) -> dict[str, Any]:
    """Return `{"picture", "dataset", "features", "nearest": [{"uri", "label", …}]}`.

    A picture that is in the dataset is found at distance 0; it goes through no network. Raises
    RequestError if there is no such picture or the dataset has no features, PictureError if the
    picture cannot be decoded.
    """
    require_colour_management()
    uri = normalize_uri(config.picture)
    try:
        data = read_uri(uri)
    except NotFoundError as error:
        raise RequestError(f"there is no picture {uri}: name a file or an s3:// object") from error
    dataset = open_dataset(normalize_uri(config.dataset))
    features = require_features(config, dataset)
    try:
        image = decode(data, dataset.view).image
    except PictureError as error:
        raise PictureError(error.reason, f"{uri}: {error.detail}") from error

    table = _stored_rows(features, dataset)
    sample_id = sha256(data)
    place = pc.index(table.sample_ids, sample_id).as_py()
    query = (
        features.read([sample_id])[0]
        if place >= 0
        else picture_features(features, config.weights, image)
    )
    found = nearest_to(query, table.parts, config.neighbours, table.is_wanted)

    found_ids = table.sample_ids.take(pa.array(found.rows))
    rows = pc.index_in(found_ids, dataset.index.column("sample_id"))
    pictures = dataset.index.take(rows).select(["uri", "label", "split"]).to_pylist()
    return {
        "picture": uri,
        "dataset": dataset.store.root,
        "features": {
            "key": features.key,
            "backbone": features.spec.backbone,
            "cut": features.spec.cut,
            "pool": features.spec.pool,
        },
        "nearest": [
            {**picture, "distance": round(float(distance), 4)}
            for picture, distance in zip(pictures, found.distances, strict=True)
        ],
    }


@dataclass(frozen=True)
class _StoredRows:
    """Features as their shards have them; `sample_ids` [n] are of their rows, one after another.

    `is_wanted` bool [n] is False for pictures that the dataset does not have any more, and for
    repeated rows.
    """

    parts: list[NDArray[np.floating[Any]]]
    sample_ids: pa.Array
    is_wanted: NDArray[np.bool_]


def _stored_rows(features: Features, dataset: Dataset) -> _StoredRows:
    names, parts = [], []
    for name, values in features.iter_shards():
        names.append(name)
        parts.append(values)
    starts = np.cumsum([0, *map(len, parts)])

    # The index is sorted by content, not by place.
    index = features.index
    numbers = pc.index_in(index.column("shard"), pa.array(names, pa.string())).to_numpy()
    places = starts[numbers] + index.column("row").to_numpy()
    rows = np.full(starts[-1], -1)
    rows[places] = np.arange(len(index))
    is_first = np.zeros(len(index), dtype=np.bool_)
    ids = index.column("sample_id")
    is_first[np.unique(pc.index_in(ids, ids.unique()).to_numpy(), return_index=True)[1]] = True
    is_known = pc.is_in(ids, dataset.index.column("sample_id")).to_numpy(zero_copy_only=False)
    is_good = is_first & is_known.astype(np.bool_)

    sample_ids = ids.take(pa.array(rows, pa.int64(), mask=rows < 0)).combine_chunks()
    return _StoredRows(parts, sample_ids, np.where(rows >= 0, is_good[rows], False))
