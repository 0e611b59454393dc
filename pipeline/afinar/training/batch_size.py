"""Batch size of a GPU by trial: the largest that still shortens the time of a picture."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F

from afinar.config.base import fingerprint
from afinar.models.networks.precision import autocast
from afinar.storage.cache import Cache, read_note, write_note
from afinar.training.distributed import Group
from afinar.training.hyperparameters import largest_batch
from afinar.training.inputs import PixelInputs
from afinar.training.optimizers import optim, take_step
from afinar.training.preparation import TrainedPart
from afinar.training.task import TrainTask

logger = logging.getLogger(__name__)

_SIZES: Final = (32, 64, 128, 256, 512, 1024)
_LEAST_GAIN: Final = 0.05  # of the time of a picture; a larger batch has costs of its own
_WARM_UP: Final = 2  # steps that select kernels and take memory
_STEPS: Final = 5
_HEAD_BATCH: Final = 64  # of a head on features, whose steps take no time worth a trial


def common_batch(task: TrainTask, part: TrainedPart, group: Group, precision: torch.dtype) -> int:
    """Return the number of samples per worker that rank 0 finds best; a collective operation.

    What was found is noted on the machine, for the next training of this network on such a GPU.
    """
    if not isinstance(part.inputs, PixelInputs):
        return _HEAD_BATCH
    found = _noted_or_measured(task, part, group, precision) if group.is_rank_zero else 0
    return int(group.all_reduce_sum(torch.tensor(found, device=group.device)))


def _noted_or_measured(
    task: TrainTask, part: TrainedPart, group: Group, precision: torch.dtype
) -> int:
    config, limit = task.config, largest_batch(task.epoch_samples, group.size) // group.size
    sizes = [size for size in _SIZES if size <= limit] or [_SIZES[0]]
    name = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "cpu"
    key = [vars(task.architecture), config.regime, config.optimizer, str(precision), sizes, name]
    note = f"train-batch-{fingerprint([*key, torch.__version__])[:32]}"
    noted = read_note(Cache(), note)
    if noted is not None and noted.isdigit() and int(noted) in sizes:
        return int(noted)

    measure = StepTimer(part.module, task.architecture.input_size, group.device, precision)
    size = largest_useful_batch(sizes, measure)
    write_note(Cache(), note, str(size).encode())
    logger.info(
        f"batch size by trial: {size} per worker, the largest power of two (up to {sizes[-1]}) at "
        "which a picture's share of a step still got shorter; --batch-size fixes it"
    )
    return size


def largest_useful_batch(sizes: Sequence[int], seconds_per_sample: Callable[[int], float]) -> int:
    """Return the last of ascending `sizes` before the time of a sample stops falling.

    `seconds_per_sample` is infinite for a size that does not fit into memory. Example: 32 takes 0.7
    ms a sample, 64 takes 0.4, 128 takes 0.25, 256 takes 0.22 and 512 takes 0.215. The last is less
    than 5 % better: the result is 256.
    """
    best, best_s = sizes[0], seconds_per_sample(sizes[0])

    for size in sizes[1:]:
        sample_s = seconds_per_sample(size)
        if sample_s > (1 - _LEAST_GAIN) * best_s:
            break
        best, best_s = size, sample_s
    return best


class StepTimer:
    """Measures training steps of a copy of a network on made-up pictures of two classes."""

    def __init__(
        self, module: nn.Module, size_px: int, device: torch.device, precision: torch.dtype
    ) -> None:
        self._module, self._size_px = module, size_px
        self._device, self._precision = device, precision

    def __call__(self, batch: int) -> float:
        """Return seconds per sample; infinity if the batch does not fit into memory."""
        devices = [self._device] if self._device.type == "cuda" else []
        # Neither weights, nor statistics of BatchNorm, nor random numbers of the training change.
        with torch.random.fork_rng(devices):
            try:
                return self._measure(copy.deepcopy(self._module), batch) / batch
            except torch.OutOfMemoryError:
                return float("inf")
            finally:
                if devices:
                    torch.cuda.empty_cache()

    def _measure(self, module: nn.Module, batch: int) -> float:
        images = torch.rand(batch, 3, self._size_px, self._size_px, device=self._device)
        images = images.contiguous(memory_format=torch.channels_last)
        targets = torch.zeros(batch, dtype=torch.int64, device=self._device)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = optim.AdamW(trained, lr=0.0)
        module.train()

        def step() -> None:
            with autocast(self._device, self._precision):
                outputs = module(images)
            loss = F.cross_entropy(_two_logits(outputs.float()), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            take_step(optimizer)
            optimizer.zero_grad()

        for _ in range(_WARM_UP):
            step()
        self._synchronize()
        started = time.perf_counter()
        for _ in range(_STEPS):
            step()
        self._synchronize()
        return (time.perf_counter() - started) / _STEPS

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _two_logits(outputs: torch.Tensor) -> torch.Tensor:
    """Return at least two columns: a sigmoid has one."""
    return torch.cat([outputs, -outputs], dim=1) if outputs.shape[1] == 1 else outputs
