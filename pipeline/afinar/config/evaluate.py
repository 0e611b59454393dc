"""Configuration of `afinar evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal

from afinar.config.base import POSITIONAL, ClusterJobConfig, require
from afinar.errors import RequestError

EvaluatedSplit = Literal["test", "validation", "train", "all"]

CORRUPTIONS: Final = ("blur", "jpeg", "brightness", "contrast", "rotation")
"""Corruptions whose effect on accuracy is measured, each at three strengths."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ClusterJobConfig):
    """Evaluate a published model on a dataset, also on pictures that are blurred, dark or rotated.

    The page and the tables are in DATASET/runs/.
    """

    dataset: Annotated[str, POSITIONAL]
    """Dataset made by `afinar ingest`. Its labels are compared with the model's predictions."""
    model: str
    """MODELS, whose champion is used, MODELS@latest, or MODELS@VERSION (a number, or an id)."""
    split: EvaluatedSplit = "test"
    """Split to evaluate. `all`: every labelled picture."""
    corruptions: str = ",".join(CORRUPTIONS)
    """Corruptions to measure, comma-separated, or `none`."""
    corrupted: int = 2000
    """Number of pictures that are corrupted, drawn by their content. 0: all of the split."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(bool(self.model), "name the --model: MODELS, whose champion is used, or MODELS@N")
        require(self.corrupted >= 0, f"--corrupted {self.corrupted}: give a count, or 0 for all")
        _ = self.corruption_names  # reading the property parses the string

    @cached_property
    def corruption_names(self) -> tuple[str, ...]:
        """Names of the corruptions, none for `none`."""
        if self.corruptions.strip() == "none":
            return ()
        names = tuple(dict.fromkeys(part.strip() for part in self.corruptions.split(",")))
        unknown = sorted(set(names) - set(CORRUPTIONS))
        if unknown:
            raise RequestError(
                f"--corruptions {self.corruptions!r}: choose from {', '.join(CORRUPTIONS)}, or "
                "give `none`"
            )
        return names

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        return (self.dataset, self.model)
