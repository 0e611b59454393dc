"""Nearest neighbours on features: a classifier without training, as a check of the features."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.training.linear_probe import Features

NEIGHBOURS: Final = 5
_BLOCK: Final = 1024  # rows of one product with all training features


def neighbour_logits(train: Features, values: Tensor, classes: int) -> Tensor:
    """Return logarithms of the shares of votes of the five nearest training samples, [n, classes].

    Features are centred on the training mean; nearness is their cosine, and a vote counts as much.
    Every class has a small share more, so that no logarithm is infinite.
    """
    mean = train.values.mean(dim=0)
    known = F.normalize(train.values - mean)
    votes = F.one_hot(train.targets, classes).to(known.dtype)
    logits = []
    for block in torch.split(values, _BLOCK):
        cosines, nearest = (F.normalize(block - mean) @ known.T).topk(min(NEIGHBOURS, len(known)))
        weights = cosines.clamp_min(1e-6)
        shares = (votes[nearest] * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1)[:, None]
        logits.append((shares + 0.5 / (NEIGHBOURS + 1)).log())
    return torch.cat(logits)
