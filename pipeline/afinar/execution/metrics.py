"""Prometheus counters of jobs, exported through Ray by the metrics agent of the driver's node.

The driver counts each unit when its result arrives, a few times a second at most. Ray sends the
sums to the agent every ten seconds, and exports each name with the prefix `ray_` and the suffix
`_total`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from afinar.units.results import UnitResult

if TYPE_CHECKING:
    from ray.util.metrics import Counter

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

NAMES: Final[Mapping[str, str]] = {
    "afinar_pictures": "Pictures that were processed, rejects included",
    "afinar_rejects": "Pictures that could not be used",
    "afinar_units": "Units of work that were finished",
    "afinar_units_retried": "Units of work that were submitted again",
    "afinar_stage_seconds": "Seconds of all workers by phase",
}
TAGS: Final = ("command", "source", "target")  # Prometheus uses `job` itself


@dataclass(frozen=True, slots=True)
class JobMetrics:
    """Counters of one job. `command` is `ingest` or `label`; `source` and `target` are URIs."""

    command: str
    source: str
    target: str

    def count_results(self, results: Iterator[Result]) -> Iterator[Result]:
        """Yield the results and count each UnitResult. Ray has to be connected meanwhile."""
        for result in results:
            if isinstance(result, UnitResult):
                self.count_unit(result)
            yield result

    def count_unit(self, result: UnitResult) -> None:
        """Count one finished unit."""
        self._add("afinar_units", 1)
        self._add("afinar_pictures", result.pictures)
        self._add("afinar_rejects", result.rejects)
        for phase, seconds in result.phases.items():
            self._add("afinar_stage_seconds", seconds, stage=phase)

    def count_retry(self, units: int = 1) -> None:
        """Count units that are submitted again because their worker died or hung."""
        self._add("afinar_units_retried", units)

    def _add(self, name: str, amount: float, **more: str) -> None:
        """Add to a counter. An error is logged once and does not end the job."""
        if amount <= 0:  # Ray's counters refuse zero
            return
        tags = {"command": self.command, "source": self.source, "target": self.target, **more}
        try:
            _counter(name).inc(amount, {tag: ascii_tag(value) for tag, value in tags.items()})
        except Exception as error:  # noqa: BLE001  (the job's work is unaffected)
            _log_once(f"note: metrics are not counted: {error}")


def ascii_tag(value: str) -> str:
    """Return a tag's value in ASCII, as Ray requires.

    Other characters are percent-encoded as in a URL: `/data/José` becomes `/data/Jos%C3%A9`. ASCII
    characters, `%` included, are unchanged.
    """
    return "".join(
        letter if letter.isascii() else quote(letter, errors="surrogatepass") for letter in value
    )


@cache
def _log_once(message: str) -> None:
    logger.info(message)


@cache
def _counter(name: str) -> Counter:
    from ray.util.metrics import Counter

    tags = (*TAGS, "stage") if name == "afinar_stage_seconds" else TAGS
    return Counter(name, NAMES[name], tags)
