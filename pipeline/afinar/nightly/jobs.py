"""Run jobs in the steps of a night, with the options that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from afinar.config.base import JobConfig
from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelOutcome, run_labelling
from afinar.units.executor import Executor


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Options that all jobs of a night share, and the executor for a job's configuration."""

    options: dict[str, Any]
    executor: Callable[[JobConfig], Executor]

    def label(
        self, source: str, predictions: str, model: str, *, features: bool = False
    ) -> LabelOutcome:
        """Label pictures with a model."""
        config = self.label_config(source, predictions, model, features=features)
        return run_labelling(config, self.executor(config))

    def label_config(
        self, source: str, predictions: str, model: str, *, features: bool = False
    ) -> LabelConfig:
        """Return the configuration of a labelling."""
        return LabelConfig(
            source=source, predictions=predictions, model=model, features=features, **self.options
        )
