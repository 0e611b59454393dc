"""The pictures of a dataset that are nearest to one picture."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from afinar.analysis.features import picture_features, require_features
from afinar.config.similar import SimilarConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import NotFoundError, RequestError
from afinar.evaluation.neighbours import nearest_to
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

    ids = dataset.index.column("sample_id")
    ids = ids.filter(pa.array(features.has(ids))).unique()
    values = features.read(ids)
    sample_id = sha256(data)
    place = pc.index(ids, sample_id).as_py()
    query = values[place] if place >= 0 else picture_features(features, config.weights, image)
    found = nearest_to(query, values, config.neighbours)

    rows = pc.index_in(ids.take(pa.array(found.rows)), dataset.index.column("sample_id"))
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
