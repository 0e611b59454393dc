"""Features for `similar`: those that the dataset has, or new ones, and those of one picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.config.features import FeaturesConfig
from afinar.config.similar import AUTO, SimilarConfig
from afinar.dataset.reader import Dataset
from afinar.errors import RequestError
from afinar.features.driver import run_features
from afinar.features.network import load_feature_network
from afinar.features.reader import Features, list_all, open_key
from afinar.units.executor import Executor


def cached_features(config: SimilarConfig, dataset: Dataset) -> Features | None:
    """Return the newest features of a dataset that a request means, None if there are none."""
    matching = [
        features
        for features in list_all(dataset.store.root)
        if config.backbone in {AUTO, features.spec.backbone}
        and config.pool in {AUTO, features.spec.pool}
        and config.cut in {AUTO, features.spec.cut}
        and config.input_size in {0, features.spec.input_view.input_size}
        and features.spec.stored_view == dataset.view
    ]
    return max(matching, key=lambda features: features.manifest.created, default=None)


def complete_features(config: SimilarConfig, dataset: Dataset, executor: Executor) -> Features:
    """Return features of all pictures of a dataset; those that are missing are computed."""
    cached = cached_features(config, dataset)
    ids = dataset.index.column("sample_id").unique()
    if cached is not None and cached.has(ids).all():
        return cached
    summary = run_features(_request(config, dataset, cached), executor)
    features = open_key(dataset.store.root, summary.features[0].key)
    assert features is not None, "they have just been published"
    return features


def _request(config: SimilarConfig, dataset: Dataset, cached: Features | None) -> FeaturesConfig:
    """Return the request that completes the cached features, or computes new ones."""
    defaults = FeaturesConfig(dataset=dataset.store.root)
    request = replace(
        defaults,
        address=config.address,
        workers=config.workers,
        unit_timeout_s=config.unit_timeout_s,
        weights=config.weights,
        max_gb=config.max_gb,
        backbone=defaults.backbone if config.backbone == AUTO else config.backbone,
        cut=config.cut,
        pool=defaults.pool if config.pool == AUTO else config.pool,
        input_size=config.input_size,
    )
    if cached is None:
        return request
    spec = cached.spec
    return replace(
        request,
        backbone=spec.backbone,
        cut=spec.cut,
        pool=spec.pool,
        input_size=spec.input_view.input_size,
        precision="bfloat16" if spec.precision == "bfloat16" else "float32",
        stored_as=spec.stored_as,
    )


def picture_features(
    features: Features, weights: str, image: NDArray[np.uint8]
) -> NDArray[np.floating[Any]]:
    """Return the features [width] of one stored view uint8 [size, size, 3].

    Raises RequestError if this machine has other weights than those of the cached features.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_feature_network([features.spec], weights, device)
    (rows,) = network(image[None])
    row: NDArray[np.floating[Any]] = rows[0]
    return row


def require_features(config: SimilarConfig, dataset: Dataset) -> Features:
    """Return cached features. Raises RequestError if there are none: a query computes nothing."""
    cached = cached_features(config, dataset)
    if cached is None:
        raise RequestError(
            f"{dataset.store.root} has no such features: compute them with "
            f"`afinar features {dataset.store.root}`, or run `afinar similar` without a picture"
        )
    return cached
