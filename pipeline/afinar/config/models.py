"""Configuration of `afinar models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from afinar.config.base import POSITIONAL, JobConfig, require

Action = Literal["list", "show", "promote", "rollback", "export"]
ExportFormat = Literal["onnx", "torch.export"]


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(JobConfig):
    """Show the versions of a model, and choose the champion: the version that --model MODELS uses.

    `list` shows all versions, `show` one of them with its metrics and origin. `promote` makes a
    version the champion. `rollback` returns to the champion before; a second one undoes the first.
    `export` writes a version to one file that runs without afinar.
    """

    models: Annotated[str, POSITIONAL]
    """Folder or s3:// prefix that holds the history of a model."""
    action: Annotated[Action, POSITIONAL] = "list"
    """Show all versions, show one, change the champion, return to the one before, or export one."""
    version: Annotated[str, POSITIONAL] = ""
    """For show, promote and export: the number or the id of a version. `show` and `export` take the
    champion without it."""
    why: str = ""
    """For promote and rollback: the reason, which is recorded."""
    format: ExportFormat = "onnx"
    """For export: `onnx` (needs afinar[onnx]) or `torch.export`."""
    out: str = ""
    """For export: the file to write. It takes uint8 images [n, size, size, 3] and gives
    probabilities [n, classes]."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        takes_version = self.action in {"show", "promote", "export"}
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
        require(
            (self.action == "export") == bool(self.out),
            "name the file: afinar models MODELS export NUMBER --out FILE"
            if self.action == "export"
            else f"--out {self.out}: `{self.action}` writes no file",
        )
