"""Labelling on a GPU from shards, against the forward pass on pictures that are on the GPU."""

from __future__ import annotations

from typing import Final

from tests.bench.hardware import has_gpu
from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.training_data import make_dataset
from tests.bench.world import (
    NotMeasuredError,
    in_memory,
    round_folder,
    run_side,
    scaled,
)

SHARE: Final = 0.85
SIZE: Final = 224
COUNT: Final = 40_000
DISTINCT: Final = 2000
BATCHES: Final = (64, 128, 256, 512)
SECONDS: Final = 5.0


def label_gpu() -> bool:
    """Require that resnet50 labels from shards at 0.85 of its rate on pictures on the GPU.

    The labelling runs in one process without Ray, which the machine need not have.
    """
    if not has_gpu():
        raise NotMeasuredError("no GPU")
    ours: list[float] = []
    synthetic: list[float] = []
    with in_memory() as folder:
        dataset = make_dataset(folder, SIZE, scaled(COUNT), DISTINCT)
        model = make_model(folder / "models", "resnet50", SIZE, "pad")
        for number in range(PAIRS):
            request = {"model": model, "device": "cuda:0", "batches": BATCHES, "seconds": SECONDS}
            answer = run_side("label_forward", request)
            synthetic.append(answer["rate"])
            with round_folder(folder, f"round-{number}") as out:
                job = {"source": str(dataset), "predictions": str(out / "all"), "model": model}
                record = run_side("label_threads", {"labellings": [job]})
                require_every("afinar", read_ours(out / "all"), folder / "source")
            (run,) = record["labellings"]
            ours.append(run["steady_rate"])
    ratio = Ratio.of(ours, synthetic)
    table = Table(("afinar, pictures/s", "pictures on the GPU, /s", "share", f"≥ {SHARE}"))
    table.limit(spread(ours), spread(synthetic), ratio, holds=ratio.median >= SHARE)
    return table.show(
        f"label_gpu: {answer['device']}, resnet50 at {SIZE} px, {answer['dtype']}, shards in "
        "memory, after the first third"
    )
