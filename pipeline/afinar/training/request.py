"""Checks of a training's request that need no torch."""

from __future__ import annotations

from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.storage.open import open_store


def check_dataset_and_target(config: TrainConfig) -> None:
    """Raise RequestError if there is no dataset or no model can be written.

    The command line calls it before it imports the driver, so that such an error takes no seconds.
    """
    open_dataset(config.dataset)
    open_store(config.models).require_target()
