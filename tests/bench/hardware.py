"""Benches that need a GPU, or a processor with instructions for bfloat16 (AMX)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.bench.stall import precise, require_alike, steps_request, waited
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.training_data import make_dataset
from tests.bench.world import (
    NotMeasuredError,
    Record,
    WrongBenchError,
    in_memory,
    require_cores,
    run_side,
    scaled,
)

SIZE: Final = 224
GPU_SHARE: Final = 0.95
GPU_BATCH: Final = 256
GPU_STEPS: Final = 32
GPU_DISTINCT: Final = 2000
GPU_EPOCHS: Final = 6
GPU_THREADS: Final = 4  # of the CPU
GPU_WINDOW_MB: Final = 4096  # the default: the first batch has rows of all shards
FIRST_BATCH_S: Final = 1.0
BFLOAT16_FASTER: Final = 2.0
BFLOAT16_BATCH: Final = 32
BFLOAT16_STEPS: Final = 12


def has_gpu() -> bool:
    """Return True if torch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def has_amx() -> bool:
    """Return True if the processor has AMX instructions for bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:  # not Linux
        return False
    return "amx_bf16" in flags


def gpu() -> bool:
    """Require that resnet50 trains from shards at 0.95 of its rate on batches on the GPU.

    The first batch of its first epoch must arrive within a second, with shards that this machine
    has not verified.
    """
    if not has_gpu():
        raise NotMeasuredError("no GPU")
    steps = scaled(GPU_STEPS)
    with in_memory() as folder:
        dataset = make_dataset(folder, SIZE, steps * GPU_BATCH, GPU_DISTINCT)
        request = steps_request(dataset, folder / "models", steps) | {
            "backbone": "resnet50", "size": SIZE, "batch": GPU_BATCH, "device": "cuda:0",
            "precision": "bfloat16", "epochs": GPU_EPOCHS, "threads": GPU_THREADS,
            "window_mb": GPU_WINDOW_MB, "cache": str(folder / "cache"),
        }  # fmt: skip
        synthetic, ours = _pairs(request | {"synthetic": True}, request)
    require_alike(ours, synthetic)
    first = Table(("first batch, s", f"≤ {FIRST_BATCH_S:g}"))
    seconds = [run["first_batch_s"] for run in ours]
    first.limit(spread(seconds, "{:.2f}"), holds=max(seconds) <= FIRST_BATCH_S)
    is_soon = first.show("gpu: wait for the first batch of the first epoch")
    return is_soon & _report(
        ours, synthetic, GPU_SHARE, "in the GPU's memory",
        f"gpu: {ours[0]['device']}, resnet50 at {SIZE} px, full, bfloat16, batch {GPU_BATCH}, "
        "shards in memory",
    )  # fmt: skip


def bfloat16() -> bool:
    """Require that training in bfloat16 is twice as fast as a loop with the defaults of torch.

    The job computes in bfloat16 and channels last, the loop in float32 and the default layout.
    """
    if not has_amx():
        raise NotMeasuredError("no AMX")
    require_cores()
    steps = scaled(BFLOAT16_STEPS)
    with in_memory() as folder:
        dataset = make_dataset(folder, SIZE, steps * BFLOAT16_BATCH)
        request = steps_request(dataset, folder / "models", steps) | {
            "size": SIZE, "batch": BFLOAT16_BATCH, "threads": 2, "precision": "bfloat16",
        }  # fmt: skip
        plain, ours = _pairs(
            request | {"synthetic": True, "precision": "float32", "layout": "default"}, request
        )
    for runs, expected in (
        (ours, (["bfloat16"], ["channels last"])),
        (plain, (["float32"], ["default"])),
    ):
        if any((run["dtypes"], run["layouts"]) != expected for run in runs):
            raise WrongBenchError(f"not {expected}: {runs[0]['dtypes']}, {runs[0]['layouts']}")
    return _report(
        ours, plain, BFLOAT16_FASTER, "float32, default layout, in memory",
        f"bfloat16: resnet18 at {SIZE} px, full, batch {BFLOAT16_BATCH}, two threads, "
        "shards in memory",
    )  # fmt: skip


def _pairs(other: Record, request: Record) -> tuple[list[Record], list[Record]]:
    others, ours = [], []
    for _ in range(PAIRS):
        others.append(run_side("train_steps", other, timeout_s=600))
        ours.append(run_side("train_steps", request, timeout_s=600))
    return others, ours


def _report(
    ours: list[Record], others: list[Record], least: float, against: str, title: str
) -> bool:
    ratio = Ratio.of([run["rate"] for run in ours], [run["rate"] for run in others])
    table = Table(
        ("afinar, steps/s", f"{against}, steps/s", "not computing, by its timings", "ratio",
         "limit", "met")
    )  # fmt: skip
    table.limit(
        spread([run["rate"] for run in ours], "{:.2f}"),
        spread([run["rate"] for run in others], "{:.2f}"),
        waited(ours), precise(ratio), f"≥ {least:g}", holds=ratio.median >= least,
    )  # fmt: skip
    return table.show(title)
