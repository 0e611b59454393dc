"""Rate and size of a network when it labels, measured once for each cut."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from afinar.comparison.cells import FOLDER
from afinar.config.base import fingerprint
from afinar.config.strict import Count
from afinar.config.train import Pool
from afinar.errors import NotFoundError
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.cuts import cut_at_several
from afinar.storage.open import open_store
from afinar.storage.records import read_record
from afinar.units.own_process import keep_freed_memory

_BATCH: Final = 8
_MEASURED_S: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class RateTask:
    """A cut whose rate is to be measured, in a store of comparisons."""

    runs: str
    backbone: str
    cut: str
    pool: Pool
    input_size: int


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Pictures per second of one process with one core, in float32, and parameters of the network.

    `bytes` are those of the weights up to the cut.
    """

    pictures_per_s: float
    params: Count
    bytes: Count


def _name(task: RateTask) -> str:
    values = {name: value for name, value in asdict(task).items() if name != "runs"}
    return f"{FOLDER}/rates/{fingerprint(values)[:16]}.json"


def read_rate(task: RateTask) -> Rate | None:
    """Return a stored rate, None if it was not measured."""
    try:
        return read_record(open_store(task.runs), _name(task), Rate)
    except NotFoundError:
        return None


def measure_rate(task: RateTask) -> Rate:
    """Measure the forward pass of a cut, or return the stored rate. Its weights are random."""
    stored = read_rate(task)
    if stored is not None:
        return stored
    size = task.input_size or require_backbone(task.backbone).input_size
    whole = build_backbone(task.backbone, size)
    module: nn.Module = cut_at_several(whole, [(task.cut, task.pool)]).module
    tensors = [*module.parameters(), *module.buffers()]
    rate = Rate(
        pictures_per_s=_pictures_per_s(module, size),
        params=sum(parameter.numel() for parameter in module.parameters()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
    open_store(task.runs).put_if_absent(_name(task), json.dumps(asdict(rate)).encode())
    return rate


def _pictures_per_s(module: nn.Module, size: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a labelling worker does
    try:
        folded = fuse(module.eval(), no_trace=True).to(memory_format=torch.channels_last)
        images = torch.zeros(_BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            folded(images)  # the first pass allocates memory
            started, passes = time.perf_counter(), 0
            while time.perf_counter() - started < _MEASURED_S or not passes:
                folded(images)
                passes += 1
            return round(_BATCH * passes / (time.perf_counter() - started), 1)
    finally:
        torch.set_num_threads(threads)
