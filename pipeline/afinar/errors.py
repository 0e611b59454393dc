"""Exceptions that this project raises on purpose.

AfinarError
├── RequestError        the request is wrong; the message tells what to change (exit code 2)
│   └── RecordError         a record or a table that was read is damaged or forged
├── ShortfallError      the job ran, but missed its reject budget or its gate (exit code 1)
│   └── DivergedError       a training's numbers are not finite; the same request ends so again
├── UnknownOutcomeError the cluster does not answer: a submitted job may go on (exit code 3)
├── StorageError        an operation of a store failed (exit code 1)
│   ├── NotFoundError       no object of that name
│   ├── ForbiddenError      the credentials do not permit the operation
│   ├── NoSpaceError        a disk or a quota is full
│   ├── ChangedError        the object is not the one that was listed
│   ├── IntegrityError      the bytes do not have the hash they were committed under
│   └── UnsafePathError     a name, a link or a folder leads out of its store
├── ModelError          a published model does not reproduce its golden samples (exit code 1)
└── PictureError        one picture cannot be used: a reject; defined in pictures/rejects.py

Any other exception is a bug.
"""

from __future__ import annotations


class AfinarError(Exception):
    """Base of the tree. `exit_code` is the exit code of a job that the error ends."""

    exit_code = 1


class RequestError(AfinarError):
    """The request cannot be carried out as written. The message tells what to change."""

    exit_code = 2


class RecordError(RequestError):
    """A record or a table of a dataset, a model or predictions is damaged or forged."""


class ShortfallError(AfinarError):
    """The job ran to its end and its result is not good enough to publish."""


class UnknownOutcomeError(AfinarError):
    """The cluster no longer answers: a submitted job may go on, or have ended in any way."""

    exit_code = 3


class DivergedError(ShortfallError):
    """The numbers of a training are no longer finite. The same request ends so again."""


class StorageError(AfinarError):
    """An operation of a store failed, after its bounded retries."""


class NotFoundError(StorageError):
    """There is no object of that name."""


class ForbiddenError(StorageError):
    """The store refuses the operation to these credentials."""


class NoSpaceError(StorageError):
    """There is no space left where an object is to be written: a retry would fail too."""


class ChangedError(StorageError):
    """The object is not the one that was listed."""


class IntegrityError(StorageError):
    """The bytes of an object do not have the hash they were committed under."""


class UnsafePathError(StorageError):
    """A name read from a record, or a link on disk, leads out of the store that it belongs to."""


class ModelError(AfinarError):
    """A published model does not reproduce the golden samples it was published with."""
