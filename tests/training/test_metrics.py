"""Metrics and temperature against scikit-learn, for any division of the samples among workers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from afinar.errors import ShortfallError
from afinar.training.distributed import Group
from afinar.training.metrics import compute_metrics, fit_temperature
from tests.gloo import run_in_group

Predictions = tuple[Tensor, Tensor]


def draw(
    samples: int, classes: int, seed: int, absent: tuple[int, ...] = (), sharpness: float = 1.0
) -> Predictions:
    """Return logits, and targets drawn from their softmax, so that the logits are calibrated.

    Classes in `absent` have no targets. The logits are then multiplied by `sharpness`.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    probabilities = logits.softmax(dim=1)
    probabilities[:, list(absent)] = 0
    targets = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return (sharpness * logits).float(), targets


def with_an_unused_class() -> Predictions:
    """Return ten classes: the last is neither true nor predicted, the ninth only predicted."""
    logits, targets = draw(101, 10, 1, absent=(8, 9))
    logits[:, 9] = -50
    return logits, targets


CASES: dict[str, Callable[[], Predictions]] = {
    "ten classes": lambda: draw(101, 10, 0),
    "classes without samples": with_an_unused_class,
    "two classes": lambda: draw(50, 2, 2),
    "two samples": lambda: draw(2, 3, 3),  # of three workers one has none
    "only one class is true": lambda: draw(17, 2, 4, absent=(0,)),
    "tied and certain": lambda: (
        torch.tensor([[30.0, 0.0]] * 5 + [[0.0, 0.0]] * 4),
        torch.tensor([0, 1, 0] * 3),
    ),
}


def names(logits: Tensor) -> list[str]:
    return [f"class {number}" for number in range(logits.shape[1])]


