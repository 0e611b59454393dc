"""Units of a labelling as they travel from the driver to a worker. Needs no torch: the driver has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.config import Precision
from pipeline.dataset.schema import Entry
from pipeline.labelling.extras import PLAIN, Extras
from pipeline.labelling.source import Source


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
    extras: Extras = PLAIN


@dataclass(frozen=True, slots=True)
class LabelTask:
    """One unit of work: the pictures of one part. `attempt` counts the workers that were lost with it."""

    unit: str
    entries: tuple[Entry, ...]
    attempt: int = 0

    def again(self) -> LabelTask:
        """The unit once more."""
        return replace(self, attempt=self.attempt + 1)


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker tells the driver: counts, and the seconds that each stage took."""

    unit: str
    pictures: int
    rejects: int
    stages: dict[str, float]


def make_labeller(spec: LabelSpec) -> Callable[[LabelTask], UnitResult]:
    """Make the work of one worker process; torch is imported there, not in the driver."""
    from pipeline.labelling.worker import Labeller

    return Labeller(spec)
