"""Evaluation of the published epoch on the test split, which is used once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from afinar.training.batches import Samples
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator, LocalLogits
from afinar.training.metrics import compute_metrics
from afinar.training.operating_points import BinaryScores, operating_points
from afinar.training.publish import TestPredictions
from afinar.training.task import TrainTask


class TestEvaluation(NamedTuple):
    """Metrics of the test split, and predictions for it."""

    metrics: dict[str, Any]
    predictions: TestPredictions


def evaluate_test(
    task: TrainTask,
    module: nn.Module,
    evaluator: Evaluator,
    samples: Samples,
    validation: LocalLogits,
    temperature: float,
) -> TestEvaluation:
    """Evaluate the test split `samples`; a collective operation.

    Thresholds of two classes are chosen by the logits of the validation split.
    """
    group = evaluator.group
    test = evaluator.compute_logits(module, samples)
    metrics = compute_split_metrics(test, task.classes, group, temperature)
    if len(task.classes) == 2:
        splits = [_binary_scores(split, temperature, group) for split in (validation, test)]
        if all(split.has_both_classes for split in splits):
            metrics["binary"] = {
                "positive": task.classes[1],
                **operating_points(task.config.operating_targets, *splits),
            }

    # Each worker fills in its own positions; the sum with the zeros of the others is exact.
    probabilities = (test.logits.double() / temperature).softmax(dim=1)
    own = best_two(probabilities)
    local = torch.stack(
        [own.classes.double(), own.runners_up.double(), own.scores, own.runner_up_scores]
    )
    gathered = torch.zeros(4, len(samples), dtype=torch.float64, device=group.device)
    gathered[:, torch.from_numpy(test.positions).to(group.device)] = local
    classes, runners_up, scores, runner_up_scores = group.all_reduce_sum(gathered)
    predictions = TestPredictions(classes.long(), scores, runners_up.long(), runner_up_scores)
    return TestEvaluation(metrics, predictions)


def best_two(probabilities: Tensor) -> TestPredictions:
    """Return the two most probable classes of each sample, of probabilities [n, classes]."""
    scores, classes = probabilities.max(dim=1)
    others = probabilities.scatter(1, classes[:, None], -1.0)
    runner_up_scores, runners_up = others.max(dim=1)
    return TestPredictions(classes, scores, runners_up, runner_up_scores)


def _binary_scores(local: LocalLogits, temperature: float, group: Group) -> BinaryScores:
    """Return the probabilities of the second of two classes, from all workers."""
    probabilities = (local.logits.double() / temperature).softmax(dim=1)[:, 1]
    scores, targets = group.all_gather(torch.stack([probabilities, local.targets.double()])).cpu()
    return BinaryScores(scores.numpy(), targets.numpy() == 1)


def compute_split_metrics(
    local: LocalLogits, classes: list[str], group: Group, temperature: float
) -> dict[str, Any]:
    """Return the metrics of a split; `calibrated` holds those that the temperature changes."""
    plain = compute_metrics(local.logits, local.targets, classes, group)
    calibrated = compute_metrics(
        local.logits, local.targets, classes, group, temperature=temperature
    )

    return {
        **asdict(plain),
        "calibrated": {"loss": calibrated.loss, "calibration_error": calibrated.calibration_error},
    }
