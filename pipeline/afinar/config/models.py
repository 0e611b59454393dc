"""Configuration of `afinar models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from afinar.config.base import POSITIONAL, JobConfig, require

Action = Literal["list", "show", "promote", "rollback"]


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(JobConfig):
    """Show the versions of a model, and choose the champion: the version that --model MODELS uses.

    `list` shows all versions, `show` one of them with its metrics and origin. `promote` makes a
    version the champion. `rollback` returns to the champion before; a second one undoes the first.
    """

    models: Annotated[str, POSITIONAL]
    """Folder or s3:// prefix that holds the history of a model."""
    action: Annotated[Action, POSITIONAL] = "list"
    """Show all versions, show one, change the champion, or return to the one before."""
    version: Annotated[str, POSITIONAL] = ""
    """For show and promote: the number or the id of a version. `show` takes the champion without
    it."""
    why: str = ""
    """For promote and rollback: the reason, which is recorded."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        takes_version = self.action in {"show", "promote"}
        require(
            takes_version or not self.version,
            f"`{self.action}` takes no version, and {self.version!r} is given",
        )
        require(
            self.action != "promote" or bool(self.version),
            "name the version: afinar models MODELS promote NUMBER",
        )
        require(
            self.action in {"promote", "rollback"} or not self.why,
            f"--why {self.why!r}: `{self.action}` moves nothing",
        )
