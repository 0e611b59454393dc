"""Configuration of `afinar status`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from afinar.config.base import POSITIONAL, JobConfig, require


@dataclass(frozen=True, kw_only=True)
class StatusConfig(JobConfig):
    """Show a dataset, a prediction folder or models; verify objects, delete unused ones."""

    path: Annotated[str, POSITIONAL]
    """A dataset, a prediction folder or models: a folder or s3://BUCKET/PREFIX."""
    verify: bool = False
    """Read every object of every version (predictions: of the newest version) and compare its
    hash."""
    gc: bool = False
    """Delete objects that no kept version and no running job uses."""
    drop_plans: bool = False
    """With --gc: also delete the plans and runs of interrupted jobs that will not be resumed."""
    keep: int = 0
    """With --gc: number of newest versions to keep; older versions are deleted. 0: all."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(self.keep >= 0, f"--keep {self.keep}: give a count of versions, or 0 for all")
        require(self.gc or not self.keep, f"--keep {self.keep} deletes versions: give --gc with it")
        require(
            self.gc or not self.drop_plans,
            "--drop-plans deletes unfinished plans: give --gc with it",
        )
