"""Checks of a training's request that need no torch."""

from __future__ import annotations

from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.storage.contents import require_target_for
from afinar.storage.open import normalize_uri, open_store


def check_dataset_and_target(config: TrainConfig) -> None:
    """Raise RequestError if there is no dataset or no model can be written.

    The command line calls it before it imports the driver, so that such an error takes no seconds.
    """
    open_dataset(config.dataset)
    models = open_store(config.models)
    models.require_target()
    require_target_for(models, "models", normalize_uri(config.dataset))
