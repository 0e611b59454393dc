"""Shared parts of FolderReader and LocalStore: etags of files, reading, and errors."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from afinar.errors import (
    ChangedError,
    ForbiddenError,
    IntegrityError,
    NoSpaceError,
    NotFoundError,
    StorageError,
)

# O_NONBLOCK: opening a FIFO without a writer would block for ever.
READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def etag_of(status: os.stat_result) -> str:
    """Return the etag of a file: its size and the time of its last change in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_descriptor(
    descriptor: int, path: str, etag: str | None = None, max_bytes: int | None = None
) -> bytes:
    """Read a file to its end and close the descriptor.

    Raises NotFoundError for anything but a regular file, IntegrityError for one with more than
    `max_bytes`, and ChangedError if `etag` is given and the file had another one after it was read,
    or another size.
    """
    try:
        status = os.fstat(descriptor)
        require_regular(status, path)
        require_at_most(status.st_size, max_bytes=max_bytes, uri=path)
        data = _read_all(descriptor, status.st_size)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)

    # mtime has the grain of the kernel's clock, 4 ms: a file that is being rewritten may have the
    # etag of before, but then what was read is shorter than the file.
    if etag is not None and (etag_of(status) != etag or len(data) != status.st_size):
        raise ChangedError(f"{path} changed since it was listed")
    return data


def _read_all(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size + 1)
    if len(data) == size:  # one more byte was asked for, so this is the end of the file
        return data

    pieces = [data]  # the file grows, or is larger than the 2 GB of one call
    while piece := os.read(descriptor, 2**24):
        pieces.append(piece)
    return b"".join(pieces)


def require_at_most(size_bytes: int, *, max_bytes: int | None, uri: str) -> None:
    """Raise IntegrityError for an object that is larger than `max_bytes`; None is no limit.

    The message does not tell the size: the name may be that of any file that a forged record names.
    """
    if max_bytes is not None and size_bytes > max_bytes:
        raise IntegrityError(
            f"{uri} is not what was committed: it is larger than it may be. Restore it from a "
            "backup, or remove it and run the job that made it again."
        )


def require_regular(status: os.stat_result, path: str) -> None:
    """Raise NotFoundError for a folder, a pipe, a socket or a device."""
    if not stat.S_ISREG(status.st_mode):
        raise NotFoundError(f"{path} is not a regular file")


# A byte that is not UTF-8, or a backslash that would read as the beginning of an escape.
_TO_ESCAPE: Final = re.compile(r"[\udc80-\udcff]|\\(?=x(?:5c|[89a-f][0-9a-f]))")
_ESCAPED: Final = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")


def as_text(name: str) -> str:
    r"""Return a file's name as text for a table: names that are not UTF-8 are escaped.

    Two names never give the same text, and `as_name` is the inverse. Byte ff becomes `\xff`. A file
    whose name contains these four characters gets its backslash escaped, as `\x5cxff`. All other
    names are unchanged.
    """
    if name.isascii() and "\\x" not in name:
        return name
    return _TO_ESCAPE.sub(_escape, name)


def _escape(match: re.Match[str]) -> str:
    (byte,) = os.fsencode(match[0])
    return f"\\x{byte:02x}"


def as_name(text: str) -> str:
    """Return the file's name of a text that `as_text` made."""
    if "\\x" not in text:
        return text
    name = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(text))
    return os.fsdecode(name)


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Raise errors of the operating system as StorageError, with `path` in the message."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error
    except PermissionError as error:
        raise ForbiddenError(f"{path}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            raise NotFoundError(f"{path}: {error.strerror}") from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(
                f"{path} could not be written: no space left there. Free some and run again."
            ) from error
        raise StorageError(f"{path}: {error.strerror or error}") from error
