"""The gate of nightly retraining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from afinar.config.nightly import GateRules
from afinar.evaluation.gate import (
    Change,
    Decision,
    Evidence,
    Paired,
    Verdict,
    decide,
    level_of,
    mcnemar,
    smallest_gain,
)

ORDER = [Verdict.REFUSED, Verdict.HELD, Verdict.PROMOTED]  # from bad to good
SOUND = Evidence(
    has_champion=True,
    test=Paired(pictures=2000, candidate_only=120, champion_only=60),
    newest=Paired(pictures=100, candidate_only=5, champion_only=5),
    classes={"cat": Paired(pictures=1000, candidate_only=60, champion_only=30)},
    loss=Change(champion=0.4, candidate=0.3),
    seconds_per_picture=Change(champion=0.01, candidate=0.01),
    weight_bytes=Change(champion=1e7, candidate=1e7),
    new_pictures=100,
    agreement=0.9,
    rehearsed=True,
)


def verdict(evidence: Evidence, **rules: Any) -> Verdict:
    return decide(evidence, GateRules(**rules)).verdict


@st.composite
def pairs(draw: st.DrawFn) -> Paired:
    cells = [draw(st.integers(0, 60)) for _ in range(3)]
    return Paired(pictures=sum(cells), candidate_only=cells[0], champion_only=cells[1])


changes = st.builds(Change, champion=st.floats(0, 10), candidate=st.floats(0, 10))
evidences = st.builds(
    Evidence,
    has_champion=st.booleans(),
    decision=st.integers(1, 400),
    beats_largest=st.none() | st.booleans(),
    test=st.none() | pairs(),
    newest=st.none() | pairs(),
    classes=st.dictionaries(st.sampled_from("abc"), pairs()),
    missing_classes=st.sampled_from([(), ("a",)]),
    new_classes=st.sampled_from([(), ("z",)]),
    loss=st.none() | changes,
    seconds_per_picture=st.none() | changes,
    weight_bytes=st.none() | changes,
    new_pictures=st.none() | st.integers(0, 100),
    agreement=st.none() | st.floats(0, 1),
    rehearsed=st.none() | st.booleans(),
)
all_rules = st.builds(
    GateRules,
    mode=st.sampled_from(["auto", "hold"]),
    alpha=st.floats(0.001, 0.5),
    max_class_drop=st.floats(0, 1),
    max_loss_increase=st.floats(0, 1),
    max_slowdown=st.just(0.0) | st.floats(1, 3),
    max_growth=st.just(0.0) | st.floats(1, 3),
    min_new=st.integers(0, 50),
    min_agreement=st.floats(0, 1),
)


def test_a_better_candidate_is_promoted() -> None:
    decision = decide(SOUND, GateRules())

    assert decision.verdict is Verdict.PROMOTED
    assert decision.level == pytest.approx(0.05)
    assert decision.p_value == pytest.approx(binomtest(120, 180, alternative="greater").pvalue)
    assert any("won and 60 lost" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("change", "rules", "expected"),
    [
        ({"test": None}, {}, Verdict.HELD),
        ({"test": Paired(pictures=2000, candidate_only=66, champion_only=60)}, {}, Verdict.REFUSED),
        ({"decision": 30, "test": Paired(pictures=2000, candidate_only=110, champion_only=75)}, {},
         Verdict.REFUSED),
        ({"missing_classes": ("dog",)}, {}, Verdict.REFUSED),
        ({"new_classes": ("dog",)}, {}, Verdict.HELD),
        ({"new_classes": ("dog",),
          "test": Paired(pictures=2000, candidate_only=60, champion_only=62)}, {}, Verdict.HELD),
        ({"new_classes": ("dog",),
          "test": Paired(pictures=2000, candidate_only=60, champion_only=99)}, {}, Verdict.REFUSED),
        ({"classes": {"cat": Paired(pictures=50, candidate_only=0, champion_only=20)}}, {},
         Verdict.REFUSED),
        ({"classes": {"cat": Paired(pictures=50, candidate_only=0, champion_only=20)}},
         {"max_class_drop": 0}, Verdict.PROMOTED),
        ({"newest": Paired(pictures=100, candidate_only=0, champion_only=20)}, {}, Verdict.REFUSED),
        ({"newest": None}, {}, Verdict.PROMOTED),
        ({"loss": Change(champion=0.3, candidate=0.5)}, {}, Verdict.REFUSED),
        ({"loss": Change(champion=0.3, candidate=float("nan"))}, {}, Verdict.REFUSED),
        ({"loss": None}, {}, Verdict.HELD),
        ({"seconds_per_picture": Change(champion=0.01, candidate=0.02)}, {}, Verdict.HELD),
        ({"weight_bytes": None}, {}, Verdict.HELD),
        ({"weight_bytes": None}, {"max_growth": 0}, Verdict.PROMOTED),
        ({"new_pictures": 3}, {"min_new": 10}, Verdict.HELD),
        ({"agreement": 0.2}, {}, Verdict.HELD),
        ({"agreement": None}, {}, Verdict.PROMOTED),
        ({"rehearsed": None}, {}, Verdict.HELD),
        ({"rehearsed": False}, {}, Verdict.REFUSED),
        ({}, {"mode": "hold"}, Verdict.HELD),
        ({"has_champion": False, "beats_largest": True}, {}, Verdict.PROMOTED),
        ({"has_champion": False, "beats_largest": False}, {}, Verdict.REFUSED),
        ({"has_champion": False, "beats_largest": None}, {}, Verdict.HELD),
    ],
)  # fmt: skip
def test_each_check_decides(
    change: dict[str, Any], rules: dict[str, Any], expected: Verdict
) -> None:
    decision = decide(replace(SOUND, **change), GateRules(**rules))

    assert decision.verdict is expected
    assert decision.reasons


@given(evidence=evidences, rules=all_rules)
def test_every_combination_has_a_verdict_with_a_reason(
    evidence: Evidence, rules: GateRules
) -> None:
    first, second = (decide(evidence, rules) for _ in range(2))

    assert first == second
    assert isinstance(first, Decision)
    assert all(first.reasons)
    assert first.reasons


@given(evidence=evidences, rules=all_rules, more=st.integers(1, 50), data=st.data())
def test_more_evidence_for_the_candidate_is_never_worse(
    evidence: Evidence, rules: GateRules, more: int, data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(["test", "newest"]))
    before = getattr(evidence, field)
    if before is None:
        return
    # `more` pictures that both got right or wrong are now right for the candidate alone.
    concordant = before.pictures - before.discordant
    moved = min(more, concordant)
    after = replace(before, candidate_only=before.candidate_only + moved)

    assert ORDER.index(verdict_of(evidence, rules)) <= ORDER.index(
        verdict_of(replace(evidence, **{field: after}), rules)
    )


@given(evidence=evidences, rules=all_rules)
def test_later_decisions_on_a_test_set_are_never_easier(
    evidence: Evidence, rules: GateRules
) -> None:
    later = replace(evidence, decision=evidence.decision + 1)

    assert ORDER.index(verdict_of(later, rules)) <= ORDER.index(verdict_of(evidence, rules))


def verdict_of(evidence: Evidence, rules: GateRules) -> Verdict:
    return decide(evidence, rules).verdict


@given(wins=st.integers(0, 400), losses=st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    if wins + losses == 0:
        assert mcnemar(0, 0) == 1
        return
    expected = binomtest(wins, wins + losses, alternative="greater").pvalue
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(discordant=st.integers(0, 300), level=st.floats(1e-6, 0.2))
def test_the_smallest_gain_is_the_first_significant_one(discordant: int, level: float) -> None:
    test = Paired(pictures=1000, candidate_only=discordant, champion_only=0)
    gain = smallest_gain(test, level)

    significant = [
        wins for wins in range(discordant + 1) if mcnemar(wins, discordant - wins) <= level
    ]
    if not significant:
        assert gain is None
    else:
        assert gain == pytest.approx((2 * significant[0] - discordant) / 1000)


def test_levels_add_up_to_alpha() -> None:
    assert sum(level_of(decision, 0.1) for decision in range(1, 100_000)) == pytest.approx(
        0.1, abs=1e-5
    )