def compute_cases(group: Group) -> dict[str, Any]:
    """Return one worker's results for all cases; a lower rank holds more samples."""
    results: dict[str, Any] = {}
    for case, make in CASES.items():
        logits, targets = make()
        residue = torch.arange(len(targets)) % (group.size * (group.size + 1) // 2)
        first = group.rank * group.size - group.rank * (group.rank - 1) // 2
        local = (residue >= first) & (residue < first + group.size - group.rank)
        logits, targets = logits[local], targets[local]
        classes = names(logits)
        cooler = compute_metrics(logits, targets, classes, group, temperature=0.5)
        results[case] = {
            "metrics": asdict(compute_metrics(logits, targets, classes, group)),
            "cooler": asdict(cooler),
            "temperature": fit_temperature(logits, targets, group),
            "samples": len(targets),
        }
    return results


def _compute(rank: int, folder: str) -> None:
    Path(folder, str(rank)).write_text(json.dumps(compute_cases(Group()), allow_nan=False))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return compute_cases(Group())


@pytest.fixture(scope="module", params=[1, 2, 3])
def on_workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Results of each worker."""
    folder = tmp_path_factory.mktemp("metrics")
    run_in_group(request.param, _compute, str(folder))
    return [json.loads((folder / str(rank)).read_text()) for rank in range(request.param)]


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return all metrics but recall, -1 for None."""
    return {
        name: -1.0 if value is None else value
        for name, value in metrics.items()
        if name not in {"recall", "largest_class"}
    }


@pytest.mark.parametrize("case", CASES)
def test_every_worker_gets_the_result_of_a_single_one(
    case: str, on_workers: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    samples = [results[case]["samples"] for results in on_workers]
    assert sum(samples) == alone[case]["samples"]
    assert samples == [alone[case]["samples"]] or len(set(samples)) > 1, "slices are uneven"
    for results in on_workers:
        for key in ("metrics", "cooler", "temperature"):
            assert results[case][key] == on_workers[0][case][key]
    for key in ("metrics", "cooler"):
        ours, reference = on_workers[0][case][key], alone[case][key]
        assert ours["recall"] == reference["recall"]
        assert numbers(ours) == pytest.approx(numbers(reference), rel=1e-12)
    assert on_workers[0][case]["temperature"] == pytest.approx(alone[case]["temperature"], rel=1e-8)


def test_the_third_worker_has_no_sample_of_two(on_workers: list[dict[str, Any]]) -> None:
    if len(on_workers) == 3:
        assert on_workers[2]["two samples"]["samples"] == 0


def softmax(logits: Tensor) -> Any:
    return logits.double().softmax(dim=1).numpy()


@pytest.mark.parametrize("case", CASES)
def test_metrics_equal_those_of_scikit_learn(case: str, alone: dict[str, Any]) -> None:
    logits, targets = CASES[case]()
    ours, true, probabilities = alone[case]["metrics"], targets.numpy(), softmax(logits)
    labels, predicted = range(logits.shape[1]), probabilities.argmax(axis=1)
    assert ours["samples"] == len(true)
    assert ours["loss"] == pytest.approx(sk.log_loss(true, probabilities, labels=labels), rel=1e-9)
    assert ours["top1"] == sk.accuracy_score(true, predicted)
    macro_f1 = sk.f1_score(true, predicted, average="macro")
    assert ours["macro_f1"] == pytest.approx(macro_f1, rel=1e-12)

    counts = np.bincount(true, minlength=len(labels))
    assert ours["largest_class"] == names(logits)[counts.argmax()]
    assert ours["largest_share"] == counts.max() / len(true)

    recall = sk.recall_score(true, predicted, labels=labels, average=None, zero_division=np.nan)
    theirs = {
        name: None if math.isnan(value) else value
        for name, value in zip(names(logits), recall, strict=True)
    }
    assert ours["recall"] == pytest.approx(theirs)

    if len(labels) >= 6:
        assert ours["top5"] == sk.top_k_accuracy_score(true, probabilities, k=5, labels=labels)
        assert ours["top5"] > ours["top1"]
    else:
        assert ours["top5"] is None
    if len(labels) == 2 and len(set(true)) == 2:
        auroc = sk.roc_auc_score(true, probabilities[:, 1])
        assert ours["auroc"] == pytest.approx(auroc, abs=1e-12)
    else:
        assert ours["auroc"] is None


def test_macro_f1_leaves_out_a_class_that_is_neither_true_nor_predicted(
    alone: dict[str, Any],
) -> None:
    logits, targets = CASES["classes without samples"]()
    ours = alone["classes without samples"]["metrics"]
    predicted = logits.argmax(dim=1)
    assert (8 in predicted, 9 in predicted) == (True, False)
    without_samples = [name for name, recall in ours["recall"].items() if recall is None]
    assert without_samples == ["class 8", "class 9"]
    over_all_ten = sk.f1_score(
        targets, predicted, labels=range(10), average="macro", zero_division=0
    )
    assert ours["macro_f1"] == pytest.approx(over_all_ten * 10 / 9)


@pytest.mark.parametrize("case", CASES)
def test_calibration_error_follows_its_definition(case: str, alone: dict[str, Any]) -> None:
    logits, targets = CASES[case]()
    for key, scale in (("metrics", 1), ("cooler", 2)):
        probabilities = softmax(logits * scale)
        confidence = probabilities.max(axis=1)
        correct = probabilities.argmax(axis=1) == targets.numpy()
        expected = 0.0
        for number in range(15):
            inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
            if inside.any():
                gap = abs(confidence[inside].mean() - correct[inside].mean())
                expected += inside.mean() * gap
        assert alone[case][key]["calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_temperature_changes_the_loss_and_not_the_predictions() -> None:
    logits, targets = draw(20_000, 4, 5)  # more than one block
    classes, group = names(logits), Group()
    plain = compute_metrics(logits, targets, classes, group, temperature=1.0)
    warm = compute_metrics(logits, targets, classes, group, temperature=2.0)
    scaled = compute_metrics(logits / 2, targets, classes, group)
    assert warm.loss == pytest.approx(scaled.loss, rel=1e-6)
    assert warm.loss != pytest.approx(plain.loss, rel=1e-3)
    assert (warm.top1, warm.recall, warm.macro_f1) == (plain.top1, plain.recall, plain.macro_f1)


def test_auroc_ranks_margins_whose_probabilities_are_equal() -> None:
    logits, targets = torch.tensor([[0.0, 60.0], [0.0, 50.0], [0.0, 40.0]]), torch.tensor([1, 1, 0])
    assert len(set(logits.double().softmax(dim=1)[:, 1].tolist())) == 1
    assert compute_metrics(logits, targets, ["a", "b"], Group()).auroc == 1.0


def test_auroc_counts_a_tie_as_half() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 2.0], [0.0, 3.0]])
    targets = torch.tensor([0, 0, 1, 1])
    assert compute_metrics(logits, targets, ["a", "b"], Group()).auroc == 0.875


