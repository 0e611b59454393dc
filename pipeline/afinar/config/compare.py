"""Configuration of `afinar compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal

from afinar.config.base import POSITIONAL, UnitJobConfig, require
from afinar.config.features import StoredType, cuts_of, parse_pools, split_list, weights_path
from afinar.config.train import Pool

COMPARISONS: Final = "comparisons"
"""Folder of RUNS with cells, tables and pages of comparisons."""

HEADS: Final = ("linear", "mlp")
_MAX_SEEDS: Final = 20


@dataclass(frozen=True, kw_only=True)
class CompareConfig(UnitJobConfig):
    """Compare backbones, cuts, heads and regimes on a dataset, and say which to take.

    Heads are trained on cached features, all heads of a cut in one task. Other regimes are
    trainings. A finished cell of the grid is stored in RUNS and never computed again.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "grid": (
            *("backbone", "cut", "pool", "head", "regime", "seeds", "fractions"),
            *("weights", "input_size", "hidden", "dropout", "refit"),
        ),
        "trainings": ("epochs", "augment", "batch_size", "keep_all"),
        **UnitJobConfig.GROUPS,
    }

    dataset: Annotated[str, POSITIONAL] = field(kw_only=False)
    """Dataset made by `afinar ingest`, or several, comma-separated: then the page says on which of
    them transfer gains."""
    runs: Annotated[str, POSITIONAL] = field(kw_only=False)
    """Folder or s3:// prefix for results, and for the model that --publish publishes."""
    backbone: str = "resnet18"
    """Backbones, comma-separated."""
    cut: str = "auto"
    """Cuts, comma-separated: nodes, modules, or `auto`, the input of the classifier. BACKBONE:CUT
    is a cut of this backbone alone."""
    pool: str = "average"
    """Reductions of the activations, comma-separated: `average`, `flatten`, `average+std`,
    `token`."""
    head: str = "linear,mlp"
    """Heads, comma-separated: `linear`, `mlp`."""
    regime: str = "frozen"
    """Regimes, comma-separated: `frozen`, `last:N`, `full`, `scratch`. All but frozen are trainings
    of minutes, with the first head, at the last cut of each backbone."""
    refit: bool = False
    """Solve linear heads of the frozen regime again on training and validation pictures together,
    after validation has chosen their regularisation. Rows are ranked by the heads before that."""
    seeds: int = 3
    """Number of seeds (at most 20) of every row that depends on chance."""
    fractions: str = "1"
    """Shares of the training pictures, comma-separated, for heads of the frozen regime: the
    learning curve."""
    weights: str = "imagenet"
    """Weights: `imagenet` (the first source available), `torchvision`, `package`, or a file for
    the one backbone. A backbone without known weights has the regime scratch alone."""
    input_size: int = 0
    """Side of the networks' input in pixels. 0: the usual size of each backbone."""
    hidden: int = 256
    """Width of the hidden layer of the mlp."""
    dropout: float = 0.2
    """Dropout after the hidden layer of the mlp."""
    epochs: int | Literal["auto"] = "auto"
    """Epochs of the trainings. `auto`: 10, or as many as make 300 steps."""
    augment: str = "auto"
    """Augmentation of the trainings, as of `afinar train`."""
    batch_size: int = 0
    """Samples per step of the trainings. 0: the default of `afinar train`."""
    keep_all: bool = False
    """Train every row to the end, with all seeds. Without it, trainings of the lower half that are
    worse than the best by more than chance are stopped after a quarter or half of the epochs, or
    after a seed."""
    stored_as: StoredType = "float16"
    """Type in which features are stored."""
    max_gb: float = 20.0
    """Refuse to compute features that would take more gigabytes than this."""
    publish: str = ""
    """Publish a row in RUNS: `best`, or the number of a row."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value. The catalogue of backbones checks `backbone`."""
        super().__post_init__()
        require(1 <= self.seeds <= _MAX_SEEDS, f"--seeds {self.seeds}: give 1 to {_MAX_SEEDS}")
        require(self.max_gb > 0, f"--max-gb {self.max_gb:g}: give a size above 0")
        require(
            self.weights != "none",
            "--weights none: give weights; backbones without known weights are compared from "
            "scratch",
        )
        require(
            self.publish in {"", "best"} or self.publish.isdecimal(),
            f"--publish {self.publish}: give best, or the number of a row",
        )
        require(
            not self.publish or len(self.datasets) == 1,
            f"--publish {self.publish}: RUNS holds the versions of one model; compare one DATASET",
        )
        for backbone in self.backbones:  # reading the properties parses the strings
            _ = self.cuts_of(backbone)
        _ = self.pools, self.heads, self.regimes, self.shares

    @cached_property
    def datasets(self) -> list[str]:
        """Locations of the datasets."""
        return split_list("DATASET", self.dataset)

    @cached_property
    def backbones(self) -> list[str]:
        """Names of the backbones."""
        return split_list("--backbone", self.backbone)

    @cached_property
    def pools(self) -> list[Pool]:
        """Names of the poolings."""
        return parse_pools(self.pool)

    @cached_property
    def heads(self) -> list[Literal["linear", "mlp"]]:
        """Names of the heads."""
        names = split_list("--head", self.head)
        for name in names:
            require(name in HEADS, f"--head {name!r}: choose {', '.join(HEADS)}")
        return ["linear" if name == "linear" else "mlp" for name in names]

    @cached_property
    def regimes(self) -> list[str]:
        """Names of the regimes."""
        names = split_list("--regime", self.regime)
        for name in names:
            kind, _, stages = name.partition(":")
            is_last = kind == "last" and stages.isdecimal() and int(stages) > 0
            require(
                name in {"frozen", "full", "scratch"} or is_last,
                f"--regime {name!r}: choose frozen, last:N (such as last:1), full or scratch",
            )
        return names

    @cached_property
    def shares(self) -> list[float]:
        """Shares of the training pictures, ascending; 1 is one of them."""
        try:
            shares = {float(part) for part in split_list("--fractions", self.fractions)}
        except ValueError:
            shares = {0.0}
        require(
            all(0 < share <= 1 for share in shares),
            f"--fractions {self.fractions}: give shares above 0 and up to 1, such as 0.1,0.5,1",
        )
        return sorted({*shares, 1.0})

    def cuts_of(self, backbone: str) -> list[str]:
        """Return the cuts of one backbone."""
        return cuts_of(self.cut, backbone, self.backbones)

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        return (*self.datasets, self.runs, *weights_path(self.weights))
