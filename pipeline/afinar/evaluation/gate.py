"""Decision whether a candidate replaces the champion: a pure function of evidence and rules.

Each check gives a verdict with a reason, and the gate takes the most careful one: one refusal
refuses, otherwise one doubt holds, otherwise the candidate is promoted. A check whose evidence is
absent has a defined verdict too, so that a decision always results.

**Accuracy.** Both models answer the same test pictures. Only discordant pictures, which one model
gets right and the other wrong, say which is better. If both were equally good, each discordant
picture would favour either with probability 1/2: the exact test of McNemar 1947, doi
10.1007/BF02295996, one-sided.

**Many nights, one test set.** At 5 % a night, two equal models are swapped in a third of all
fortnights, and the champion's score on that set rises by luck alone. So the k-th decision on one
test set may spend alpha / (k (k + 1)) only:

    k        1      2      3      4      5  …      30
    level  0.050  0.017  0.008  0.005  0.003 … 0.00011     for alpha = 0.10

The levels add up to alpha over any number of nights. A new test set begins at k = 1.
`tests/bench` simulates whole years of nights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from afinar.config.nightly import GateRules
from afinar.evaluation.intervals import binomial_tail

_CLASS_LEVEL: Final = 0.05  # of the test for a fall of recall, divided among the classes


class Verdict(StrEnum):
    """Outcome of a check and of the gate, from the least to the most careful."""

    PROMOTED = "promoted"
    HELD = "held"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Answers of candidate and champion for the same pictures.

    `candidate_only` pictures are right for the candidate alone, `champion_only` for the champion
    alone. For the other pictures both are right or both are wrong.
    """

    pictures: int
    candidate_only: int
    champion_only: int

    @property
    def discordant(self) -> int:
        """Pictures that only one of them gets right."""
        return self.candidate_only + self.champion_only

    @property
    def gain(self) -> float:
        """Accuracy of the candidate minus accuracy of the champion."""
        return (self.candidate_only - self.champion_only) / self.pictures if self.pictures else 0.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """A measurement of the champion and of the candidate."""

    champion: float
    candidate: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Measurements of a candidate. None stands for a measurement that was not made.

    `decision` counts the decisions on this test set, this one included. `beats_largest` says
    whether the candidate beats always answering the largest class; it decides if there is no
    champion. `newest` is `test` for the newest pictures alone. `rehearsed` says whether the
    candidate labelled pictures through the labelling worker.
    """

    has_champion: bool
    decision: int = 1
    beats_largest: bool | None = None
    test: Paired | None = None
    newest: Paired | None = None
    classes: Mapping[str, Paired] = field(default_factory=dict)
    missing_classes: tuple[str, ...] = ()
    new_classes: tuple[str, ...] = ()
    loss: Change | None = None
    seconds_per_picture: Change | None = None
    weight_bytes: Change | None = None
    new_pictures: int | None = None
    agreement: float | None = None
    rehearsed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """Verdict of one check, with a sentence that holds the numbers behind it."""

    name: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Verdict of the gate and all its checks.

    `level` is the level that this decision was tested at, `p_value` the result. `smallest_gain` is
    the smallest gain of accuracy that the test could have shown with its discordant pictures. All
    three are None without a comparison.
    """

    verdict: Verdict
    checks: list[Check]
    level: float | None = None
    p_value: float | None = None
    smallest_gain: float | None = None

    @property
    def reasons(self) -> list[str]:
        """Sentences of the checks that decided."""
        return [check.reason for check in self.checks if check.verdict is self.verdict]


def decide(evidence: Evidence, rules: GateRules) -> Decision:
    """Return the decision on a candidate."""
    checks = list(_checks(evidence, rules))
    order = list(Verdict)
    verdict = max((check.verdict for check in checks), key=order.index)
    if verdict is Verdict.PROMOTED and rules.mode == "hold":
        checks.append(_held("mode", "the gate's mode is `hold`: a person promotes"))
        verdict = Verdict.HELD

    if not evidence.has_champion or evidence.test is None or not evidence.test.pictures:
        return Decision(verdict=verdict, checks=checks)
    level = level_of(evidence.decision, rules.alpha)
    return Decision(
        verdict=verdict,
        checks=checks,
        level=level,
        p_value=mcnemar(evidence.test.candidate_only, evidence.test.champion_only),
        smallest_gain=smallest_gain(evidence.test, level),
    )


def level_of(decision: int, alpha: float) -> float:
    """Return the level of the k-th decision on one test set: alpha / (k (k + 1))."""
    return alpha / (decision * (decision + 1))


def mcnemar(wins: int, losses: int) -> float:
    """Return the probability of at least `wins` of wins + losses fair coin tosses.

    Example: 9 wins and 1 loss give 11 / 1024 = 0.0107.
    """
    return binomial_tail(wins, wins + losses, 0.5)


def smallest_gain(test: Paired, level: float) -> float | None:
    """Return the smallest gain of accuracy significant at `level`, None if none could be.

    The number of discordant pictures is taken as it is. Example: of 200 discordant among 2,000
    pictures, 112 wins give p = 0.0518 and 113 give 0.0384, so a gain of (113 − 87) / 2,000 = 1.3
    points is the smallest that is significant at 0.05.
    """
    tosses = test.discordant
    if not test.pictures or mcnemar(tosses, 0) > level:
        return None

    low, high = 0, tosses  # the p-value falls as wins rise
    while low < high:
        middle = (low + high) // 2
        if mcnemar(middle, tosses - middle) <= level:
            high = middle
        else:
            low = middle + 1
    return (2 * low - tosses) / test.pictures


