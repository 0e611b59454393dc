"""Recipes: flat TOML files whose keys are the flags of a job, `-` or `_` between words."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, Final, TypeVar

from afinar.config.base import JobConfig, field_name
from afinar.config.strict import MismatchError, structure
from afinar.errors import RequestError

C = TypeVar("C", bound=JobConfig)

_PACKAGE: Final = Path(__file__).resolve().parents[1]
# A wheel has the recipes inside the package, a checkout has them beside the job scripts.
_FOLDERS: Final = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "jobs" / "recipes")


def find_recipe(recipe: str) -> Path:
    """Return the file of a recipe: a path, or the name of a recipe that ships with afinar.

    Raises RequestError for a name that is neither; the message has similar names.
    """
    path = Path(recipe)
    shipped = {file.stem: file for folder in _FOLDERS for file in sorted(folder.glob("*.toml"))}
    name = recipe.removesuffix(".toml")
    if not path.exists() and name in shipped:
        return shipped[name]

    is_name = path.name == recipe and path.suffix != ".toml"
    if not path.exists() and is_name:
        names = difflib.get_close_matches(recipe, shipped, n=1) or sorted(shipped)
        raise RequestError(
            f"there is no recipe {recipe!r}: give a TOML file, or a name such as {', '.join(names)}"
        )
    return path


def load_recipe(config_class: type[C], recipe: str) -> dict[str, Any]:
    """Return the fields that a recipe sets, with their types checked.

    Raises RequestError for a file that cannot be read, a wrong type, or an unknown key; the message
    has the most similar key.
    """
    path = find_recipe(recipe)
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise RequestError(f"cannot read the recipe {recipe}: it is not a regular file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the recipe {recipe}: {error.strerror}") from error
    except RecursionError as error:
        raise RequestError(f"the recipe {recipe} is not TOML: it is nested too deeply") from error
    except ValueError as error:
        # Also text that is not UTF-8, and numbers of thousands of digits.
        raise RequestError(f"the recipe {recipe} is not TOML: {error}") from error

    values = _with_field_names(table, recipe)
    known = {field.name for field in dataclasses.fields(config_class)}
    for key in values:
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            known_keys = ", ".join(sorted(known))
            hint = f"did you mean {similar[0]!r}?" if similar else f"known keys: {known_keys}"
            raise RequestError(f"the recipe {recipe} has an unknown key {key!r}; {hint}")
    return _check_types(config_class, values, recipe)


def _with_field_names(table: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Return the values by field. Raises RequestError for one key in two spellings."""
    spelling: dict[str, str] = {}
    for key in table:
        name = field_name(key)
        if name in spelling:
            raise RequestError(
                f"the recipe {recipe} has both {spelling[name]!r} and {key!r}, which are one flag: "
                "remove one"
            )
        spelling[name] = key
    return {name: table[key] for name, key in spelling.items()}


def _check_types(config_class: type[C], values: dict[str, Any], recipe: str) -> dict[str, Any]:
    hints = typing.get_type_hints(config_class)
    checked = {}
    for key, value in values.items():
        hint = hints[key]
        try:
            checked[key] = structure(value, hint)
        except MismatchError as error:
            wanted = getattr(hint, "__name__", str(hint).replace("typing.", ""))
            raise RequestError(f"the recipe {recipe}: {key} = {value!r} is not {wanted}") from error
    return checked
