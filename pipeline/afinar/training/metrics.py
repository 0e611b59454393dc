"""Metrics and temperature of a model on one split, computed by all workers from their own samples.

Every function with a `group` is a collective operation: all workers call it, each with the logits
and targets of its own samples, and get the same result. No sample is padded or repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.errors import DivergedError
from afinar.training.counts import TOP_K, ClassificationCounts
from afinar.training.distributed import Group

_BLOCK: Final = 8192  # samples per pass: bounds the memory of float64 copies of logits
_BISECTIONS: Final = 32  # of an interval of length 6: a precision of 1.4e-9


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics on one split; JSON-able, without NaN.

    `loss` is the mean cross-entropy in nats. `top1` and `top5` are shares of samples; `top5` is
    None for fewer than six classes. `recall` is by class name, None for a class without samples.
    `macro_f1` is the mean over classes that occur among targets or predictions, as in scikit-learn:
    a class that is predicted but never true counts as 0. `largest_share` is the share of the most
    frequent class, `largest_class`: the top-1 of always answering it. `auroc` is that of the second
    of two classes, None if there are more classes or if one has no sample. `calibration_error` is
    the expected calibration error: over 15 equal bins of confidence, the mean distance between
    confidence and accuracy (Guo et al. 2017, arXiv 1706.04599).
    """

    loss: float
    top1: float
    top5: float | None
    recall: dict[str, float | None]
    macro_f1: float
    largest_class: str
    largest_share: float
    auroc: float | None
    calibration_error: float
    samples: int


def compute_metrics(
    logits: Tensor, targets: Tensor, classes: list[str], group: Group, *, temperature: float = 1.0
) -> Metrics:
    """Compute metrics from the logits [m, classes] and targets int64 [m] of this worker.

    `m` may differ between workers and may be 0. Probabilities are the softmax of logits /
    temperature. Raises DivergedError on all workers if the loss is not finite, ValueError if there
    is no sample.
    """
    counts = ClassificationCounts.zeros(len(classes), logits.device)
    for block, block_targets in _blocks(logits, targets):
        counts.update(block / temperature, block_targets)
    counts.all_reduce_sum(group)

    of_class: list[int] = counts.targets.tolist()
    correct: list[int] = counts.correct.tolist()
    samples = sum(of_class)
    if not samples:
        raise ValueError("the split has no sample")
    loss = _require_finite(counts.loss.item() / samples)

    # The counts are the same on all workers, so all of them compute the AUROC or none does.
    largest = max(range(len(classes)), key=of_class.__getitem__)
    has_auroc = len(classes) == 2 and all(of_class)
    _, confidence_sum, correct_in_bin = counts.bins
    return Metrics(
        loss=loss,
        top1=sum(correct) / samples,
        top5=counts.top_k.item() / samples if len(classes) > TOP_K else None,
        recall={
            name: hits / total if total else None
            for name, hits, total in zip(classes, correct, of_class, strict=True)
        },
        macro_f1=_macro_f1(correct, of_class, counts.predictions.tolist()),
        largest_class=classes[largest],
        largest_share=of_class[largest] / samples,
        auroc=_auroc(logits, targets, group) if has_auroc else None,
        calibration_error=float((confidence_sum - correct_in_bin).abs().sum()) / samples,
        samples=samples,
    )


def platt_smoothing(samples: float, classes: int) -> float:
    """Return the label smoothing that gives the target the probability (n + 1) / (n + 2).

    These are the targets of Platt scaling (Platt 1999) for n `samples`; the other classes share the
    rest.
    """
    return classes / ((classes - 1) * (samples + 2))


