"""MLP head trained on features that are in memory."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afinar.errors import DivergedError
from afinar.models.networks.heads import linear_layers
from afinar.training.linear_probe import Features
from afinar.training.optimizers import optim, take_step

_EPOCHS: Final = 60
_PATIENCE: Final = 8  # epochs without a lower validation loss
_BATCH: Final = 64
_RATE: Final = 1e-3
_WEIGHT_DECAY: Final = 1e-2


@dataclass(frozen=True)
class MlpFit:
    """A head on plain features, and the metrics of each epoch on validation."""

    module: nn.Module
    history: list[dict[str, Any]]


def fit_mlp(head: nn.Module, train: Features, validation: Features, seed: int) -> MlpFit:
    """Train a head on standardised features; return it for plain features.

    `head` is what `build_head` returns for an mlp; its first values are drawn anew from the seed.
    The best epoch by validation loss is returned, and training ends after eight epochs that are no
    better. Mean and standard deviation of the training features are folded into the first layer:
    w (x - mean) / std + b = (w / std) x + b - (w / std) mean. Raises DivergedError if the loss is
    not finite.
    """
    mean = train.values.mean(dim=0)
    std = train.values.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))
    inputs, held_out = ((split.values - mean) / std for split in (train, validation))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in linear_layers(head):
            layer.reset_parameters()
        best, history = _train(head, Features(inputs, train.targets), held_out, validation.targets)
    head.load_state_dict(best)
    first = linear_layers(head)[0]
    with torch.no_grad():
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)
    return MlpFit(head.eval(), history)


def _train(
    head: nn.Module, train: Features, held_out: Tensor, targets: Tensor
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the weights of the best epoch, and the metrics of all."""
    optimizer = optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    best, best_loss, best_epoch = copy.deepcopy(head.state_dict()), math.inf, 0
    history = []
    for epoch in range(1, _EPOCHS + 1):
        head.train()
        for rows in torch.split(torch.randperm(len(train)), _BATCH):
            loss = F.cross_entropy(head(train.values[rows]), train.targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            take_step(optimizer)

        head.eval()
        with torch.no_grad():
            logits = head(held_out)
            loss_value = F.cross_entropy(logits, targets).item()
            top1 = (logits.argmax(dim=1) == targets).double().mean().item()
        if not math.isfinite(loss_value):
            raise DivergedError("the loss of an mlp on these features is not finite")
        history.append({"epoch": epoch, "loss": loss_value, "top1": top1})
        if loss_value < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(head.state_dict()), loss_value, epoch
        elif epoch - best_epoch >= _PATIENCE:
            break
    return best, history
