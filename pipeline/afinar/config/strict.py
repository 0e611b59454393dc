"""Strict conversion of parsed JSON or TOML to annotated types; nothing is coerced.

Types are dataclasses, TypedDicts, lists, tuples, dictionaries, literals and scalars. Keys without a
field are ignored, since a later version of a format may add some, unless the dataclass has
`EXACT_KEYS = True`. A field with a default may be missing, unless it has `ALL_KEYS = True`.

A field of the type `Annotated[T, check]` is converted to T, then `check(value)` returns the value
or raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from afinar.errors import AfinarError

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
Check = Callable[[T], T]

_NAMES: Final = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
UPDATE: Final = "update afinar"
"""End of a message on a value that a later version may have written."""

_MISSING: Final = "is missing"
_SHOWN: Final = 60  # characters of a wrong value in a message
_INT_LIMIT: Final = 2**63


class MismatchError(ValueError):
    """A value does not have the wanted type. `path` leads to the part that is wrong, "" for all."""

    def __init__(self, path: str, reason: str) -> None:
        separator = " " if reason == _MISSING else ": "
        super().__init__(f"{path}{separator}{reason}" if path else reason)
        self.path, self.reason = path, reason


def structure(value: Any, wanted: type[T]) -> T:
    """Return `value`, as a parser of JSON or TOML returned it, as an instance of `wanted`.

    Raises MismatchError. Its message has the path of the first part that is wrong, such as
    `classes[2]: expected text, found null`.
    """
    try:
        return _converter().structure(value, wanted)
    except Exception as error:
        raise _mismatch_of(error) from error


def conforms_to(wanted: type[Any]) -> Check[Any]:
    """Return a check that a parsed value has the form of `wanted`; it is not converted."""

    def check(value: Any) -> Any:
        structure(value, wanted)
        return value

    return check


def between(low: float, high: float) -> Check[Any]:
    """Return a check that a number is from `low` to `high`."""

    def check(value: Any) -> Any:
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g}, found {_show(value)}")
        return value

    return check


Count = Annotated[int, between(0, 2**53)]
"""A number of things, at most what a float can count."""


@lru_cache(maxsize=1)
def _converter() -> Converter:
    import cattrs  # 0.05 s that `--help` does not pay
    from cattrs.cols import (
        homogenous_tuple_structure_factory,
        is_mapping,
        is_mutable_sequence,
        list_structure_factory,
        mapping_structure_factory,
    )

    converter = cattrs.Converter()
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, _scalar)

    # cattrs would iterate over the letters of a text that stands in place of a list.
    for is_wanted, parsed, factory in (
        (is_mapping, dict, mapping_structure_factory),
        (is_typeddict, dict, _typeddict_factory),
        (is_dataclass, dict, _dataclass_factory),
        (is_mutable_sequence, list, list_structure_factory),
        (_is_tuple_of_one_type, list, homogenous_tuple_structure_factory),
        (_is_tuple_of_fields, list, _fixed_tuple_factory),
        (_is_union_with_literals, None, _union_factory),
        (partial(_has_origin, Literal), None, _literal_factory),
        (partial(_has_origin, Annotated), None, _checked_factory),
    ):
        converter.register_structure_hook_factory(is_wanted, _guarded(parsed, factory))
    return converter


def _has_origin(origin: Any, kind: Any) -> bool:
    return bool(get_origin(kind) is origin)


def _is_union_with_literals(kind: Any) -> bool:
    """Return True for a type with literals beside it, such as int | Literal["auto"]."""
    members = get_args(kind) if get_origin(kind) in {Union, UnionType} else ()
    return any(get_origin(member) is Literal for member in members)


def _is_tuple_of_one_type(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def _is_tuple_of_fields(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis


def _guarded(parsed: type | None, factory: Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory of hooks that take nothing but values of the type `parsed`."""

    def make(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
        hook = factory(wanted, converter)
        if parsed is None:
            return hook  # type: ignore[no-any-return]

        def convert(value: Any, _: Any) -> Any:
            _require(value, parsed)
            return hook(value, wanted)

        return convert

    return make


def _dataclass_factory(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    # cattrs resolves annotations that are strings, but without what Annotated adds.
    hints = get_type_hints(wanted, include_extras=True)
    for field in fields(wanted):
        field.type = hints[field.name]

    exact: bool = getattr(wanted, "EXACT_KEYS", False)
    hook = make_dict_structure_fn(wanted, converter, _cattrs_forbid_extra_keys=exact)
    if not getattr(wanted, "ALL_KEYS", False):
        return hook
    names = [field.name for field in fields(wanted)]

    def convert(value: Any, _: Any) -> Any:
        for name in names:
            if name not in value:
                raise MismatchError(name, _MISSING)
        return hook(value, wanted)

    return convert


def _typeddict_factory(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    # cattrs relies on `__optional_keys__`, which lacks `NotRequired` where annotations are strings.
    hints = get_type_hints(wanted, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    kinds = {name: get_args(hint)[0] if name in optional else hint for name, hint in hints.items()}
    optional |= wanted.__optional_keys__

    def convert(value: Any, _: Any) -> Any:
        converted = dict(value)
        for name, kind in kinds.items():
            if name in value:
                try:
                    converted[name] = converter.structure(value[name], kind)
                except Exception as error:
                    mismatch = _mismatch_of(error)
                    path = _join(name, mismatch.path)
                    raise MismatchError(path, mismatch.reason) from error
            elif name not in optional:
                raise MismatchError(name, _MISSING)
        return converted

    return convert


def _fixed_tuple_factory(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    kinds = get_args(wanted)

    def convert(value: Any, _: Any) -> Any:
        if len(value) != len(kinds):
            raise ValueError(f"expected {len(kinds)} values, found {len(value)}")
        return tuple(
            converter.structure(part, kind) for part, kind in zip(value, kinds, strict=True)
        )

    return convert


def _union_factory(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    literals = [member for member in get_args(wanted) if get_origin(member) is Literal]
    (kind,) = (member for member in get_args(wanted) if member not in literals)
    choices = {choice for literal in literals for choice in get_args(literal)}

    def convert(value: Any, _: Any) -> Any:
        is_choice = isinstance(value, str) and value in choices
        return value if is_choice else converter.structure(value, kind)

    return convert


def _literal_factory(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    del converter
    choices = get_args(wanted)

    def convert(value: Any, _: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, found {_show(value)}")
        return value

    return convert


def _checked_factory(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    kind, *metadata = get_args(wanted)
    checks = [check for check in metadata if callable(check)]

    def convert(value: Any, _: Any) -> Any:
        converted = converter.structure(value, kind)
        for check in checks:
            converted = check(converted)
        return converted

    return convert


def _scalar(value: Any, wanted: type) -> Any:
    """Return the value if it has exactly this type; a whole number is converted to a float.

    JSON and TOML have types, so that the string "64" is a mistake for the number 64.
    """
    if wanted is float and type(value) is int and abs(value) < _INT_LIMIT:
        value = float(value)
    _require(value, wanted)
    if wanted is int and not -_INT_LIMIT <= value < _INT_LIMIT:
        raise ValueError(f"expected a number of 64 bits, found {_show(value)}")
    if wanted is float and not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    if wanted is str:
        _require_unicode(value)
    return value


def _require(value: Any, wanted: type) -> None:
    if type(value) is not wanted:
        raise TypeError(f"expected {_NAMES[wanted]}, found {_show(value)}")


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        # A lone surrogate, which JSON can express, cannot be written to any file.
        raise ValueError(f"expected text, found {_show(text)}, which is not Unicode") from None


def _show(value: Any) -> str:
    """Return a short description of a value for a message."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= _INT_LIMIT:
        return "a larger number"
    shown = ascii(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _mismatch_of(error: Exception) -> MismatchError:
    """Return path and reason of the first mistake in an error of cattrs."""
    from cattrs import AttributeValidationNote, IterableValidationNote

    path = ""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
        for note in getattr(error, "__notes__", ()):
            if isinstance(note, AttributeValidationNote):
                path += f".{note.name}"
            elif isinstance(note, IterableValidationNote):
                path += f".{note.index}" if isinstance(note.index, str) else f"[{note.index}]"

    path = ascii(path.lstrip("."))[1:-1]
    if isinstance(error, MismatchError):  # of a part that was converted by itself
        return MismatchError(_join(path, error.path), error.reason)
    return MismatchError(path, _MISSING if isinstance(error, KeyError) else _reason(error))


def _join(path: str, part: str) -> str:
    return f"{path}{part}" if part.startswith("[") else ".".join(filter(None, (path, part)))


def _reason(error: Exception) -> str:
    extra = getattr(error, "extra_fields", None)  # of cattrs' ForbiddenExtraKeysError
    if extra:
        return f"{ascii(min(extra))[:_SHOWN]} is unknown to this version of afinar: {UPDATE}"
    ours = isinstance(error, AfinarError | ValueError | TypeError)
    text = str(error.args[0]) if ours and error.args else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
