"""The workers of one training: who am I among how many, and sums over all of us."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# torch 2.15 renamed the option and warns at the old name; torch 2.11 knows only the old one.
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS_STAY: Any = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}


class Group:
    """One worker's view of its process group; without one, a group of one."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        concat_columns = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if concat_columns else 0
        self.size = dist.get_world_size() if concat_columns else 1

    @property
    def leads(self) -> bool:
        """Whether this worker speaks and writes for all."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all(self, holds: bool) -> bool:
        """Whether it holds on every worker."""
        return int(self.sum(torch.tensor(int(holds), device=self.device))) == self.size

    def same(self, number: int) -> bool:
        """Whether all workers have the same number, up to 2**53."""
        numbers = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        numbers[self.rank] = number
        return len(set(self.sum(numbers).tolist())) == 1

    def agree(self, module: nn.Module) -> None:
        """Give every worker rank 0's parameters and buffers."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)

    def average_buffers(self, module: nn.Module, *others: nn.Module) -> None:
        """Give every worker the mean of all workers' BatchNorm statistics, of which each has seen its share.

        Of layers in training mode alone: what is frozen stays bit for bit. `others` are of the same structure.
        """
        if self.size == 1:
            return
        names = [name for name, layer in module.named_modules() if layer.training]
        for one in dict.fromkeys((module, *others)):
            layers = (one.get_submodule(name) for name in names)
            moved = [
                value
                for layer in layers
                for value in layer.buffers(recurse=False)
                if value.is_floating_point()
            ]
            if moved:
                mean = self.sum(torch.cat([value.flatten() for value in moved])) / self.size
                parts = torch.split(mean, [value.numel() for value in moved])
                for value, part in zip(moved, parts, strict=True):
                    value.copy_(part.view_as(value))

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over workers.

        On GPUs BatchNorm then sees the whole batch. On CPUs, where torch has no such layer, it sees each worker's
        share, and the running statistics stay each worker's own until `average_buffers`.
        """
        if self.size == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(module, gradient_as_bucket_view=True, **_BUFFERS_STAY)
