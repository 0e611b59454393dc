"""Description of a network: everything needed to build it, except its weights. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from afinar.config.strict import between
from afinar.config.train import Head, Output, Pool
from afinar.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Backbone, cut, pooling and head of a network. `cut` is the name of a graph node.

    The fields with defaults were added later: a record without them builds the same network.
    """

    EXACT_KEYS = True  # see config/strict.py

    backbone: str
    cut: str
    head: Head
    input_size: Annotated[int, between(1, 4096)]
    classes: Annotated[int, between(1, 2**31)]
    pool: Pool = "average"
    hidden: Annotated[int, between(1, 2**31)] = 256
    dropout: Annotated[float, between(0, 1)] = 0.2
    output: Output = "softmax"
    revision: Annotated[int, between(1, 1000)] = 1  # of the backbone, see BackboneInfo

    def __post_init__(self) -> None:
        """Raise RequestError for a single sigmoid output with other than two classes."""
        if self.output == "sigmoid" and self.classes != 2:
            raise RequestError(
                f"--output sigmoid decides between two classes and there are {self.classes}: "
                "use softmax"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return dict(self.__dict__)
