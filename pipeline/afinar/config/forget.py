"""Configuration of `afinar forget`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from afinar.config.base import POSITIONAL, ClusterJobConfig, require


@dataclass(frozen=True, kw_only=True)
class ForgetConfig(ClusterJobConfig):
    """Erase pictures from a dataset or from predictions, and from every earlier version of them.

    The output names the other places that may hold an erased picture or what was derived from it.
    """

    path: Annotated[str, POSITIONAL]
    """Dataset made by `afinar ingest`, or prediction folder made by `afinar label`."""
    uris: Annotated[tuple[str, ...], POSITIONAL]
    """Pictures to erase, by their uri in the index or the predictions, or by their path relative to
    the source."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        return (self.path,)

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(bool(self.uris), "name at least one picture to forget")
