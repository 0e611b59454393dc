"""Error rates of the gate of nightly retraining, by simulation of whole years of nights.

    python -m tests.bench gate_years

**Equal models.** Each picture has a probability of being answered right, drawn from Beta(0.9, 0.1):
accuracy is 0.90, and two models disagree in correctness on 9 % of the pictures. Every night trains
a new model of that kind, and all are compared on one test set of 2,000 pictures for a year. Any
promotion is false. The champion's score on the test set rises by luck: `inflation`.

**A better candidate.** Its accuracy is 3 points higher and it disagrees on 15 % of 2,000 pictures.
It must be promoted at the first decision on a test set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afinar.evaluation.gate import level_of, mcnemar
from tests.bench.table import Table

PICTURES = 2000
NIGHTS = 365
YEARS = 300
FALSE_LIMIT = 0.20  # of years with any false promotion
POWER_LIMIT = 0.80  # of first tries of the better candidate
SPENT = "0.10 / (k (k + 1))"


@dataclass(frozen=True)
class Years:
    """Results of a year of equal models."""

    any_promotion: float
    promotions: float
    inflation: float


def wins_needed(level: float) -> NDArray[np.int64]:
    """Return for each number of discordant pictures the wins that are significant at `level`."""
    needed = np.full(PICTURES + 1, PICTURES + 1, dtype=np.int64)
    wins = 0
    for discordant in range(500):  # of 2,000 pictures about 180 are
        while wins <= discordant and mcnemar(wins, discordant - wins) > level:
            wins += 1
        needed[discordant] = wins
    return needed


def equal_models(levels: list[float], nights: int = NIGHTS, years: int = YEARS) -> Years:
    """Simulate years of equal models, with the level of each night."""
    rng = np.random.default_rng(0)
    probabilities = rng.beta(0.9, 0.1, (years, PICTURES)).astype(np.float32)
    champion = rng.random((years, PICTURES), dtype=np.float32) < probabilities
    promotions = np.zeros(years)
    tables = {level: wins_needed(level) for level in set(levels)}

    for night in range(nights):
        candidate = rng.random((years, PICTURES), dtype=np.float32) < probabilities
        wins = (candidate & ~champion).sum(axis=1)
        losses = (champion & ~candidate).sum(axis=1)
        promoted = wins >= tables[levels[night]][wins + losses]
        champion[promoted] = candidate[promoted]
        promotions += promoted

    inflation = champion.mean(axis=1) - probabilities.mean(axis=1)
    return Years(
        float((promotions > 0).mean()), float(promotions.mean()), 100 * float(inflation.mean())
    )


def power(gain: float, disagreement: float, level: float, tries: int = 20_000) -> float:
    """Return the share of first tries in which a candidate better by `gain` is promoted."""
    rng = np.random.default_rng(1)
    wins_share, losses_share = (disagreement + gain) / 2, (disagreement - gain) / 2
    counts = rng.multinomial(PICTURES, [wins_share, losses_share, 1 - disagreement], size=tries)
    needed = wins_needed(level)
    return float((counts[:, 0] >= needed[counts[:, 0] + counts[:, 1]]).mean())


def gate_years() -> bool:
    """Simulate years of equal models and first tries of a better candidate."""
    years = Table(
        ("level of a night", "years with a false promotion", "a year", "inflation", "met")
    )
    spending = [level_of(night + 1, 0.10) for night in range(NIGHTS)]
    for name, levels in (("0.05", [0.05] * NIGHTS), ("0.01", [0.01] * NIGHTS), (SPENT, spending)):
        result = equal_models(levels)
        cells = (
            f"{result.any_promotion:.0%}",
            f"{result.promotions:.2f}",
            f"{result.inflation:+.2f} points",
        )
        if name == SPENT:
            years.limit(name, *cells, holds=result.any_promotion <= FALSE_LIMIT)
        else:
            years.add(name, *cells)
    holds = years.show(f"Equal models, {YEARS} years of {NIGHTS} nights, {PICTURES} test pictures")

    tries = Table(("gain, points", "disagreement", "decision", "promoted", "met"))
    for gain, disagreement in ((0.03, 0.15), (0.03, 0.09), (0.01, 0.09)):
        for decision in (1, 2, 5, 30):
            share = power(gain, disagreement, level_of(decision, 0.10))
            columns = (f"{100 * gain:g}", f"{disagreement:.0%}", str(decision), f"{share:.0%}")
            if (gain, disagreement, decision) == (0.03, 0.15, 1):
                tries.limit(*columns, holds=share >= POWER_LIMIT)
            else:
                tries.add(*columns)
    return tries.show("A better candidate") and holds