def _checks(evidence: Evidence, rules: GateRules) -> Iterator[Check]:
    if evidence.has_champion:
        yield _accuracy(evidence, rules)
        yield from _classes(evidence, rules)
        yield from _newest(evidence.newest)
        yield from _limits(evidence, rules)
    else:
        yield _first(evidence.beats_largest)
    yield _rehearsal(evidence.rehearsed)


def _first(beats_largest: bool | None) -> Check:
    """Check a first model, which has no champion to beat."""
    if beats_largest is None:
        return _held("first", "there is no champion, and no test picture to measure the model on")
    if beats_largest:
        return _passed("first", "there is no champion, and it beats always answering the largest")
    return _refused("first", "it is not shown to beat always answering the largest class")


def _accuracy(evidence: Evidence, rules: GateRules) -> Check:
    test = evidence.test
    if test is None or not test.pictures:
        return _held("accuracy", "there are no test pictures that both models can be compared on")

    level = level_of(evidence.decision, rules.alpha)
    p_value = mcnemar(test.candidate_only, test.champion_only)
    numbers = (
        f"{100 * test.gain:+.2f} points on {test.pictures:,} test pictures, {test.candidate_only} "
        f"won and {test.champion_only} lost, p = {p_value:.2g} at level {level:.2g}"
    )
    if p_value <= level:
        return _passed("accuracy", f"it is better: {numbers}")
    if not evidence.new_classes:
        return _refused("accuracy", f"it is not shown to be better: {numbers}")
    # More classes make the common ones no easier: whether they are worth it, a person decides.
    if mcnemar(test.champion_only, test.candidate_only) <= _CLASS_LEVEL:
        return _refused("accuracy", f"it is worse on the common classes: {numbers}")
    return _held("accuracy", f"it is neither better nor worse on the common classes: {numbers}")


def _classes(evidence: Evidence, rules: GateRules) -> Iterator[Check]:
    if evidence.missing_classes:
        names = ", ".join(evidence.missing_classes)
        yield _refused("classes", f"it has lost classes of the champion: {names}")
    if evidence.new_classes:
        names = ", ".join(evidence.new_classes)
        yield _held("classes", f"it has new classes, compared on the common ones only: {names}")
    if not rules.max_class_drop:
        return

    level = _CLASS_LEVEL / max(1, len(evidence.classes))
    for name, pair in evidence.classes.items():
        is_certain = mcnemar(pair.champion_only, pair.candidate_only) <= level
        if is_certain and -pair.gain > rules.max_class_drop:
            yield _refused(
                "classes",
                f"recall of {name} falls by {-100 * pair.gain:.1f} points on {pair.pictures} "
                f"pictures, more than {100 * rules.max_class_drop:g}",
            )


def _newest(newest: Paired | None) -> Iterator[Check]:
    """Check the newest pictures: refuse a candidate that is certainly worse on them."""
    if newest is None or not newest.pictures:
        yield _passed("newest", "there are no newest pictures to compare on")
        return
    numbers = f"{100 * newest.gain:+.2f} points on the {newest.pictures:,} newest pictures"
    if mcnemar(newest.champion_only, newest.candidate_only) <= _CLASS_LEVEL:
        yield _refused("newest", f"it is worse where it matters most: {numbers}")
    else:
        yield _passed("newest", numbers)


def _limits(evidence: Evidence, rules: GateRules) -> Iterator[Check]:
    loss = evidence.loss
    if rules.max_loss_increase:
        if loss is None:
            yield _held("calibration", "the losses of the confidence were not measured")
        elif not loss.candidate - loss.champion <= rules.max_loss_increase:  # NaN refuses
            yield _refused(
                "calibration",
                f"the loss of the confidence rises from {loss.champion:.3f} to "
                f"{loss.candidate:.3f}, by more than {rules.max_loss_increase:g}",
            )

    yield from _factor("speed", evidence.seconds_per_picture, rules.max_slowdown, "labelling")
    yield from _factor("size", evidence.weight_bytes, rules.max_growth, "the weights")

    if rules.min_new:
        if evidence.new_pictures is None:
            yield _held("new pictures", "the new pictures were not counted")
        elif evidence.new_pictures < rules.min_new:
            yield _held(
                "new pictures",
                f"{evidence.new_pictures} pictures are new, fewer than {rules.min_new}",
            )

    least, agreement = rules.min_agreement, evidence.agreement
    if least and agreement is not None and not agreement >= least:
        yield _held(
            "agreement",
            f"both models agree on {agreement:.0%} of the unlabelled pictures, less than "
            f"{least:.0%}",
        )


def _factor(name: str, change: Change | None, limit: float, what: str) -> Iterator[Check]:
    """Hold a candidate that is slower or larger by more than a factor."""
    if not limit:
        return
    if change is None:
        yield _held(name, f"the {name} of the models was not measured")
    elif not change.candidate <= limit * change.champion:
        factor = change.candidate / change.champion if change.champion else math.inf
        yield _held(name, f"{what} grew by a factor of {factor:.2f}, more than {limit:g}")


def _rehearsal(rehearsed: bool | None) -> Check:
    if rehearsed is None:
        return _held("rehearsal", "it has not labelled pictures through the labelling worker")
    if rehearsed:
        return _passed("rehearsal", "it labelled pictures through the labelling worker")
    return _refused("rehearsal", "the labelling worker cannot label pictures with it")


def _passed(name: str, reason: str) -> Check:
    return Check(name=name, verdict=Verdict.PROMOTED, reason=reason)


def _held(name: str, reason: str) -> Check:
    return Check(name=name, verdict=Verdict.HELD, reason=reason)


def _refused(name: str, reason: str) -> Check:
    return Check(name=name, verdict=Verdict.REFUSED, reason=reason)