def fit_temperature(logits: Tensor, targets: Tensor, group: Group) -> float:
    """Return the temperature in [0.05, 20] that minimizes the negative log-likelihood (NLL).

    Temperature scaling: Guo et al. 2017, arXiv 1706.04599. The targets are those of
    `platt_smoothing`. Otherwise a few samples that are predicted with hardly a mistake would give a
    temperature near 0, and a model that is confidently wrong about others. The NLL is convex in
    1 / temperature, so bisection of the logarithm of the temperature by the sign of the slope finds
    the minimum to nine digits, in the same number of steps on every worker. Returns 1.0 if no
    temperature lowers the NLL, or without samples. Arguments and errors are those of
    `compute_metrics`.
    """
    samples = torch.tensor(len(targets), dtype=torch.float64, device=logits.device)
    smoothing = platt_smoothing(group.all_reduce_sum(samples).item(), logits.shape[1])
    nll_at_1 = _nll(logits, targets, 1.0, smoothing, group)
    low, high = math.log(0.05), math.log(20.0)
    if _slope(logits, targets, low, smoothing, group) >= 0:
        return 1.0

    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _slope(logits, targets, middle, smoothing, group) < 0:
            low = middle
        else:
            high = middle

    temperature = math.exp((low + high) / 2)
    return temperature if _nll(logits, targets, temperature, smoothing, group) < nll_at_1 else 1.0


def _blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits as float64, and their targets; at least one block, which may be empty."""
    for start in range(0, max(1, len(targets)), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield logits[block].detach().double(), targets[block]


def _macro_f1(correct: list[int], targets: list[int], predictions: list[int]) -> float:
    """Return the mean of 2 * correct / (targets + predictions) over classes that occur."""
    scores = [
        2 * hits / (true + predicted)
        for hits, true, predicted in zip(correct, targets, predictions, strict=True)
        if true + predicted
    ]
    return sum(scores) / len(scores)


def _auroc(logits: Tensor, targets: Tensor, group: Group) -> float:
    """Return the share of pairs (sample of class 1, sample of class 0) that the model orders right.

    That is the area under the ROC curve (Mann-Whitney U); a tie counts half. Samples are ordered by
    the difference of their logits, because probabilities above 37 nats all round to 1.

    Example: class 0 has the margins 1 and 2, class 1 has 2 and 3. Of the four pairs (2, 1), (3, 1)
    and (3, 2) are right and (2, 2) is a tie: 3.5 / 4 = 0.875.
    """
    margins = logits[:, 1].detach().double() - logits[:, 0].detach().double()
    gathered = group.all_gather(torch.stack([margins, targets.double()]))

    values, place, total = torch.unique(gathered[0], return_inverse=True, return_counts=True)
    positives = place[gathered[1] == 1].bincount(minlength=len(values))
    negatives = total - positives

    # `values` is sorted: the negatives below a value are those of all values before it.
    below = negatives.cumsum(0) - negatives
    twice_ordered = (positives * (2 * below + negatives)).sum()
    return int(twice_ordered) / (2 * int(positives.sum()) * int(negatives.sum()))


def _require_finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise DivergedError(
            "the outputs of the network are not finite numbers: train with a smaller "
            "--learning-rate"
        )
    return loss


def _nll(
    logits: Tensor, targets: Tensor, temperature: float, smoothing: float, group: Group
) -> float:
    """Return the sum of the negative log-likelihood over the samples of all workers.

    `smoothing` is the share of a target's probability that is spread evenly over all classes.
    """
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, block_targets in _blocks(logits, targets):
        total += F.cross_entropy(
            block / temperature, block_targets, reduction="sum", label_smoothing=smoothing
        )
    return _require_finite(group.all_reduce_sum(total).item())


def _slope(
    logits: Tensor, targets: Tensor, log_temperature: float, smoothing: float, group: Group
) -> float:
    """Return the derivative of the NLL by the temperature, times the temperature squared.

    For one sample with logits z, target t, probabilities p and smoothing s over c classes it is the
    sum of (s / c - p_k) * (z_k - z_t). Without smoothing it is never negative if the target has the
    largest logit. Example: z = (2, 0), t = 0, temperature 1 gives p = (0.88, 0.12) and a slope of
    -0.12 * (0 - 2) = 0.24. With a smoothing of 0.1 it is (0.05 - 0.12) * (0 - 2) = 0.14.
    """
    even = smoothing / logits.shape[1]
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, block_targets in _blocks(logits, targets):
        margins = block - block.gather(1, block_targets[:, None])
        probabilities = (margins / math.exp(log_temperature)).softmax(dim=1)
        total += ((even - probabilities) * margins).sum()
    return group.all_reduce_sum(total).item()
