"""Configuration of `afinar features`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal, get_args

from afinar.config.base import POSITIONAL, UnitJobConfig, require
from afinar.config.train import NAMED_WEIGHTS, Pool

StoredType = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(UnitJobConfig):
    """Compute the features of all pictures of a dataset, once, and keep them beside it.

    The features are the activations of a pretrained backbone at a cut. Training with --regime
    frozen and `afinar compare` use them; a picture that is added later costs one forward pass.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "network": ("backbone", "weights", "cut", "pool", "input_size"),
        **UnitJobConfig.GROUPS,
    }

    dataset: Annotated[str, POSITIONAL]
    """Dataset made by `afinar ingest`."""
    backbone: str = "resnet18"
    """Backbones, comma-separated: torchvision classification networks, `efficientnet_lite0`, or
    `timm:NAME`."""
    weights: str = "imagenet"
    """Weights: `imagenet` (the first source available), `torchvision`, `package`, or a file or URI
    of weights for the one backbone."""
    cut: str = "auto"
    """Cuts, comma-separated: nodes or modules of the backbone (`afinar train --describe` lists
    them), or `auto`, the input of its classifier. All cuts of a backbone are computed in one
    pass. BACKBONE:CUT is a cut of this backbone alone."""
    pool: str = "average"
    """Reductions of the activations to one vector, comma-separated: `average`, `flatten`,
    `average+std`, `token`."""
    input_size: int = 0
    """Side of the network's input in pixels. 0: the usual size of each backbone."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass."""
    stored_as: StoredType = "float16"
    """Type in which features are stored. float16 changes a value by at most 0.05 %, and takes half
    of the space."""
    max_gb: float = 20.0
    """Refuse to compute features that would take more gigabytes than this."""
    batch_size: int = 0
    """Pictures per forward pass. 0: 8 on a CPU, 256 on a GPU."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value. The catalogue of backbones checks `backbone`."""
        super().__post_init__()
        require(self.max_gb > 0, f"--max-gb {self.max_gb:g}: give a size above 0")
        require(self.batch_size >= 0, f"--batch-size {self.batch_size}: give a count, or 0")
        require(self.input_size >= 0, f"--input-size {self.input_size}: give a size, or 0")
        require(
            self.weights != "none",
            "--weights none: features of random weights say little about pictures; give weights",
        )
        for backbone in self.backbones:  # reading the properties parses the strings
            _ = self.cuts_of(backbone)
        _ = self.pools

    @cached_property
    def backbones(self) -> list[str]:
        """Names of the backbones."""
        return split_list("--backbone", self.backbone)

    @cached_property
    def pools(self) -> list[Pool]:
        """Names of the poolings."""
        return parse_pools(self.pool)

    def cuts_of(self, backbone: str) -> list[str]:
        """Return the cuts of one backbone."""
        return cuts_of(self.cut, backbone, self.backbones)

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        return (self.dataset, *weights_path(self.weights))


_POOLS: Final[tuple[Pool, ...]] = get_args(Pool)


def weights_path(weights: str) -> tuple[str, ...]:
    """Return the location of `--weights`, none for weights that have a name."""
    return () if weights in NAMED_WEIGHTS else (weights,)


def split_list(flag: str, text: str) -> list[str]:
    """Return the items of a comma-separated list, each once. Raises RequestError for none."""
    items = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    require(bool(items), f"{flag} {text!r}: give one or more names, comma-separated")
    return items


def parse_pools(text: str) -> list[Pool]:
    """Return the poolings of a comma-separated list. Raises RequestError for an unknown one."""
    names = split_list("--pool", text)
    for name in names:
        require(name in _POOLS, f"--pool {name!r}: choose {', '.join(_POOLS)}")
    return [pool for name in names for pool in _POOLS if pool == name]


def cuts_of(text: str, backbone: str, backbones: list[str]) -> list[str]:
    """Return the cuts of one backbone in a list of `CUT` and `BACKBONE:CUT`.

    Raises RequestError if the list has none for it.
    """
    cuts = []
    for item in split_list("--cut", text):
        owner, colon, cut = item.rpartition(":")
        require(
            not colon or owner in backbones,
            f"--cut {item}: {owner} is not one of the backbones {', '.join(backbones)}",
        )
        if not colon or owner == backbone:
            cuts.append(cut)
    require(bool(cuts), f"--cut {text}: it names no cut of {backbone}")
    return cuts