def test_logits_that_are_not_finite_raise_and_so_does_an_empty_split() -> None:
    logits, targets = draw(20, 3, 6)
    logits[7, 1] = math.nan
    with pytest.raises(ShortfallError, match="not finite"):
        compute_metrics(logits, targets, names(logits), Group())
    with pytest.raises(ShortfallError, match="not finite"):
        fit_temperature(logits, targets, Group())
    with pytest.raises(ValueError, match="no sample"):
        compute_metrics(logits[:0], targets[:0], names(logits), Group())


def platt_nll(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the NLL of targets whose class has the probability (n + 1) / (n + 2)."""
    samples, classes = logits.shape
    expected = torch.full((samples, classes), 1 / ((samples + 2) * (classes - 1))).double()
    expected[torch.arange(samples), targets] = (samples + 1) / (samples + 2)
    return float(-(expected * (logits.double() / temperature).log_softmax(dim=1)).sum(dim=1).mean())


@pytest.mark.parametrize("sharpness", [1 / 3, 1.0, 3.0])
def test_fit_temperature_finds_the_factor_of_the_logits(sharpness: float) -> None:
    logits, targets = draw(20_000, 5, 7, sharpness=sharpness)
    temperature = fit_temperature(logits, targets, Group())
    assert temperature == pytest.approx(sharpness, rel=0.05)
    best = platt_nll(logits, targets, temperature)
    for factor in (0.99, 0.9999, 1.0001, 1.01):
        assert best < platt_nll(logits, targets, temperature * factor)


@pytest.mark.parametrize("case", CASES)
def test_fit_temperature_never_increases_the_nll(case: str, alone: dict[str, Any]) -> None:
    logits, targets = CASES[case]()
    temperature = alone[case]["temperature"]
    assert 0.05 < temperature <= 20
    assert platt_nll(logits, targets, temperature) <= platt_nll(logits, targets, 1.0)


def test_fit_temperature_of_few_right_answers_is_moderate() -> None:
    logits, _ = draw(30, 4, 8)
    temperature = fit_temperature(logits, logits.argmax(dim=1), Group())
    assert 0.2 < temperature < 1, "the samples say that the model is right, and they are few"
    for factor in (0.99, 1.01):
        best, other = temperature, factor * temperature
        targets = logits.argmax(dim=1)
        assert platt_nll(logits, targets, best) < platt_nll(logits, targets, other)


def test_fit_temperature_without_a_minimum_returns_one() -> None:
    logits, targets = draw(30, 4, 8)
    assert fit_temperature(torch.zeros(30, 4), targets, Group()) == 1.0, "all logits are equal"
    assert fit_temperature(logits[:0], targets[:0], Group()) == 1.0, "no samples"


def test_fit_temperature_of_wrong_logits_is_the_maximum() -> None:
    logits, _ = draw(30, 4, 9)
    temperature = fit_temperature(logits, logits.argmin(dim=1), Group())
    assert temperature == pytest.approx(20)
