"""Sections of the pages of `explain adversarial`: attacked pictures, and accuracy under attack."""

from __future__ import annotations

from dataclasses import dataclass

from afinar.evaluation.intervals import Interval, wilson
from afinar.explain.adversarial_task import EPSILONS, AdversarialResult
from afinar.explain.driver import AdversarialOutcome, RobustnessOutcome
from afinar.explain.units import Stored
from afinar.report.blocks import Block
from afinar.report.charts import Chart, axis, exact_axis
from afinar.report.explain_blocks import SHOWN, Summary, shot
from afinar.report.pieces import LARGE_PX, Tile


def adversarial_blocks(outcome: AdversarialOutcome) -> list[Block]:
    """Return a section for each picture: original, amplified change, result."""
    return [
        Block(
            title=stored.result.uri.rsplit("/", 1)[-1],
            texts=[_attack_text(stored.result)],
            shots=_attack_shots(outcome, stored),
            is_large=True,
        )
        for stored in outcome.results[:SHOWN]
    ]


def _attack_text(result: AdversarialResult) -> str:
    goal = f"towards {result.target}" if result.target else "away from it"
    verdict = "succeeded" if result.succeeded else "did not succeed"
    return (
        f"The model answers {result.before} with {result.before_score:.1%}. An attack {goal} "
        f"within {result.epsilon} of 255 levels {verdict} ({result.method}); the largest change is "
        f"{result.change} levels."
    )


def _attack_shots(outcome: AdversarialOutcome, stored: Stored[AdversarialResult]) -> list[Tile]:
    result = stored.result
    texts = {
        "original.png": f"original: {result.before} {result.before_score:.1%}",
        "change.png": f"the change, amplified: grey is none, full colour {result.epsilon} levels",
        "result.png": f"result: {result.after} {result.after_score:.1%}",
    }
    return [
        shot(
            outcome.store, stored.pictures.get(name), text, text.split(":", maxsplit=1)[0], LARGE_PX
        )
        for name, text in texts.items()
    ]


def adversarial_summary(outcome: AdversarialOutcome) -> Summary:
    """Return what the page of attacked pictures begins with."""
    hits = sum(stored.result.succeeded for stored in outcome.results)
    rate = wilson(hits, len(outcome.results))
    return Summary(
        numbers=[
            ("pictures", f"{len(outcome.results):,}"),
            (f"attacks succeeded ({rate.low:.0%} – {rate.high:.0%})", f"{rate.value:.1%}"),
        ],
        reading=[
            "The changes were computed from the model's gradient. "
            "Pictures were rounded to 8 bits, saved as PNG and read back before the model "
            "judged them.",
        ],
    )


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    """Accuracy under attacks within `epsilon` levels, an upper bound of the robust accuracy."""

    epsilon: float
    accuracy: Interval


def robust_accuracies(outcome: RobustnessOutcome) -> list[RobustAccuracy]:
    """Return the accuracy at each bound."""
    broken = [bound for stored in outcome.results for bound in stored.result.broken_at]
    return [
        RobustAccuracy(
            epsilon=epsilon,
            accuracy=wilson(sum(bound is None or bound > epsilon for bound in broken), len(broken)),
        )
        for epsilon in EPSILONS
    ]


def robustness_blocks(outcome: RobustnessOutcome) -> list[Block]:
    """Return the curve of accuracy under attack, and its table."""
    found = robust_accuracies(outcome)
    chart = Chart(
        title="Accuracy by size of the change",
        x=exact_axis("levels of 255", 0, EPSILONS[-1]),
        y=axis("accuracy", 0, 100, unit=" %"),
    )
    chart.line([(entry.epsilon, 100 * entry.accuracy.value) for entry in found], 1)
    for entry in found:
        value, low, high = (
            100 * share for share in (entry.accuracy.value, entry.accuracy.low, entry.accuracy.high)
        )
        tip = f"{entry.epsilon:g} levels: {value:.1f} % (95 % interval {low:.1f} to {high:.1f})"
        chart.interval(entry.epsilon, (value, low, high), tip, 1)
    return [
        Block(
            title="Accuracy under attack: an upper bound of robust accuracy",
            charts=[chart],
            heading=["levels of 255", "accuracy", "95 % interval"],
            rows=[
                [
                    f"{entry.epsilon:g}",
                    f"{entry.accuracy.value:.1%}",
                    f"{entry.accuracy.low:.1%} – {entry.accuracy.high:.1%}",
                ]
                for entry in found
            ],
        )
    ]


def robustness_summary(outcome: RobustnessOutcome) -> Summary:
    """Return what the page of accuracy under attack begins with."""
    pictures = sum(len(stored.result.uris) for stored in outcome.results)
    found = robust_accuracies(outcome)
    eight = next(entry for entry in found if entry.epsilon == 8)
    return Summary(
        numbers=[
            (f"test pictures of {outcome.listed:,}", f"{pictures:,}"),
            ("accuracy as they are", f"{found[0].accuracy.value:.1%}"),
            ("within 8 levels", f"{eight.accuracy.value:.1%}"),
        ],
        reading=[
            "Untargeted attacks (projected gradient descent) with two losses. A stronger "
            "attack could break more pictures, so that the true robust accuracy is at most "
            "this. A picture counts as broken at the smallest change that was found. For half "
            "a level pixels are not rounded: 8-bit pictures cannot differ by so little. At 32 "
            "levels hardly any model should be right; if one is, its gradients are probably "
            "of no use to the attack.",
        ],
    )
