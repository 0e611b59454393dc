"""Verdicts on runs, and the choice of the best."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest

from afinar.evaluation.comparison import EvaluatedRun, best_run, verdicts
from afinar.models.registry.versions import ModelVersion, find_model
from tests.conftest import Trained


def evaluated(version: ModelVersion, regime: str, hits: int, samples: int = 200) -> EvaluatedRun:
    """Return a run with that many correct predictions, which are the first ones."""
    labels = ["moss" if number % 2 else "rust" for number in range(samples)]
    predicted = [label if number < hits else "other" for number, label in enumerate(labels)]
    ids = [f"{number:04d}" for number in range(samples)]
    test = pa.table({"sample_id": ids, "label": labels, "predicted": predicted})
    metrics: dict[str, Any] = {**version.metrics, "val": {"top1": hits / samples, "loss": 1.0}}
    return EvaluatedRun(dataclasses.replace(version, regime=regime, metrics=metrics), [], test)


@pytest.mark.parametrize(
    ("scratch", "full", "holds"),
    [
        (140, 190, [True, True]),
        (140, 142, [False, True]),
        (100, 190, [True, False]),
        (60, 50, [False, False]),
    ],
)
def test_verdicts_hold_only_if_the_interval_excludes_the_opposite(
    trained: Trained, scratch: int, full: int, holds: list[bool]
) -> None:
    version = find_model(trained.champion).version
    runs = [evaluated(version, "scratch", scratch), evaluated(version, "full", full)]
    claims = verdicts(runs)
    assert [verdict.holds for verdict in claims] == holds
    for verdict in claims:
        negated = "does not" in verdict.sentence or "not shown" in verdict.sentence
        assert negated != verdict.holds


@pytest.mark.parametrize(("frozen", "full", "holds"), [(140, 190, True), (140, 142, False)])
def test_best_run_is_compared_with_the_linear_probe(
    trained: Trained, frozen: int, full: int, *, holds: bool
) -> None:
    version = find_model(trained.champion).version
    hits = {"scratch": 110, "frozen": frozen, "full": full}
    _, probe, _ = verdicts([evaluated(version, regime, count) for regime, count in hits.items()])
    assert probe.holds == holds
    assert "linear probe (frozen)" in probe.sentence


def test_linear_probe_that_is_best_is_not_compared_with_itself(trained: Trained) -> None:
    version = find_model(trained.champion).version
    hits = {"scratch": 110, "frozen": 190, "full": 180}
    claims = verdicts([evaluated(version, regime, count) for regime, count in hits.items()])
    assert len(claims) == 2
    assert "Transfer (frozen) beats training from scratch" in claims[0].sentence


def test_baseline_that_never_recognises_a_class_is_not_called_fair(trained: Trained) -> None:
    """180 of 200 pictures are of one class: always answering it would be right for 90 %."""
    version = dataclasses.replace(find_model(trained.champion).version, classes=["moss", "rust"])
    labels = ["moss"] * 180 + ["rust"] * 20
    ids = [f"{number:04d}" for number in range(200)]
    run = EvaluatedRun(
        dataclasses.replace(version, regime="scratch"),
        [],
        pa.table({"sample_id": ids, "label": labels, "predicted": ["moss"] * 200}),
    )
    assert run.never_right == ["rust"]
    assert run.largest_class == ("moss", 0.9)
    guessing = verdicts([run, evaluated(version, "full", 190)])[1]
    assert not guessing.holds
    assert "right for no picture of rust" in guessing.sentence


def test_hits_follow_the_order_of_sample_ids(trained: Trained) -> None:
    run = evaluated(find_model(trained.champion).version, "full", 2, samples=3)
    reordered = EvaluatedRun(run.version, [], run.test.take([2, 0, 1]))
    assert reordered.hits.tolist() == [True, True, False]


def test_best_run_is_chosen_by_validation(trained: Trained) -> None:
    version = find_model(trained.champion).version
    runs = [
        evaluated(version, "scratch", 150),
        evaluated(version, "frozen", 180),
        evaluated(version, "full", 170),
    ]
    assert best_run(runs).name == "frozen"
