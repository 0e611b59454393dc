"""Base of the job configurations, and what several of them share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import keyword
import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from afinar.errors import RequestError
from afinar.logs import Format as LogFormat

POSITIONAL: Final = "positional"
"""Marks a field that the command line takes by position."""

Precision = Literal["auto", "float32", "bfloat16"]

_CLUSTER: Final = re.compile(r"(ray://)?(\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]]+):([0-9]{1,5})")

# Fields that change what a job logs and nothing that it writes: no run records them.
_LOGGING_FIELDS: Final = ("verbose", "log_format")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Options of every job. Constructors of subclasses raise RequestError for a wrong value.

    `GROUPS` are the headings of `--help` with the fields below them; other fields come first.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {"output": ("json", "verbose", "log_format")}

    recipe: str | None = None
    """TOML file whose keys are these flags, or the name of a recipe that ships with afinar
    (`vgg16-fc2`). A flag on the command line overrides the recipe."""
    json: bool = False
    """Print exactly one JSON object to stdout; everything else goes to stderr."""
    verbose: bool = False
    """Log debug messages too."""
    log_format: LogFormat = "text"
    """Format of the log on stderr: `text`, `timed` with the time before each message, or `json`
    with one object per line."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes, as they were given."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ClusterJobConfig(JobConfig):
    """Options of the jobs that may run on Ray."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "cluster": ("address", "workers"),
        **JobConfig.GROUPS,
    }

    address: str | None = None
    """Ray cluster to run on: HOST:6379, `auto` for that of this machine, ray://HOST:10001, or
    `local` to start a Ray on this machine. Default: RAY_ADDRESS; without it a job of few pictures
    runs without Ray, and for a larger one a local Ray is started."""
    workers: int = 0
    """Number of worker processes. 0: one per GPU of the cluster, or one per CPU core if there are
    no GPUs."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(self.workers >= 0, f"--workers {self.workers}: give a count, or 0 for the default")


def cluster_address(address: str | None) -> str | None:
    """Return `address`, else RAY_ADDRESS; None if a local Ray is started instead.

    Raises RequestError for anything but `local`, `auto`, HOST:PORT and ray://HOST:PORT.
    """
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    if target == "local":
        return None
    match = _CLUSTER.fullmatch(target)
    if target == "auto" or (match and int(match[3]) < 2**16):
        return target

    name = "--address" if address else "RAY_ADDRESS"
    if target.startswith(("http://", "https://")):
        raise RequestError(
            f"{name} {without_user(target)} is a dashboard, which only `afinar submit` takes: "
            "give the cluster, such as HEAD:6379, or `--address local` for a Ray on this machine"
        )
    raise RequestError(
        f"{name} {without_user(target)!r} is no address of a Ray cluster: write HOST:PORT, such "
        "as HEAD:6379, or `--address local` for a Ray on this machine"
    )


def without_user(address: str) -> str:
    """Return an address without user and password, for a message."""
    return re.sub(r"//[^/]*@", "//", address)


@dataclass(frozen=True, kw_only=True)
class UnitJobConfig(ClusterJobConfig):
    """Options of the jobs that read pictures in units."""

    unit_timeout_s: float = 3600.0
    """Replace a worker that spends more than this many seconds on 512 pictures. The limit falls to
    20 times the slowest unit so far. A picture at which two workers died or hung is rejected."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(
            self.unit_timeout_s > 0,
            f"--unit-timeout-s {self.unit_timeout_s:g}: give seconds above 0",
        )


def as_dict(config: JobConfig) -> dict[str, Any]:
    """Return the fields that a run records, as JSON values: all but those for logging."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in _LOGGING_FIELDS}


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a value as JSON. Raises TypeError for what JSON cannot hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flag_name(field: str) -> str:
    """Return the name of a field's flag, without dashes before it: `class_` is --class."""
    return field.removesuffix("_").replace("_", "-")


def field_name(flag: str) -> str:
    """Return the field of a flag or of a recipe's key; Python's keywords get an underscore."""
    name = flag.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def require(condition: bool, message: str) -> None:
    """Raise RequestError with `message` unless the condition holds."""
    if not condition:
        raise RequestError(message)


def parse_extensions(extensions: str) -> tuple[str, ...] | None:
    """Return file name endings in lower case, with their dot; None for `all`.

    Example: ".JPG, .png" gives (".jpg", ".png").
    """
    if extensions.strip().lower() == "all":
        return None
    endings = tuple(part.strip().lower() for part in extensions.split(",") if part.strip())
    if not endings or not all(part.startswith(".") and len(part) > 1 for part in endings):
        raise RequestError(f"--extensions {extensions!r}: give endings such as .jpg,.png, or `all`")
    return endings
