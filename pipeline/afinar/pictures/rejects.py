"""Rejected pictures: the reasons, which of them are worth another try, and the budget of a job.

A picture that cannot be used raises PictureError where it is read or decoded. A worker turns the
error into a row of rejects (uri, etag, reason, detail). A driver compares the number of such rows
with the job's budget."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from afinar.errors import AfinarError


class Reason(StrEnum):
    """Reason for a reject. The set is closed: reports, budgets and retries rely on it."""

    EMPTY = "empty"
    UNIDENTIFIED = "unidentified"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_LONG_SIDE = "too_long_side"
    TOO_ELONGATED = "too_elongated"
    TOO_COMPLEX = "too_complex"
    TOO_MUCH_MEMORY = "too_much_memory"
    KILLED_WORKER = "killed_worker"
    FORGOTTEN = "forgotten"
    CHANGED_WHILE_READING = "changed_while_reading"
    MISSING = "missing"
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"

    @property
    def transient(self) -> bool:
        """Return True if the next run should try the same picture again."""
        return self in TRANSIENT


TRANSIENT: Final = frozenset(
    str(reason)
    for reason in (
        Reason.CHANGED_WHILE_READING,
        Reason.MISSING,
        Reason.FORBIDDEN,
        Reason.UNREACHABLE,
        Reason.TOO_MUCH_MEMORY,
    )
)
"""Reasons that may not apply to the next run, as they are written in a `reason` column."""


class PictureError(AfinarError):
    """One picture cannot be used. `detail` is the message of the decoder or of the store."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


ERASED: Final = PictureError(Reason.FORGOTTEN, "erased on request; it must not come back")
"""The reject of a picture that `afinar forget` has erased."""


def exceeds_budget(rejected: int, listed: int, max_reject_rate: float) -> bool:
    """Return True if more than a share of `max_reject_rate` (0 to 1) was rejected."""
    return rejected > max_reject_rate * listed
