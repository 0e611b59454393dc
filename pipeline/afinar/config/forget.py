"""Configuration of `afinar forget`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from afinar.config.base import POSITIONAL, JobConfig, require


@dataclass(frozen=True, kw_only=True)
class ForgetConfig(JobConfig):
    """Erase pictures from a dataset: from its shards and from every version that contained them."""

    dataset: Annotated[str, POSITIONAL]
    """Dataset made by `afinar ingest`."""
    uris: Annotated[tuple[str, ...], POSITIONAL]
    """Pictures to erase, by their uri in the index or by their path relative to the source."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(bool(self.uris), "name at least one picture to forget")
