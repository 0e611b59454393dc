"""Everything this project raises on purpose.

AfinarError
├── RequestError        the request is wrong: says what, and what to change        (exit code 2)
├── ShortfallError      the job ran and fell short: reject budget, failed gate      (exit code 1)
├── StorageError        the store did not do what it was asked                      (exit code 1)
│   ├── NotFoundError       no such object
│   ├── ForbiddenError      the store says no
│   ├── ChangedError        the object is no longer the one that was listed
│   ├── IntegrityError      bytes differ from the hash they were committed under
│   └── UnsafePathError     a name, a link or a folder leads out of the place it belongs to
├── ModelError          a published model does not behave as it did when published  (exit code 1)
└── PictureError        one picture cannot be used; becomes a reject, never ends a job

A bug is any other exception.
"""

from __future__ import annotations


class AfinarError(Exception):
    """Base of the tree. `exit_code` is what a job ends with when the error reaches the command line."""

    exit_code = 1


class RequestError(AfinarError):
    """The request cannot be carried out as written; the message says what to change."""

    exit_code = 2


class ShortfallError(AfinarError):
    """The job ran to its end and its result is not good enough to publish."""


class StorageError(AfinarError):
    """The store failed an operation, after its bounded retries."""


class NotFoundError(StorageError):
    """There is no object of that name."""


class ForbiddenError(StorageError):
    """The store refuses the operation to these credentials."""


class ChangedError(StorageError):
    """The object is not the one that was listed."""


class IntegrityError(StorageError):
    """An object's bytes do not have the hash it was committed under."""


class UnsafePathError(StorageError):
    """A name read from a record, or a link on disk, leads out of the folder that it belongs to."""


class ModelError(AfinarError):
    """A published model answers its golden samples differently than on the day it was published."""
