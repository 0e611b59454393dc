"""Ratios of paired measurements, and tables in Markdown for README.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

PAIRS = 1 if float(os.environ.get("BENCH_SCALE", "1")) < 1 else 3


@dataclass(frozen=True)
class Ratio:
    """Ratios of paired measurements.

    Each pair is taken back to back, so that a slow minute of the machine slows both.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, ours: Sequence[float], others: Sequence[float]) -> Ratio:
        """Return the ratios of each pair."""
        return cls(tuple(our / other for our, other in zip(ours, others, strict=True)))

    @property
    def median(self) -> float:
        """Median of the ratios, which is compared with a limit."""
        return median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.values):.2f}–{max(self.values):.2f})"


def spread(values: Sequence[float], form: str = "{:.0f}") -> str:
    """Return median and range as text."""
    return f"{form.format(median(values))} ({form.format(min(values))}–{form.format(max(values))})"


@dataclass
class Table:
    """Table of a bench; `met` is True if every limit in it is met."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    met: bool = True

    def add(self, *cells: object) -> None:
        """Add a row without a limit."""
        self.rows.append(tuple(str(cell) for cell in cells))

    def limit(self, *cells: object, holds: bool) -> None:
        """Add a row with a last cell of "yes" or "**no**"."""
        self.met &= holds
        self.add(*cells, "yes" if holds else "**no**")

    def show(self, title: str) -> bool:
        """Print the table and return True if all limits are met."""
        print(f"\n### {title}\n")
        for cells in (self.columns, ("---",) * len(self.columns), *self.rows):
            padded = (*cells, *("",) * (len(self.columns) - len(cells)))
            print(f"| {' | '.join(padded)} |")
        print(flush=True)
        return self.met
