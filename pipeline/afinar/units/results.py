"""Results of units: what a worker returns to the driver, and their sums over a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class UnitResult:
    """Counts of one finished unit and its seconds by phase. Everything else is in the store."""

    unit: str
    pictures: int
    rejects: int = 0
    phases: dict[str, float] = field(default_factory=dict)


@dataclass
class RunTotals:
    """Sums over the units that one run carried out, for all versions that it published."""

    units: int = 0
    pictures: int = 0
    rejects: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    def add(self, result: UnitResult) -> None:
        """Count one unit."""
        self.units += 1
        self.pictures += result.pictures
        self.rejects += result.rejects
        for phase, seconds in result.phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def rounded_phases(self) -> dict[str, float]:
        """Return the seconds by phase, to a hundredth."""
        return {phase: round(seconds, 2) for phase, seconds in self.phases.items()}
