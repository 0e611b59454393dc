"""Adversarial pictures: the smallest changes that a model's gradient finds, within a bound.

FGSM (Goodfellow et al. 2015, arXiv 1412.6572) takes one step, PGD (Madry et al. 2018, arXiv
1706.06083) many from random starts, with cross-entropy and with a margin loss (Carlini and Wagner
2017, arXiv 1608.04644): the first has no gradient left where a model is very certain. Both change
the stored view, whose levels are integers of 0 to 255. Resize and normalisation are differentiated.

With integer bounds all steps are of whole levels, so that every candidate is a picture that can be
stored: nothing is lost when it is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.explain.network import ExplainedNetwork

LOSSES: Final = ("cross-entropy", "margin")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Options of an attack. `epsilon` is the bound in levels of 255; `seed` that of the starts.

    With `stops_early` a picture is left as soon as it succeeds; else the steps go on, and of the
    candidates that succeed the one with the lowest loss is taken: the model is surer of it.
    """

    epsilon: float
    steps: int = 20
    restarts: int = 2
    seed: int = 0
    stops_early: bool = True

    @property
    def step(self) -> float:
        """Levels of one step: 2.5 bounds over all steps, whole levels if the bound is whole."""
        size = 2.5 * self.epsilon / self.steps
        return max(1.0, round(size)) if float(self.epsilon).is_integer() else size


@dataclass(frozen=True)
class Attacked:
    """Pictures float [n, size, size, 3] after an attack, and whether it succeeded [n]."""

    pixels: Tensor
    succeeded: Tensor


def fgsm(
    network: ExplainedNetwork,
    pixels: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    epsilon: float,
) -> Attacked:
    """Move every colour value by `epsilon` against the gradient of the cross-entropy."""
    gradient = _gradient(network, pixels, labels, targets, "cross-entropy")
    changed = (pixels - epsilon * gradient.sign()).clamp(0, 255)
    return Attacked(changed, _has_succeeded(network, changed, labels, targets))


def pgd(
    network: ExplainedNetwork,
    pixels: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    attack: Attack,
    *,
    start: Tensor | None = None,
) -> Attacked:
    """Attack pictures float [n, size, size, 3] of whole levels.

    `labels` int64 [n] are the classes to leave, `targets` those to reach, None for any other. Of
    all candidates of both losses and all restarts the first that succeeds is taken; for a picture
    without one, the last. The first restart begins at `start`, by default the picture itself. A
    picture is within `epsilon` levels of `pixels`, by construction.
    """
    generator = torch.Generator().manual_seed(attack.seed)
    best = (pixels if start is None else start).clone()
    succeeded = _has_succeeded(network, best, labels, targets)

    for restart in range(attack.restarts):
        for loss in LOSSES:
            open_rows = (~succeeded).nonzero()[:, 0]
            if not len(open_rows):
                return Attacked(best, succeeded)
            chosen = None if targets is None else targets[open_rows]
            begin = (
                best[open_rows]
                if restart == 0
                else _random_start(pixels[open_rows], attack.epsilon, generator)
            )
            found = _descend(
                network, pixels[open_rows], begin, labels[open_rows], chosen, attack, loss
            )
            best[open_rows] = found.pixels
            succeeded[open_rows] = found.succeeded
    return Attacked(best, succeeded)


def _descend(
    network: ExplainedNetwork,
    pixels: Tensor,
    begin: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    attack: Attack,
    loss: str,
) -> Attacked:
    """Descend one loss; see Attack for what is kept."""
    low, high = (pixels - attack.epsilon).clamp(min=0), (pixels + attack.epsilon).clamp(max=255)
    current, best = begin.clone(), begin.clone()
    succeeded = _has_succeeded(network, current, labels, targets)
    lowest = torch.full(succeeded.shape, torch.inf, device=pixels.device)

    for step in range(attack.steps):
        rows = (~succeeded).nonzero()[:, 0] if attack.stops_early else _all_rows(pixels)
        if not len(rows):
            break
        chosen = None if targets is None else targets[rows]
        gradient = _gradient(network, current[rows], labels[rows], chosen, loss)
        # The last steps are smaller, to settle; whole levels stay whole.
        size = attack.step if step < 0.75 * attack.steps else max(attack.step / 2, 1.0)
        size = attack.step if attack.step < 1 else float(int(size))
        moved = current[rows] - size * gradient.sign()
        current[rows] = torch.minimum(torch.maximum(moved, low[rows]), high[rows])

        answers = _answers(network, current[rows], labels[rows], chosen, loss)
        is_better = answers.succeeded & (answers.loss < lowest[rows])
        is_better |= ~succeeded[rows] & ~answers.succeeded  # nothing better to keep
        best[rows[is_better]] = current[rows[is_better]]
        lowest[rows[answers.succeeded & is_better]] = answers.loss[answers.succeeded & is_better]
        succeeded[rows] |= answers.succeeded
    return Attacked(best, succeeded)


def _gradient(
    network: ExplainedNetwork,
    pixels: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    loss: str,
) -> Tensor:
    """Return the gradient of the loss that an attack descends, in batches."""
    parts = []
    for start in range(0, len(pixels), network.batch_size):
        rows = slice(start, start + network.batch_size)
        batch = pixels[rows].clone().requires_grad_(True)
        logits = network.logits(batch)
        wanted = None if targets is None else targets[rows]
        total = _losses(logits, labels[rows], wanted, loss).sum()
        parts.append(torch.autograd.grad(total, batch)[0])
    return torch.cat(parts)


def _losses(logits: Tensor, labels: Tensor, targets: Tensor | None, loss: str) -> Tensor:
    """Return what falls as the attack comes nearer, float [n]."""
    wanted = labels if targets is None else targets
    if loss == "cross-entropy":
        entropy = F.cross_entropy(logits, wanted, reduction="none")
        return -entropy if targets is None else entropy
    own = logits.gather(1, wanted[:, None])[:, 0]
    others = logits.scatter(1, wanted[:, None], -torch.inf).amax(dim=1)
    return own - others if targets is None else others - own


def _all_rows(pixels: Tensor) -> Tensor:
    return torch.arange(len(pixels), device=pixels.device)


class _Answers(NamedTuple):
    """Success of the attack on each picture, bool [n], and its loss, float [n]."""

    succeeded: Tensor
    loss: Tensor


@torch.no_grad()
def _answers(
    network: ExplainedNetwork, pixels: Tensor, labels: Tensor, targets: Tensor | None, loss: str
) -> _Answers:
    logits = torch.cat(
        [
            network.logits(pixels[start : start + network.batch_size])
            for start in range(0, len(pixels), network.batch_size)
        ]
    )
    answer = logits.argmax(dim=1)
    succeeded = answer != labels if targets is None else answer == targets
    return _Answers(succeeded, _losses(logits, labels, targets, loss))


def _has_succeeded(
    network: ExplainedNetwork, pixels: Tensor, labels: Tensor, targets: Tensor | None
) -> Tensor:
    """Return for each picture whether the model answers what the attack wants."""
    return _answers(network, pixels, labels, targets, LOSSES[0]).succeeded


def _random_start(pixels: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return pictures within the bound; with a whole bound, of whole levels."""
    share = torch.rand(pixels.shape, generator=generator).to(pixels.device)
    change = epsilon * (2 * share - 1)
    if float(epsilon).is_integer():
        change = change.round()
    return (pixels + change).clamp(0, 255)
