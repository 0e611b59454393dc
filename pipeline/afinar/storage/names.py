"""Names of objects in a store, and patterns of identifiers that become parts of such names.

Datasets, models and predictions may come from strangers, so a name that was read from a record is
data. It is checked here before it becomes a path.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Final

from afinar.errors import UnsafePathError

_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")
_MODEL_ID: Final = re.compile(r"[0-9]+-[0-9a-f]{8}")
_PARTITION: Final = re.compile(r"[0-9]+-[0-9a-f]{8}(-[0-9A-Za-z.+-]+)?")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def split_name(name: str) -> list[str]:
    """Return the parts of an object's name.

    Raises UnsafePathError for a name that could lead out of its store: an empty part (so also a
    leading or trailing slash), `.`, `..`, NUL, or text that is not valid Unicode.
    """
    if not isinstance(name, str):
        raise UnsafePathError(f"{name!r} is not the name of an object: it is not text")
    parts = name.split("/")
    if "\0" in name or any(part in {"", ".", ".."} for part in parts) or not is_unicode(name):
        raise UnsafePathError(
            f"{name!r} is not the name of an object: it has an empty part, `.`, `..` or NUL"
        )

    return parts


def is_safe_name(name: str) -> bool:
    """Return True if `split_name` accepts the name."""
    try:
        split_name(name)
    except UnsafePathError:
        return False
    return True


def is_unicode(name: str) -> bool:
    """Return False for text with lone surrogates: bytes of a file name that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can express
        return False
    return True


def new_run() -> str:
    """Return the name of a new run: its start in UTC and six random hex digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def check_identifier(value: object, what: str) -> str:
    """Return the name of a run or a unit that was read from a record: letters, digits, `_` and `-`.

    Raises UnsafePathError for anything else; `what` names the field in the message.
    """
    return _check(value, _IDENTIFIER, what)


def check_model_id(value: object) -> str:
    """Return the id of a model version that was read from a record: `<N>-<8 hex digits>`.

    Raises UnsafePathError for anything else.
    """
    return _check(value, _MODEL_ID, "the id of a model version")


def check_partition(value: object) -> str:
    """Return the name of a partition of predictions that was read from a record.

    It is a model's id and the options that change its rows, such as `3-0a1b2c3d-top3-scores`.
    Raises UnsafePathError for anything else.
    """
    return _check(value, _PARTITION, "the name of a partition")


def check_sha256(value: object) -> str:
    """Return a SHA-256 in hex that was read from a record, or raise UnsafePathError."""
    return _check(value, _SHA256, "a SHA-256")


def _check(value: object, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UnsafePathError(
            f"{str(value)[:200]!r} is not {what}; the record that holds it is damaged or forged"
        )
    return value
