"""Configuration of `afinar models`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Final, Literal

from afinar.config.base import POSITIONAL, JobConfig, require
from afinar.errors import RequestError

Action = Literal["list", "show", "promote", "rollback", "retire", "export"]
ExportFormat = Literal["onnx", "torch.export"]

ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")
"""Names that an alias of a version may have."""

_COMPUTED: Final = ("latest", "previous")


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(JobConfig):
    """Show the versions of a model, and choose the champion: the version that --model MODELS uses.

    The action `list` shows all versions, `show` one of them with its metrics, its origin and the
    decisions on it. `promote` makes a version the champion. `rollback` returns to the champion
    before; a second one undoes the first. `retire` takes a version out of use. `export` writes a
    version to one file that runs without afinar.
    """

    models: Annotated[str, POSITIONAL]
    """Folder or s3:// prefix that holds the history of a model."""
    action: Annotated[Action, POSITIONAL] = "list"
    """Show all versions, show one, change the champion, return to the one before, take a version
    out of use, or export one."""
    version: Annotated[str, POSITIONAL] = ""
    """For show, promote, retire and export: the number or the id of a version, `champion`,
    `previous`, `latest` or another alias. `show` and `export` take the champion without it."""
    alias: str = "champion"
    """For promote and rollback: the name to move. Any name will do, such as `staging`; it is used
    as MODELS@staging. `champion` is the one that MODELS alone stands for."""
    at: str = ""
    """For show: a date or a time (ISO 8601, UTC unless it has a zone). Shows the version that the
    champion, or another alias, stood for then; of a date at its end."""
    why: str = ""
    """For promote, rollback and retire: the reason, which is recorded."""
    format: ExportFormat = "onnx"
    """For export: `onnx` (needs afinar[onnx]) or `torch.export`."""
    out: str = ""
    """For export: the file to write. It takes uint8 images [n, size, size, 3] and gives
    probabilities [n, classes]."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        takes_version = self.action in {"show", "promote", "retire", "export"}
        require(
            takes_version or not self.version,
            f"`{self.action}` takes no version, and {self.version!r} is given",
        )
        require(
            self.action not in {"promote", "retire"} or bool(self.version),
            f"name the version: afinar models MODELS {self.action} NUMBER",
        )
        require(
            ALIAS.fullmatch(self.alias) is not None and self.alias not in _COMPUTED,
            f"--alias {self.alias!r}: give lower-case letters, digits, - and _, and neither "
            "`latest` nor `previous`",
        )
        require(
            self.alias == "champion" or self.action in {"promote", "rollback"},
            f"--alias {self.alias}: `{self.action}` moves no alias",
        )
        require(
            not self.at or (self.action == "show" and self._names_alias),
            f"--at {self.at}: use it as in `afinar models MODELS show champion --at 2026-11-01`",
        )
        _ = self.moment  # reading the property parses the string
        require(
            self.action in {"promote", "rollback", "retire"} or not self.why,
            f"--why {self.why!r}: `{self.action}` moves nothing",
        )
        require(
            (self.action == "export") == bool(self.out),
            "name the file: afinar models MODELS export NUMBER --out FILE"
            if self.action == "export"
            else f"--out {self.out}: `{self.action}` writes no file",
        )

    @property
    def _names_alias(self) -> bool:
        is_name = ALIAS.fullmatch(self.version or "champion") is not None
        return is_name and self.version not in _COMPUTED

    @cached_property
    def moment(self) -> datetime | None:
        """Time of `at`, with its zone; None without one."""
        if not self.at:
            return None
        try:
            moment = datetime.fromisoformat(self.at)
        except ValueError:
            raise RequestError(
                f"--at {self.at!r}: give a date, such as 2026-11-01, or a time, such as "
                "2026-11-01T08:30"
            ) from None
        if len(self.at) <= len("2026-11-01"):
            moment += timedelta(days=1, microseconds=-1)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
