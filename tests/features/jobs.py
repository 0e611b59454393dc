"""Features of a small network on small data sets, computed in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from afinar.config.features import FeaturesConfig
from afinar.features.driver import FeaturesSummary, run_features
from afinar.features.manifest import feature_keys, open_features_store
from afinar.models.networks.custom_networks import small_cnn
from afinar.storage.markers import committed_units
from afinar.units.executor import InlineExecutor

CUTS = "auto,3,6"  # dense, and two convolutions of small_cnn


def put_weights(path: Path, seed: int = 0) -> str:
    """Write a state dict of small_cnn for 64 px, and return its path."""
    torch.manual_seed(seed)
    safetensors.torch.save_file(small_cnn(64).state_dict(), str(path))
    return str(path)


def features_config(dataset: Path | str, weights: str, **options: Any) -> FeaturesConfig:
    values = {"backbone": "small_cnn", "cut": CUTS, "input_size": 64, **options}
    return FeaturesConfig(dataset=str(dataset), weights=weights, **values)


def compute(
    dataset: Path | str, weights: str, executor: Any = None, **options: Any
) -> FeaturesSummary:
    """Compute features, by default in this process."""
    return run_features(features_config(dataset, weights, **options), executor or InlineExecutor())


def done_units(dataset: Path | str) -> set[str]:
    """Return the units that are committed for all keys of a dataset."""
    stores = [open_features_store(str(dataset), key) for key in feature_keys(str(dataset))]
    units = [committed_units(store) for store in stores]
    return set.intersection(*units) if units else set()
