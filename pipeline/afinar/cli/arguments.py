"""From words on a command line to a job's configuration, by way of a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro

from afinar.config.jobs import POSITIONAL, JobConfig
from afinar.config.recipes import load_recipe

C = TypeVar("C", bound=JobConfig)


def parse(kind: type[C], words: list[str], prog: str, example: str) -> C:
    """Parse a job's flags over its recipe. Exits with 2 on words that are off, 0 after --help.

    Raises RequestError for a recipe that is wrong.
    """
    recipe = _recipe_in(words)
    defaults = load_recipe(kind, recipe) if recipe else {}
    description = f"{kind.__doc__}\n\nExample:\n  {example}"
    parsed: Any = tyro.cli(
        _with_defaults(kind, defaults),
        args=words,
        prog=prog,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
    )
    return kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)})


def _recipe_in(words: list[str]) -> str | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--recipe")
    try:
        return typing.cast("str | None", finder.parse_known_args(words)[0].recipe)
    except argparse.ArgumentError:
        return None  # tyro words the complaint


def _with_defaults(kind: type[C], defaults: dict[str, Any]) -> type:
    """The configuration class as tyro reads it: positional where marked, the recipe's values as defaults."""
    namespace: dict[str, Any] = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__annotations__": {},
    }
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        positional = get_origin(hint) is Annotated and POSITIONAL in hint.__metadata__
        bare: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if bare in {str, str | None}:
            bare = Annotated[bare, tyro.conf.arg(metavar=name.upper())]
        namespace["__annotations__"][name] = (
            Annotated[bare, tyro.conf.Positional] if positional else bare
        )
        if name in defaults:
            namespace[name] = defaults[name]
        elif kind.__dataclass_fields__[name].default is not dataclasses.MISSING:
            namespace[name] = kind.__dataclass_fields__[name].default
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(kind.__name__, (kind,), namespace))
