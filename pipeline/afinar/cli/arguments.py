"""Parser of command lines: flags over the values of a recipe become a job configuration."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import typing
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import tyro

from afinar.config.base import POSITIONAL, JobConfig
from afinar.config.recipes import load_recipe
from afinar.errors import RequestError

C = TypeVar("C", bound=JobConfig)

# What other tools call a flag, if it looks unlike ours: tyro suggests names that look alike.
_OTHER_NAMES: Final = {
    "--lr": "--learning-rate",
    "--wd": "--weight-decay",
    "--bs": "--batch-size",
    "--arch": "--backbone",
    "--num-workers": "--workers",
    "--image-size": "--size or --input-size",
    "--img-size": "--size or --input-size",
    "--imgsz": "--size or --input-size",
    "--optim": "--optimizer",
    "--scheduler": "--schedule",
    "--amp": "--precision",
    "--early-stopping": "--patience",
    "--threshold": "--abstain-below",
    "--checkpoint": "--weights or --model",
}


def parse(config_class: type[C], argv: list[str], prog: str, example: str) -> C:
    """Parse the arguments of a job.

    Exits with code 2 on wrong arguments and with 0 after --help. Raises RequestError for a wrong
    recipe or a wrong value.
    """
    _refuse_other_names(config_class, argv)
    recipe = _find_recipe_flag(argv)
    defaults = load_recipe(config_class, recipe) if recipe else {}
    description = ast.get_docstring(_definition(config_class))
    parsed: Any = tyro.cli(
        _parser_class(config_class, defaults),
        args=argv,
        prog=prog,
        description=f"{description}\n\nExample:\n  {example}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    fields = dataclasses.fields(config_class)

    return config_class(**{field.name: getattr(parsed, field.name) for field in fields})


def _refuse_other_names(config_class: type[JobConfig], argv: list[str]) -> None:
    """Raise RequestError for a flag that has another name here."""
    ours = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config_class)}
    for word in argv:
        flag = word.partition("=")[0]
        wanted = [name for name in _OTHER_NAMES.get(flag, "").split(" or ") if name in ours]
        if flag not in ours and wanted:
            raise RequestError(f"{flag} is called {' or '.join(wanted)} here")


def _find_recipe_flag(argv: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    try:
        return typing.cast("str | None", parser.parse_known_args(argv)[0].recipe)
    except argparse.ArgumentError:
        return None  # `--recipe` without a value: tyro reports it


def _parser_class(config_class: type[JobConfig], recipe: dict[str, Any]) -> type:
    """Return a dataclass of the same fields for tyro, with the values of the recipe as defaults.

    Its constructor does not validate: tyro would report a RequestError as a bug. The job's own
    fields come first, so that --help shows them before those of every job.
    """
    hints = typing.get_type_hints(config_class, include_extras=True)
    help_texts = _field_docstrings(config_class)
    fields: list[tuple[str, Any, Any]] = []
    shared = {field.name for field in dataclasses.fields(JobConfig)}
    for field in sorted(dataclasses.fields(config_class), key=lambda field: field.name in shared):
        hint = hints[field.name]
        is_positional = get_origin(hint) is Annotated and POSITIONAL in hint.__metadata__
        field_type: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint

        # Shown as --model MODEL; other types keep tyro's own, such as INT or {crop,pad,squash}.
        is_text = field_type in {str, str | None, tuple[str, ...]}
        metavar = field.name.upper() if is_text else None
        argument = tyro.conf.arg(help=help_texts[field.name], metavar=metavar)
        field_type = Annotated[field_type, argument]
        if is_positional:
            field_type = Annotated[field_type, tyro.conf.Positional]

        default = dataclasses.field(default=recipe.get(field.name, field.default))
        fields.append((field.name, field_type, default))
    return dataclasses.make_dataclass(config_class.__name__, fields, frozen=True, kw_only=True)


def _definition(config_class: type) -> ast.ClassDef:
    """Return the source of a class. `python -OO` leaves out all docstrings but not the source."""
    (definition,) = ast.parse(inspect.getsource(config_class)).body
    return typing.cast("ast.ClassDef", definition)


def _field_docstrings(config_class: type) -> dict[str, str]:
    """Return the docstring below each field of a class and its bases, each as one line."""
    docstrings = {}

    for base in config_class.__mro__[:-1]:
        for statement, following in itertools.pairwise(_definition(base).body):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docstrings[name] = " ".join(text.split())
    return docstrings
