"""Parser of command lines: flags over the values of a recipe become a job configuration."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import shutil
import typing
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import tyro

from afinar.config.base import POSITIONAL, JobConfig, flag_name
from afinar.config.presets import load_defaults
from afinar.errors import RequestError
from afinar.logs import COLUMNS, wrap

C = TypeVar("C", bound=JobConfig)

# What other tools call a flag, if it looks unlike ours: tyro suggests names that look alike.
_OTHER_NAMES: Final = {
    "--lr": "--learning-rate",
    "--wd": "--weight-decay",
    "--bs": "--batch-size",
    "--arch": "--backbone",
    "--model": "--backbone",
    "--rate": "--learning-rate",
    "--time": "--time-limit",
    "--presets": "--preset",
    "--corrections": "--add-labels",
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


def parse(
    config_class: type[C], argv: list[str], prog: str, example: str, description: str = ""
) -> C:
    """Parse the arguments of a job. `description` replaces the docstring of its class.

    Exits with code 2 on wrong arguments and with 0 after --help. Raises RequestError for a wrong
    recipe or a wrong value.
    """
    _refuse_other_names(config_class, argv)
    preset = _find_flag(argv, "preset") if "preset" in _field_names(config_class) else None
    defaults = load_defaults(config_class, _find_flag(argv, "recipe"), preset)
    docstring = ast.get_docstring(_definition(config_class)) or ""
    columns = min(shutil.get_terminal_size().columns, COLUMNS)
    # tyro keeps the break before a line that is indented, and joins other lines.
    paragraphs = [
        wrap(" ".join(text.split()), columns=columns)
        for text in (description or docstring).split("\n\n")
    ]
    parsed: Any = tyro.cli(
        _parser_class(config_class, defaults),
        args=argv,
        prog=prog,
        description="\n\n".join([*paragraphs, f"Example:\n  {example}"]),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    groups = [getattr(parsed, name) for name in config_class.GROUPS]
    values = {name: value for part in (parsed, *groups) for name, value in vars(part).items()}

    return config_class(**{name: values[name] for name in _field_names(config_class)})


def _field_names(config_class: type[JobConfig]) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class)]


def _refuse_other_names(config_class: type[JobConfig], argv: list[str]) -> None:
    """Raise RequestError for a flag that has another name here."""
    ours = {f"--{flag_name(name)}" for name in _field_names(config_class)}
    for word in argv:
        flag = word.partition("=")[0]
        wanted = [name for name in _OTHER_NAMES.get(flag, "").split(" or ") if name in ours]
        if flag not in ours and wanted:
            raise RequestError(f"{flag} is called {' or '.join(wanted)} here")


def _find_flag(argv: list[str], name: str) -> str | None:
    """Return the value of a flag that decides on the defaults of others, None if it is absent."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{name}")
    try:
        return typing.cast("str | None", getattr(parser.parse_known_args(argv)[0], name))
    except argparse.ArgumentError:
        return None  # the flag without a value: tyro reports it


def _parser_class(config_class: type[JobConfig], recipe: dict[str, Any]) -> type:
    """Return a dataclass of the same fields for tyro, with the values of the recipe as defaults.

    The fields of a group are in a dataclass of their own, so that --help shows them under one
    heading. The constructors do not validate: tyro would report a RequestError as a bug.
    """
    hints = typing.get_type_hints(config_class, include_extras=True)
    help_texts = field_docstrings(config_class)
    own: list[tuple[str, Any, Any]] = []
    groups: dict[str, list[tuple[str, Any, Any]]] = {name: [] for name in config_class.GROUPS}
    places = {name: group for group, names in config_class.GROUPS.items() for name in names}
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    in_order = [name for name in defaults if name not in places]
    in_order += [name for names in config_class.GROUPS.values() for name in names]
    for name in in_order:
        field_type = _parser_type(name, hints[name], help_texts[name])
        default = dataclasses.field(default=recipe.get(name, defaults[name]))
        fields = groups[places[name]] if name in places else own
        fields.append((name, field_type, default))

    for group, fields in groups.items():
        nested: Any = dataclasses.make_dataclass(group, fields, frozen=True, kw_only=True)
        own.append((group, nested, dataclasses.field(default_factory=nested)))
    return dataclasses.make_dataclass(config_class.__name__, own, frozen=True, kw_only=True)


def _parser_type(name: str, hint: Any, help_text: str) -> Any:
    """Return the type of a field, annotated for tyro."""
    is_positional = get_origin(hint) is Annotated and POSITIONAL in hint.__metadata__
    field_type: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    # Shown as --model MODEL; other types keep tyro's own, such as INT or {crop,pad,squash}.
    is_text = field_type in {str, str | None, tuple[str, ...]}
    argument = tyro.conf.arg(
        name=flag_name(name) if name.endswith("_") else None,
        help=help_text,
        metavar=flag_name(name).replace("-", "_").upper() if is_text else None,
        help_behavior_hint=_default_hint,
    )
    field_type = Annotated[field_type, argument]
    return Annotated[field_type, tyro.conf.Positional] if is_positional else field_type


def _default_hint(default: str) -> str:
    """Return the default as --help shows it, nothing for a flag that is off."""
    return "" if default in {"''", "None", "False", ""} else f"(default: {default})"


def _definition(config_class: type) -> ast.ClassDef:
    """Return the source of a class. `python -OO` leaves out all docstrings but not the source."""
    (definition,) = ast.parse(inspect.getsource(config_class)).body
    return typing.cast("ast.ClassDef", definition)


def field_docstrings(config_class: type) -> dict[str, str]:
    """Return the docstring below each field of a class and its bases, each as one line.

    The docstring of a class goes before those of its bases.
    """
    docstrings = {}

    for base in reversed(config_class.__mro__[:-1]):
        for statement, following in itertools.pairwise(_definition(base).body):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docstrings[name] = " ".join(text.split())
    return docstrings
