"""What needs a GPU, or a processor that multiplies bfloat16 in tiles: not measured where there is none."""

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
GPU_BATCH: Final = 128
GPU_STEPS: Final = 32
GPU_EPOCHS: Final = 6
GPU_THREADS: Final = 4  # of the CPU; the GPU's work is not divided by them
BFLOAT16_FASTER: Final = 2.0
BFLOAT16_BATCH: Final = 32
BFLOAT16_STEPS: Final = 12


def has_gpu() -> bool:
    """Whether torch finds one."""
    import torch

    return torch.cuda.is_available()


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:  # not Linux
        return False
    return "amx_bf16" in flags


def gpu() -> bool:
    """resnet50 in bfloat16 from shards: at least 0.95 of the steps per second on batches that lie on the GPU."""
    if not has_gpu():
        raise NotMeasuredError("no GPU")
    steps = scaled(GPU_STEPS)
    with in_memory() as folder:
        dataset = make_dataset(folder, SIZE, steps * GPU_BATCH)
        request = steps_request(dataset, folder / "models", steps) | {
            "backbone": "resnet50", "size": SIZE, "batch": GPU_BATCH, "device": "cuda:0", "precision": "bfloat16",
            "epochs": GPU_EPOCHS, "threads": GPU_THREADS,
        }  # fmt: skip
        synthetic, ours = _pairs(request | {"synthetic": True}, request)
    require_alike(ours, synthetic)
    return _report(
        ours, synthetic, GPU_SHARE, "in the GPU's memory",
        f"gpu: {ours[0]['device']}, resnet50 at {SIZE} px, full, bfloat16, batch {GPU_BATCH}, shards in memory",
    )  # fmt: skip


def bfloat16() -> bool:
    """resnet18, two threads: the job in bfloat16 and channels last, at least twice a plain loop in torch's defaults."""
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
    for runs, kind in (
        (ours, (["bfloat16"], ["channels last"])),
        (plain, (["float32"], ["default"])),
    ):
        if any((run["dtypes"], run["layouts"]) != kind for run in runs):
            raise WrongBenchError(f"not {kind}: {runs[0]['dtypes']}, {runs[0]['layouts']}")
    return _report(
        ours, plain, BFLOAT16_FASTER, "float32, default layout, in memory",
        f"bfloat16: resnet18 at {SIZE} px, full, batch {BFLOAT16_BATCH}, two threads, shards in memory",
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
        ("afinar, steps/s", f"{against}, steps/s", "not computing, by its ledger", "ratio", "limit", "met")
    )  # fmt: skip
    table.limit(
        spread([run["rate"] for run in ours], "{:.2f}"), spread([run["rate"] for run in others], "{:.2f}"),
        waited(ours), precise(ratio), f"≥ {least:g}", holds=ratio.median >= least,
    )  # fmt: skip
    return table.show(title)
