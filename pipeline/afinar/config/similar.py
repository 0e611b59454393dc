"""Configuration of `afinar similar`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from afinar.config.base import POSITIONAL, UnitJobConfig, require
from afinar.config.features import weights_path

AUTO: Final = "auto"


@dataclass(frozen=True, kw_only=True)
class SimilarConfig(UnitJobConfig):
    """Find near-duplicates, leaks between splits, labels that are probably wrong, and outliers.

    Results are in DATASET/runs/: a page, tables, a form for corrections of labels, and groups.csv,
    with which `afinar ingest --group` keeps duplicates in one split. With a PICTURE, print the
    pictures of the dataset that are nearest to it.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "features": ("backbone", "weights", "cut", "pool", "input_size", "max_gb"),
        **UnitJobConfig.GROUPS,
    }

    dataset: Annotated[str, POSITIONAL]
    """Dataset made by `afinar ingest`."""
    picture: Annotated[str, POSITIONAL] = ""
    """A picture: a file or an s3:// object. Its nearest pictures are printed, nothing is
    written."""
    neighbours: int = 10
    """Number of nearest pictures that are compared with each picture, or printed for PICTURE."""
    backbone: str = AUTO
    """Backbone of the features. `auto`: that of the newest features that the dataset has, resnet18
    if it has none."""
    weights: str = "imagenet"
    """Weights of the backbone, as in `afinar features`."""
    cut: str = AUTO
    """Cut of the backbone. `auto`: that of the features that the dataset has, else the input of the
    classifier."""
    pool: str = AUTO
    """Pooling of the activations. `auto`: that of the features that the dataset has, else
    `average`."""
    input_size: int = 0
    """Side of the network's input in pixels. 0: the usual size of the backbone."""
    max_gb: float = 20.0
    """Refuse to compute features that would take more gigabytes than this."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(
            1 <= self.neighbours <= 1000,
            f"--neighbours {self.neighbours}: give a number from 1 to 1000",
        )
        for flag, value in (
            ("--backbone", self.backbone),
            ("--cut", self.cut),
            ("--pool", self.pool),
        ):
            require(bool(value) and "," not in value, f"{flag} {value!r}: give one, not several")

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        return (*filter(None, (self.dataset, self.picture)), *weights_path(self.weights))
