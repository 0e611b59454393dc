"""What TensorBoard reads of a training: one event file per epoch, so that a store without appends can hold them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from afinar.storage.store import Store

logger = logging.getLogger(__name__)


def event_file(row: dict[str, Any], run: str) -> bytes | None:
    """The numbers of one epoch's `row`, as the bytes of an event file whose step is `row["epoch"]`.

    Nested names are joined by slashes: `val/top1`; what is no number is left out. TensorBoard reads a folder's files
    in the order of their names. None, said once per `run`, where tensorboardX is not installed: it comes with Ray.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        _note(run)
        return None
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(logdir=folder) as writer:
            for name, value in _scalars(row):
                if name != "epoch":
                    writer.add_scalar(name, value, global_step=row["epoch"])
        (written,) = Path(folder).iterdir()
        return written.read_bytes()


def put_event_file(store: Store, run: str, row: dict[str, Any]) -> None:
    """Put an epoch's event file into the run's folder, where TensorBoard finds it while the training goes on."""
    data = event_file(row, run)
    if data is not None:
        store.put_if_absent(
            f"runs/{run}/tensorboard/events.out.tfevents.{row['epoch']:06d}.afinar", data
        )


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


@cache
def _note(run: str) -> None:
    logger.info(
        f"note: tensorboardX is not installed here, so {run} gets no TensorBoard files; history.jsonl has the numbers"
    )
