"""Records: small JSON files of a store, read strictly, because they may come from a stranger.

Whatever is wrong with a record, the error is one sentence with the record's URI and the path of the
field. Record types are dataclasses; `config/strict.py` says what their fields may be.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, NoReturn, TypeVar

from afinar.config.strict import UPDATE, MismatchError, structure
from afinar.errors import RecordError
from afinar.storage.names import check_identifier, split_name
from afinar.storage.store import Store

T = TypeVar("T")
Record = dict[str, Any]

MAX_BYTES: Final = 64 * 2**20
"""Largest record. The largest real ones are heads of datasets from which many pictures were erased:
67 bytes for each."""

REMEDY: Final = "restore it from a backup, or remove what it belongs to and make that again"


def _run_folder(value: str) -> str:
    folder, _, run = value.partition("/")
    if folder != "runs":
        raise ValueError(f"{value[:200]!r} is not the folder of a run")
    check_identifier(run, "the name of a run")
    return value


def _object_name(value: str) -> str:
    split_name(value)
    return value


RunName = Annotated[str, lambda value: check_identifier(value, "the name of a run")]
"""Name of a run, which is a folder below `runs/`."""

RunFolder = Annotated[str, _run_folder]
"""`runs/` and the name of a run."""

ObjectName = Annotated[str, _object_name]
"""Name of an object, which does not lead out of its store."""


def read_record(store: Store, name: str, record_type: type[T], remedy: str = REMEDY) -> T:
    """Read and check one record. Raises RecordError, or NotFoundError if there is none."""
    return as_record(read_object(store, name), record_type, store.uri(name), remedy)


def read_object(store: Store, name: str) -> Record:
    """Read a record as a JSON object; its fields are not checked."""
    return parse_object(store.get(name, max_bytes=MAX_BYTES), store.uri(name))


def as_record(value: Record, record_type: type[T], uri: str, remedy: str = REMEDY) -> T:
    """Check the fields of a JSON object. Raises RecordError with the path of a wrong one."""
    try:
        return structure(value, record_type)
    except MismatchError as error:
        advice = "" if error.reason.endswith(UPDATE) else f"; {remedy}"
        raise RecordError(f"{uri}: {error}{advice}") from error


def parse_object(data: bytes, uri: str, remedy: str = REMEDY) -> Record:
    """Parse a JSON object.

    Raises RecordError for anything else: other values, text that is not UTF-8, a key twice, NaN.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise RecordError(f"{uri} is not UTF-8 text; {remedy}") from error
    except RecursionError as error:
        raise RecordError(f"{uri} is nested too deeply; {remedy}") from error
    except ValueError as error:
        reason = str(error) if data.strip() else "it is empty"
        raise RecordError(f"{uri} is not JSON ({reason}); {remedy}") from error

    if not isinstance(value, dict):
        raise RecordError(f"{uri} is not a JSON object; {remedy}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    for key in record:
        key.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
    if len(record) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {ascii(repeated)[:60]} occurs twice")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
