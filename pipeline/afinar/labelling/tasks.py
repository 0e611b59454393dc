"""Units of a labelling as they travel from the driver to a worker. Needs no torch: the driver has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final

from afinar.config.base import Precision
from afinar.labelling.source import Source
from afinar.pictures.preprocessing import StoredView
from afinar.predictions.columns import NO_OPTIONAL_COLUMNS, OptionalColumns
from afinar.sources.entry import Entry
from afinar.units.executor import Preprocessing

UNIT_PICTURES: Final = (
    512  # at most: what a killed worker costs, a few seconds to a minute of one core
)
_LEAST_S: Final = 60.0  # of a deadline, unless it is set to less
_BLOCK: Final = 64  # pictures: 10 MB at 224 px; a unit has eight of them under way at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec:
    """What every unit of one labelling shares. `model` names an exact version, never an alias; `pictures` are those of
    all units."""

    source: Source
    predictions: str
    partition: str
    model: str
    top_k: int
    batch_size: int
    precision: Precision
    pictures: int
    extras: OptionalColumns = NO_OPTIONAL_COLUMNS


@dataclass(frozen=True, slots=True)
class LabelTask:
    """One unit of work: the pictures of one part. `attempt` counts the workers that were lost with it."""

    unit: str
    entries: tuple[Entry, ...]
    attempt: int = 0

    def next_attempt(self) -> LabelTask:
        """The unit once more."""
        return replace(self, attempt=self.attempt + 1)


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker tells the driver: counts, and the seconds that each stage took."""

    unit: str
    pictures: int
    rejects: int
    stages: dict[str, float]


def deadline_s(timeout_s: float, task: LabelTask) -> float:
    """A unit's share of what a full one may take, but a minute at least: one picture may be a large one."""
    return max(timeout_s * len(task.entries) / UNIT_PICTURES, min(timeout_s, _LEAST_S))


def make_labeller(spec: LabelSpec) -> Callable[[LabelTask], UnitResult]:
    """Make the work of one worker process; torch is imported there, not in the driver."""
    from afinar.labelling.worker import Labeller

    return Labeller(spec)


def preprocessing_for(source: Source, view: StoredView) -> Preprocessing[LabelTask]:
    """How pictures are seen by cores that feed a worker's GPU: in blocks of the stored view."""

    def blocks(task: LabelTask) -> list[Sequence[Entry]]:
        return [
            task.entries[start : start + _BLOCK] for start in range(0, len(task.entries), _BLOCK)
        ]

    return Preprocessing(blocks=blocks, prepare=partial(_prepared, source, view))


def _prepared(source: Source, view: StoredView, entries: Sequence[Entry]) -> Any:
    from afinar.inference.picture_stream import make_block

    return make_block(_opened(source, view), entries)


@lru_cache(maxsize=1)
def _opened(source: Source, view: StoredView) -> Any:
    """Pictures for all blocks that a process prepares: a dataset's manifest and shard are read once."""
    return source.open(view)
