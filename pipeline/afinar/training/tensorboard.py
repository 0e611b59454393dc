"""TensorBoard event files: one per epoch, because an object store cannot append to a file."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from afinar.storage.files import translate_errors
from afinar.storage.store import Store

logger = logging.getLogger(__name__)


def event_file(row: dict[str, Any], run: str) -> bytes | None:
    """Return the numbers of one epoch's history row as the bytes of an event file.

    The step is `row["epoch"]`. Nested names are joined by slashes (`val/top1`); values that are not
    numbers are left out. Returns None if tensorboardX, which Ray Train installs, is missing; that
    is logged once per `run`.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        _log_missing_library(run)
        return None

    with translate_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(logdir=folder) as writer:
            for name, value in _scalars(row):
                if name != "epoch":
                    writer.add_scalar(name, value, global_step=row["epoch"])
        (path,) = Path(folder).iterdir()
        return path.read_bytes()


def put_event_file(store: Store, run: str, row: dict[str, Any]) -> None:
    """Write an epoch's event file into the run folder; TensorBoard can watch it during training."""
    data = event_file(row, run)
    if data is not None:
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"runs/{run}/tensorboard/events.out.tfevents.{row['epoch']:06d}.afinar"
        store.put_if_absent(name, data)


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


@cache
def _log_missing_library(run: str) -> None:
    logger.info(
        f"note: tensorboardX is not installed here, so {run} gets no TensorBoard files; "
        "history.jsonl has the numbers"
    )
