"""Configuration of `afinar label`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from afinar.config.base import (
    POSITIONAL,
    Precision,
    UnitJobConfig,
    parse_extensions,
    require,
)
from afinar.config.formats import DEFAULT_EXTENSIONS


@dataclass(frozen=True, kw_only=True)
class LabelConfig(UnitJobConfig):
    """Label the pictures of a folder, a list or a dataset with a published model.

    Without PREDICTIONS, print the classes of one picture.
    """

    source: Annotated[str, POSITIONAL] = field(kw_only=False)
    """Pictures to label: a folder or s3://BUCKET/PREFIX; a list, which is a CSV or Parquet FILE
    with the column uri or a .txt FILE with one URI in each line (complete, or relative to the
    folder of FILE), of which every row is labelled; or a dataset made by `afinar ingest`. Without
    PREDICTIONS: one picture."""
    predictions: Annotated[str, POSITIONAL] = field(default="-", kw_only=False)
    """Prediction folder to write or continue: a folder or s3://BUCKET/PREFIX. Without it, or with
    `-`, the classes of one picture are printed."""
    model: str
    """MODELS, whose champion is used, MODELS@latest, or MODELS@VERSION (a number, or an id)."""
    extensions: str = DEFAULT_EXTENSIONS
    """File name endings to read, comma-separated, or `all`. Default: those of every format that is
    decoded. Files with other endings are left out and counted."""
    address: str | None = None
    """Ray cluster to run on: HOST:6379, `auto` for that of this machine, ray://HOST:10001, or
    `local` to start a Ray on this machine. Default: RAY_ADDRESS; without it 500 pictures or fewer
    are labelled without Ray, and for more a local Ray is started."""
    top_k: int = 5
    """Number of best classes to keep per picture."""
    scores: bool = False
    """Also keep the probabilities of all classes, in the column `scores`. The manifest has their
    order."""
    features: bool = False
    """Also keep the activations of the network at its cut, in the column `features`."""
    abstain_below: float = 0.0
    """Mark predictions below this probability as `abstained` and put them into review/ for people
    to check. 0: none."""
    single: bool = False
    """Also write all rows of this model as one Parquet file and one CSV file, in single/."""
    batch_size: int = 0
    """Pictures per forward pass. 0: measured when there are 4,000 pictures or more, otherwise 8 on
    a CPU and 64 on a GPU."""
    precision: Precision = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 if the hardware multiplies it (Tensor Cores, AMX,
    AVX-512) and it reproduces the golden samples of the model. With `auto`, CPUs compute in
    OpenVINO if afinar[openvino] is installed and there are 2,000 pictures per core."""
    forecast: str = ""
    """FILE that `afinar plan label --json` printed for this job. The summary then compares the
    estimate with the time taken."""
    retry_rejects: bool = False
    """Try all pictures again that an earlier run rejected, not only those with transient errors."""
    max_reject_rate: float = 1.0
    """Highest share of rejected pictures. Above it the exit code is 1; 1.0: never."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(self.top_k >= 1, f"--top-k {self.top_k}: give at least 1")
        require(self.batch_size >= 0, f"--batch-size {self.batch_size}: give a count, or 0")
        require(
            0 <= self.abstain_below <= 1,
            f"--abstain-below {self.abstain_below}: give a probability, 0 to 1",
        )
        for name in ("scores", "features", "abstain_below", "single"):
            flag = f"--{name.replace('_', '-')}"
            require(
                not (self.is_one_picture and getattr(self, name)),
                f"{flag} needs a place for predictions: name PREDICTIONS",
            )
        require(bool(self.model), "name the --model: MODELS, whose champion is used, or MODELS@N")
        _ = self.endings  # reading the property parses the string

    @property
    def is_one_picture(self) -> bool:
        """True if the source is one picture whose classes are only printed."""
        return self.predictions == "-"

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        predictions = "" if self.is_one_picture else self.predictions
        return tuple(filter(None, (self.source, predictions, self.model, self.forecast)))

    @cached_property
    def endings(self) -> tuple[str, ...] | None:
        """File name endings to read, in lower case; None for all."""
        return parse_extensions(self.extensions)
