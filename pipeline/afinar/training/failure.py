"""An error that another attempt would meet again, left where the driver and later attempts find it."""

from __future__ import annotations

import json

from afinar import errors
from afinar.errors import AfinarError, NotFoundError
from afinar.storage.store import Store


def record_failure(store: Store, run: str, error: AfinarError) -> None:
    """Leave the first such error of a run."""
    record = {"kind": type(error).__name__, "sentence": str(error)}
    store.put_if_absent(_name(run), json.dumps(record).encode())


def read_failure(store: Store, run: str) -> AfinarError | None:
    """The error that was left, as its own kind."""
    try:
        record = json.loads(store.get(_name(run)))
    except NotFoundError:
        return None
    kind = getattr(errors, record["kind"], AfinarError)
    return (
        kind(record["sentence"])
        if kind is not errors.PictureError
        else AfinarError(record["sentence"])
    )


def withdraw_failure(store: Store, run: str) -> None:
    """The run is tried anew: what stopped it may have been mended."""
    store.delete(_name(run))


def _name(run: str) -> str:
    return f"runs/{run}/failure.json"
