"""Recipes: flat TOML files whose keys are the flags of a job, `-` or `_` between words."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, Final, TypeVar

from afinar.config.base import JobConfig
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the recipe {recipe} is not TOML: {error}") from error

    values = {key.replace("-", "_"): value for key, value in table.items()}
    known = {field.name for field in dataclasses.fields(config_class)}
    for key in values:
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            known_keys = ", ".join(sorted(known))
            hint = f"did you mean {similar[0]!r}?" if similar else f"known keys: {known_keys}"
            raise RequestError(f"the recipe {recipe} has an unknown key {key!r}; {hint}")
    return _check_types(config_class, values, recipe)


def _check_types(config_class: type[C], values: dict[str, Any], recipe: str) -> dict[str, Any]:
    import cattrs  # 0.1 s that only a job with a recipe pays

    converter = cattrs.Converter(prefer_attrib_converters=True)
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, _require_type)

    hints = typing.get_type_hints(config_class)
    checked = {}
    for key, value in values.items():
        hint = hints[key]
        try:
            checked[key] = converter.structure(value, hint)
        except Exception as error:
            wanted = getattr(hint, "__name__", str(hint).replace("typing.", ""))
            raise RequestError(f"the recipe {recipe}: {key} = {value!r} is not {wanted}") from error
    return checked


def _require_type(value: Any, wanted: type) -> Any:
    """Return the value if it has exactly this type; an int is converted to a float.

    TOML has types, so that the string "64" is a mistake for the number 64.
    """
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise TypeError(f"{value!r} is not {wanted.__name__}")
    return value
