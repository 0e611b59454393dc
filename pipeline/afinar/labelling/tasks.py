"""Units of a labelling as the driver sends them to workers. Needs no torch: the driver has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from afinar.config.base import Precision
from afinar.labelling.source import Source
from afinar.pictures.preprocessing import StoredView
from afinar.predictions.columns import NO_OPTIONAL_COLUMNS, OptionalColumns
from afinar.sources.entry import Entry
from afinar.units.executor import Preprocessing
from afinar.units.tasks import UnitTask

if TYPE_CHECKING:
    from afinar.inference.picture_batches import Block, Pictures

UNIT_PICTURES: Final = 512
"""Largest unit. A killed worker loses at most this: between a few seconds and a minute of one
core."""

_BLOCK: Final = 64  # pictures: 10 MB at 224 px; eight blocks of a unit are prepared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec:
    """Values that all units of one labelling share.

    `model` is MODELS@<id of a version>, never an alias. `batch_size` 0 is chosen by measuring, if
    `pictures`, the number in all units, is large enough. `forgotten` are content hashes of pictures
    that were erased on request.
    """

    source: Source
    predictions: str
    partition: str
    model: str
    top_k: int
    batch_size: int
    precision: Precision
    pictures: int
    optional_columns: OptionalColumns = NO_OPTIONAL_COLUMNS
    forgotten: frozenset[str] = frozenset()


def preprocessing_for(source: Source, view: StoredView) -> Preprocessing[UnitTask] | None:
    """Return how CPU cores prepare a unit's pictures, in blocks, for a worker with a GPU.

    None for a source whose rows need no decoding: the worker copies them itself.
    """
    if not source.needs_decoding(view):
        return None
    return Preprocessing(blocks=_split_into_blocks, prepare=partial(_make_block, source, view))


def _split_into_blocks(task: UnitTask) -> list[Sequence[Entry]]:
    starts = range(0, len(task.entries), _BLOCK)
    return [task.entries[start : start + _BLOCK] for start in starts]


def _make_block(source: Source, view: StoredView, entries: Sequence[Entry]) -> Block:
    from afinar.inference.picture_batches import make_block
    from afinar.pictures.decode import configure_pillow

    configure_pillow()
    return make_block(_open_pictures(source, view), entries, view.size)


@lru_cache(maxsize=1)
def _open_pictures(source: Source, view: StoredView) -> Pictures:
    """Open the source once per process: a dataset's manifest is read once for all blocks."""
    return source.open_pictures(view)
