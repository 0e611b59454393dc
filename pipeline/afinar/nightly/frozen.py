"""Frozen test sets: draw them from a dataset."""

from __future__ import annotations

from afinar.config.nightly import NightlyConfig
from afinar.dataset.reader import open_dataset
from afinar.nightly.evidence import is_for_score
from afinar.nightly.lock import hold_lock
from afinar.nightly.records import FrozenTest, freeze_test
from afinar.storage.open import normalize_uri, open_store


def renew_test(config: NightlyConfig) -> FrozenTest:
    """Draw a new frozen test set from the current dataset and return its record."""
    store = open_store(normalize_uri(config.nights))
    with hold_lock(store, 60 * config.lease_minutes):
        return freeze_test(store, gate_ids(config.dataset), "renewed on request")


def gate_ids(dataset: str) -> list[str]:
    """Return the ids of the labelled test samples that gates may use."""
    table = open_dataset(normalize_uri(dataset)).index.select(["sample_id", "split", "label"])
    return [
        row["sample_id"]
        for row in table.to_pylist()
        if row["split"] == "test" and row["label"] and not is_for_score(row["sample_id"])
    ]
