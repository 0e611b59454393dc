"""The command line that reproduces a run, from its configuration."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any, Final, get_type_hints

from afinar.config.base import POSITIONAL, JobConfig, flag_name

# What does not change the result, or is contained in the other flags.
_LEFT_OUT: Final = frozenset(
    {"recipe", "json", "verbose", "log_format", "address", "describe", "forecast", "workers"}
)


def reproduce(job: str, kind: type[JobConfig], values: Mapping[str, Any]) -> str:
    """Return the command line of a job: positional arguments, then flags that are no defaults.

    `values` has the fields of the configuration `kind`; other keys are ignored.
    """
    hints = get_type_hints(kind, include_extras=True)
    positional, flags = [], []
    for field in dataclasses.fields(kind):
        if field.name in _LEFT_OUT or field.name not in values:
            continue
        value = values[field.name]
        if POSITIONAL in getattr(hints[field.name], "__metadata__", ()):
            values_of_field = value if isinstance(value, list | tuple) else [value]
            positional += [shlex.quote(str(entry)) for entry in values_of_field]
        elif value != _default(field) and value is not None:
            flags.append(_flag(flag_name(field.name), value))
    # One flag on a line: a browser would break a long line within `--`.
    return " \\\n  ".join([" ".join([f"afinar {job}", *positional]), *flags])


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, list | tuple):
        return " ".join([f"--{name}", *(shlex.quote(str(entry)) for entry in value)])
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else value
    return f"--{name} {shlex.quote(str(text))}"
