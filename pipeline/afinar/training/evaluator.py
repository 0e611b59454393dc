"""Evaluation of a model on a split, each worker on its slice."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from afinar.models.networks.network import default_batch_size
from afinar.models.networks.precision import autocast
from afinar.training.batches import Samples
from afinar.training.distributed import Group
from afinar.training.inputs import Inputs
from afinar.training.loading import load_batches
from afinar.training.metrics import Metrics, compute_metrics
from afinar.training.sampler import RowNumbers, rank_slice
from afinar.training.timing import EpochTimer


@dataclass(frozen=True)
class LocalLogits:
    """Logits float32 [m, classes] of this worker's samples, and their targets int64 [m].

    `positions` int64 [m] count within the samples of the split.
    """

    positions: RowNumbers
    logits: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Evaluator:
    """Computes logits and metrics from `inputs` without augmentation.

    `precision` is that of `evaluate`, which compares epochs.
    """

    inputs: Inputs
    classes: list[str]
    group: Group
    num_loader_threads: int
    precision: torch.dtype = torch.float32

    def compute_logits(
        self, model: nn.Module, samples: Samples, precision: torch.dtype = torch.float32
    ) -> LocalLogits:
        """Return the logits of this worker's slice of `samples`. Switches the model to eval mode.

        No sample is padded or repeated, so slices may differ in length by one and be empty.
        """
        model.eval()
        device, rows = self.group.device, samples.rows
        positions = rank_slice(np.arange(len(rows)), self.group.rank, self.group.size)
        size = default_batch_size(device)
        batches = [
            rows[positions[start : start + size]] for start in range(0, len(positions), size)
        ]

        timer = EpochTimer(device)  # not read
        logits = [torch.zeros(0, len(self.classes), device=device)]
        loading = load_batches(self.inputs.load, batches, self.num_loader_threads)
        with contextlib.closing(loading), torch.no_grad():
            for batch, loaded in loading:
                inputs = self.inputs.to_device(loaded, batch, None, timer)
                with autocast(device, precision):
                    outputs = model(inputs)
                logits.append(outputs.float())
        return LocalLogits(positions, torch.cat(logits), samples.targets_on(device, positions))

    def evaluate(self, model: nn.Module, samples: Samples) -> Metrics:
        """Return the metrics of all workers' samples; a collective operation."""
        local = self.compute_logits(model, samples, self.precision)
        return compute_metrics(local.logits, local.targets, self.classes, self.group)
