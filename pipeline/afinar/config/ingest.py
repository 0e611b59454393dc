"""Configuration of `afinar ingest`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Final, Literal, NamedTuple

from afinar.config.base import (
    POSITIONAL,
    UnitJobConfig,
    parse_extensions,
    require,
)
from afinar.config.formats import DEFAULT_EXTENSIONS
from afinar.errors import RequestError

FitMode = Literal["crop", "pad", "squash"]
StoreKind = Literal["pixels", "jpeg"]
FitChoice = Literal["auto", "crop", "pad", "squash"]
StoreChoice = Literal["auto", "pixels", "jpeg"]

_LABELS_WITHOUT_TABLE: Final = ("folder", "none")


class SplitShares(NamedTuple):
    """Shares of the samples in each split; they sum to 1."""

    train: float
    validation: float
    test: float


@dataclass(frozen=True, kw_only=True)
class IngestConfig(UnitJobConfig):
    """Convert a folder or an s3:// prefix of pictures to an Arrow dataset, or update it."""

    source: Annotated[str, POSITIONAL] = field(kw_only=False)
    """Root of the pictures: a folder or s3://BUCKET/PREFIX. Or a list of pictures: a CSV or Parquet
    FILE with the column uri, or a .txt FILE with one URI in each line (complete, or relative to the
    folder of FILE)."""
    dataset: Annotated[str, POSITIONAL] = field(kw_only=False)
    """Dataset to write or update: a folder or s3://BUCKET/PREFIX."""
    labels: str = "folder"
    """`folder`: the first folder below SOURCE is the label; for a list it is the list's column
    label, or without one the folder that a picture lies in. `none`: pictures have no label. Or a
    CSV or Parquet FILE with the columns uri (complete, or relative to SOURCE) and label."""
    add_labels: str = ""
    """CSV or Parquet FILE with the columns uri and label, such as corrections.csv of a review.
    Pictures of SOURCE get these labels; pictures elsewhere (complete URIs, such as of an archive)
    are read and added. Rows without a label are skipped. Later ingests of SOURCE keep them."""
    extensions: str = DEFAULT_EXTENSIONS
    """File name endings to read, comma-separated, or `all`. Default: those of every format that is
    decoded. Files with other endings are left out and counted."""
    split: str = "0.7,0.15,0.15"
    """Shares of train, validation and test. The split of a picture is a function of its content (or
    group) and of --seed; new pictures of a small class are moved so that each split has some. A
    column split of the table of labels or of a list goes before. Or `folder`: the first folders
    below SOURCE are train, validation (valid, val, dev) and test; validation and test may be
    missing."""
    group: str = ""
    """CSV or Parquet FILE with the columns uri and group (a patient, a burst, a page). Pictures of
    one group are always in the same split."""
    seed: int = 0
    """Seed of the split."""
    size: int = 0
    """Side of the stored square picture in pixels. 0: that of the dataset, 256 for a new one."""
    fit: FitChoice = "auto"
    """Method that makes a picture square: `crop` its centre, `pad` with background, or `squash`.
    `auto`: that of the dataset, `pad` for a new one."""
    store: StoreChoice = "auto"
    """Content of the shards: `pixels` (memory-mapped, read without decoding) or `jpeg` (quality 95,
    a fifth of the size). `auto`: that of the dataset, `pixels` for a new one."""
    address: str | None = None
    """Ray cluster to run on: HOST:6379, `auto` for that of this machine, ray://HOST:10001, or
    `local` to start a Ray on this machine. Default: RAY_ADDRESS; without it 2,000 pictures or fewer
    are read without Ray, and for more a local Ray is started."""
    workers: int = 0
    """Number of worker processes. 0: one per CPU core of the cluster."""
    max_reject_rate: float = 0.05
    """Highest share of rejected pictures. Above it nothing is published and the exit code is 1."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(
            self.size == 0 or 8 <= self.size <= 4096,
            f"--size {self.size}: give a side between 8 and 4096 pixels",
        )
        require(
            0 <= self.max_reject_rate <= 1,
            f"--max-reject-rate {self.max_reject_rate}: give a share, 0 to 1",
        )
        # Reading the properties parses the strings.
        _ = self.split_shares, self.endings

        if self.labels not in _LABELS_WITHOUT_TABLE:
            _require_table("--labels", self.labels, "`folder`, `none`, or ")
        if self.add_labels:
            _require_table("--add-labels", self.add_labels, "")
        if self.group:
            _require_table("--group", self.group, "")

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        labels = "" if self.labels in _LABELS_WITHOUT_TABLE else self.labels
        return tuple(filter(None, (self.source, self.dataset, labels, self.add_labels, self.group)))

    @cached_property
    def endings(self) -> tuple[str, ...] | None:
        """File name endings to read, in lower case; None for all."""
        return parse_extensions(self.extensions)

    @cached_property
    def split_shares(self) -> SplitShares | None:
        """Shares of the splits; None if the folders below the source are the splits."""
        if self.split == "folder":
            return None
        return parse_shares(self.split)


def parse_shares(split: str) -> SplitShares:
    """Return the shares that `--split` states. Raises RequestError for anything else."""
    try:
        train, validation, test = (float(part) for part in split.split(","))
    except ValueError:
        raise RequestError(
            f"--split {split!r}: give three shares, such as 0.7,0.15,0.15, or `folder`"
        ) from None

    shares = SplitShares(train, validation, test)
    if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise RequestError(f"--split {split!r}: shares must not be negative and must sum to 1")
    return shares


def _require_table(flag: str, value: str, alternatives: str) -> None:
    require(
        value.lower().endswith((".csv", ".tsv", ".parquet")),
        f"{flag} {value!r}: give {alternatives}a table that ends in .csv, .tsv or .parquet",
    )
