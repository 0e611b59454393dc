"""Run jobs in the steps of a night, with the options that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from afinar.config.base import ClusterJobConfig
from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelOutcome, run_labelling
from afinar.predictions.manifest import get_parts, read_manifest
from afinar.storage.open import normalize_uri, open_store
from afinar.units.executor import Executor


@dataclass(kw_only=True)
class Jobs:
    """Options that all jobs of a night share, and the executor for a job's configuration.

    `written` counts the bytes of predictions that they have published.
    """

    options: dict[str, Any]
    executor: Callable[[ClusterJobConfig], Executor]
    written: int = 0

    def label(
        self,
        source: str,
        predictions: str,
        model: str,
        *,
        features: bool = False,
    ) -> LabelOutcome:
        """Label pictures with a model."""
        return self.run_label(self.label_config(source, predictions, model, features=features))

    def run_label(self, config: LabelConfig) -> LabelOutcome:
        """Label pictures, and count the bytes of what is published."""
        before = _part_bytes(config.predictions)
        outcome = run_labelling(config, self.executor(config))
        after = _part_bytes(config.predictions)
        self.written += sum(size for path, size in after.items() if path not in before)
        return outcome

    def label_config(
        self, source: str, predictions: str, model: str, *, features: bool = False
    ) -> LabelConfig:
        """Return the configuration of a labelling."""
        return LabelConfig(
            source=source, predictions=predictions, model=model, features=features, **self.options
        )


def _part_bytes(predictions: str) -> dict[str, int]:
    """Return the sizes of the objects of a prediction folder's current partition, by path."""
    store = open_store(normalize_uri(predictions))
    manifest = read_manifest(store)
    if manifest.current is None:
        return {}
    parts = get_parts(store, manifest.partitions[manifest.current])
    return {part.ref.path: part.ref.bytes for part in parts}
