"""Samples of the dataset versions that nights compare: which are new, and what is trained on."""

from __future__ import annotations

from typing import Final

from afinar.config.base import as_dict, fingerprint
from afinar.config.train import NON_DETERMINING_FIELDS, TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import RequestError
from afinar.models.registry.versions import ModelVersion
from afinar.storage.open import normalize_uri

# The names of excluded pictures are in the list of samples.
_NO_DATA: Final = NON_DETERMINING_FIELDS - {"repeats", "preset"} | {"exclude"}


def new_shard_bytes(dataset: str, version: int) -> int:
    """Return the bytes of the shards that a version has and the one before has not."""
    uri = normalize_uri(dataset)
    current = open_dataset(uri, version=version)
    try:
        before = {ref.path for ref in open_dataset(uri, version=version - 1).objects_of("shard")}
    except RequestError:  # the first version, or a deleted one
        before = set()
    return sum(ref.bytes for ref in current.objects_of("shard") if ref.path not in before)


def training_data(config: TrainConfig, version: int, held: set[str]) -> str:
    """Return a hash of all that a training is a function of: labelled samples and options."""
    index = open_dataset(normalize_uri(config.dataset), version=version).index
    rows = index.select(["uri", "sample_id", "label", "split"]).to_pylist()
    samples = sorted(
        [row["sample_id"], row["label"], row["split"]]
        for row in rows
        if row["label"] and row["split"] and row["uri"] not in held
    )
    options = {name: value for name, value in as_dict(config).items() if name not in _NO_DATA}
    return fingerprint([samples, options])


def new_pictures(candidate: ModelVersion, champion: ModelVersion) -> int | None:
    """Return the number of training pictures of the candidate that the champion had not.

    None if the dataset version of one of them was deleted.
    """
    ids = []
    for version in (candidate, champion):
        trained_on = version.lineage.get("dataset") or {}
        try:
            index = open_dataset(trained_on["uri"], version=trained_on["version"]).index
        except (KeyError, RequestError):
            return None
        rows = index.select(["sample_id", "split", "label"]).to_pylist()
        ids.append({row["sample_id"] for row in rows if row["split"] == "train" and row["label"]})
    return len(ids[0] - ids[1])
