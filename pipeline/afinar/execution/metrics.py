"""What jobs tell Prometheus, by way of Ray: the metrics agent of the driver's node exports it with Ray's own numbers.

The driver counts each unit when its result arrives, which it does a few times a second at most; Ray sends the sums to
the agent every ten seconds. Prometheus sees the names with `ray_` before them and `_total` behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol, TypeVar, runtime_checkable
from urllib.parse import quote

from ray.util.metrics import Counter

logger = logging.getLogger(__name__)


Result = TypeVar("Result")

NAMES: Final[Mapping[str, str]] = {
    "afinar_pictures": "Pictures that were looked at, rejects included",
    "afinar_rejects": "Pictures that could not be used",
    "afinar_units": "Units of work that were done",
    "afinar_units_retried": "Units of work that were handed out again",
    "afinar_stage_seconds": "Seconds of all workers by stage",
}
TAGS: Final = ("command", "source", "target")  # `job` is Prometheus's own


@runtime_checkable
class UnitOutcome(Protocol):
    """A result that is counted: what an ingest's or a labelling's worker tells of a unit. Others pass uncounted."""

    pictures: int
    rejects: int
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class JobMetrics:
    """One job's counters: `command` is its kind (`ingest`, `label`), `source` and `target` are URIs."""

    command: str
    source: str
    target: str

    def counted(self, results: Iterator[Result]) -> Iterator[Result]:
        """The same results, each counted as it passes; to be iterated while Ray is connected."""
        for result in results:
            if isinstance(result, UnitOutcome):
                self.done(result)
            yield result

    def done(self, outcome: UnitOutcome) -> None:
        """Count one finished unit."""
        self._add("afinar_units", 1)
        self._add("afinar_pictures", outcome.pictures)
        self._add("afinar_rejects", outcome.rejects)
        for stage, seconds in outcome.stages.items():
            self._add("afinar_stage_seconds", seconds, stage=stage)

    def retried(self, units: int = 1) -> None:
        """Count units that are handed out again: their worker died, hung or was lost."""
        self._add("afinar_units_retried", units)

    def _add(self, name: str, amount: float, **more: str) -> None:
        """Add to a counter. A counter that fails is reported once and never ends a job."""
        if amount <= 0:  # a counter refuses zero
            return
        tags = {"command": self.command, "source": self.source, "target": self.target, **more}
        try:
            _counter(name).inc(amount, {tag: ascii_tag(value) for tag, value in tags.items()})
        except Exception as error:  # noqa: BLE001  (whatever a metrics library raises, the job's work is whole)
            _report_once(f"note: metrics are not counted: {error}")


def ascii_tag(value: str) -> str:
    """Return a tag's value as Ray takes it, in ASCII: other characters are percent-encoded as in a URL.

    `/data/José` becomes `/data/Jos%C3%A9`. What is ASCII, `%` included, stays as it is.
    """
    return "".join(
        letter if letter.isascii() else quote(letter, errors="surrogatepass") for letter in value
    )


@cache
def _report_once(sentence: str) -> None:
    logger.info(sentence)


@cache
def _counter(name: str) -> Counter:
    tags = (*TAGS, "stage") if name == "afinar_stage_seconds" else TAGS
    return Counter(name, NAMES[name], tags)
