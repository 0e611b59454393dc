"""The strict reading of recipes: TOML files whose keys are a job's flags."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar

from afinar.config.base import JobConfig
from afinar.errors import RequestError

C = TypeVar("C", bound=JobConfig)

_PACKAGE: Final = Path(__file__).resolve().parents[1]
# A wheel has the recipes inside the package, a checkout beside the jobs.
_SHIPPED: Final = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "jobs" / "recipes")


def find_recipe(recipe: str) -> Path:
    """Return the file that `--recipe` names: a path, or the name of a recipe that ships with afinar.

    Raises RequestError that lists the names when there is neither.
    """
    path = Path(recipe)
    shipped = {file.stem: file for folder in _SHIPPED for file in sorted(folder.glob("*.toml"))}
    if path.exists() or recipe.removesuffix(".toml") not in shipped:
        if not path.exists() and path.name == recipe and path.suffix != ".toml":
            near = difflib.get_close_matches(recipe, shipped, n=1) or sorted(shipped)
            raise RequestError(
                f"there is no recipe {recipe!r}: give a TOML file, or a name such as {', '.join(near)}"
            )
        return path
    return shipped[recipe.removesuffix(".toml")]


def load_recipe(kind: type[C], path: str) -> dict[str, Any]:
    """Read a recipe: a flat TOML file whose keys are the job's fields, `-` or `_` between words.

    Returns the fields it sets, with their types checked. Raises RequestError naming the key and the
    nearest valid one.
    """
    try:
        table = tomllib.loads(find_recipe(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the recipe {path} is not TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in table.items()}
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; known keys: {', '.join(sorted(known))}"
            )
            raise RequestError(f"the recipe {path} has an unknown key {key!r}{hint}")
    return _structured(kind, values, path)


def _structured(kind: type[C], values: dict[str, Any], path: str) -> dict[str, Any]:
    import typing

    import cattrs

    converter = cattrs.Converter(prefer_attrib_converters=True)
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, _exactly)
    hints = typing.get_type_hints(kind)
    structured = {}
    for key, value in values.items():
        try:
            structured[key] = converter.structure(value, hints[key])
        except Exception as error:
            wanted = getattr(hints[key], "__name__", str(hints[key]).replace("typing.", ""))
            raise RequestError(f"the recipe {path}: {key} = {value!r} is not {wanted}") from error
    return structured


def _exactly(value: Any, kind: type) -> Any:
    """TOML has types: no string is taken for a number, and only an int may stand for a float."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
