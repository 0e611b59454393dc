"""The process group of a training: rank, size, and collective operations."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from afinar.models.networks.timm_networks import sync_batch_norm

# torch 2.15 renamed the option and warns about the old name; torch 2.11 has only the old one.
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_KEEP_BUFFERS: Any = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}


class Group:
    """The default process group as one worker sees it; a group of one without torch.distributed.

    With `alone` it is a group of one in any case.

    Every method but `wrap` and `bind_device` is a collective operation: all workers must call it in
    the same order.
    """

    def __init__(self, device: str | torch.device = "cpu", *, alone: bool = False) -> None:
        self.device = torch.device(device)
        initialized = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if initialized else 0
        self.size = dist.get_world_size() if initialized else 1

    def bind_device(self) -> None:
        """Tell the process group which GPU it uses, where its creator did not pass `device_id`.

        Else NCCL guesses the GPU from the rank where it needs one, with a warning.
        """
        if self.size > 1 and self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            dist.distributed_c10d._get_default_group().bound_device_id = self.device

    @property
    def is_rank_zero(self) -> bool:
        """True for the worker that logs and writes on behalf of all."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all workers, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the columns [k, n] of all workers' tensors [k, m], in the order of ranks.

        `m` may differ between workers and may be 0.
        """
        counts = torch.zeros(self.size, dtype=torch.int64, device=tensor.device)
        counts[self.rank] = tensor.shape[1]
        bounds = [0, *self.all_reduce_sum(counts).cumsum(0).tolist()]

        # Each worker fills its own columns; the sum with the zeros of the others is exact.
        gathered = tensor.new_zeros(tensor.shape[0], bounds[-1])
        gathered[:, bounds[self.rank] : bounds[self.rank + 1]] = tensor
        return self.all_reduce_sum(gathered)

    def all_true(self, condition: bool) -> bool:
        """Return True if the condition holds on every worker."""
        count = self.all_reduce_sum(torch.tensor(int(condition), device=self.device))
        return int(count) == self.size

    def all_equal(self, number: int) -> bool:
        """Return True if all workers pass the same number; exact below 2^53."""
        numbers = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        numbers[self.rank] = number
        return len(set(self.all_reduce_sum(numbers).tolist())) == 1

    def broadcast_parameters(self, module: nn.Module) -> None:
        """Overwrite the parameters and buffers of all workers by those of rank 0."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)

    def average_buffers(self, module: nn.Module, *others: nn.Module) -> None:
        """Overwrite the floating-point buffers (BatchNorm statistics) by their mean over workers.

        Only layers of `module` in training mode are averaged: frozen layers stay bit for bit.
        `others` have the structure of `module`; the same layers of them are averaged.
        """
        if self.size == 1:
            return

        names = [name for name, layer in module.named_modules() if layer.training]
        for owner in dict.fromkeys((module, *others)):
            layers = (owner.get_submodule(name) for name in names)
            buffers = [
                buffer
                for layer in layers
                for buffer in layer.buffers(recurse=False)
                if buffer.is_floating_point()
            ]
            if not buffers:
                continue

            # One collective for all buffers, as a flat vector.
            mean = self.all_reduce_sum(torch.cat([buffer.flatten() for buffer in buffers]))
            parts = torch.split(mean / self.size, [buffer.numel() for buffer in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module wrapped so that gradients are averaged over workers.

        On GPUs BatchNorm layers compute statistics of the global batch (SyncBatchNorm). torch has
        no such layer for CPUs: there each worker uses its own slice of the batch, and running
        statistics differ between workers until `average_buffers`.
        """
        if self.size == 1:
            return module
        if self.device.type == "cuda":
            module = sync_batch_norm(module)
        return DistributedDataParallel(module, gradient_as_bucket_view=True, **_KEEP_BUFFERS)
