"""Features computed once: against a forward pass per epoch, several cuts, C path, rate, float16.

    python -m tests.bench features

2,000 pictures of fabric at 224 px through EfficientNet-Lite0. Ratios are of measurements that are
taken in turn, so that a slow minute of the machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from afinar.comparison.driver import run_compare
from afinar.config.compare import CompareConfig
from afinar.config.features import FeaturesConfig
from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.features.driver import run_features
from afinar.features.network import (
    FeatureNetwork,
    FeatureRequest,
    load_feature_network,
    resolve_features,
)
from afinar.features.reader import list_all, open_features
from afinar.ingestion.driver import run_ingest
from afinar.training.distributed import Group
from afinar.training.linear_probe import Features, Objective, solve_head
from afinar.training.task import labelled_samples, plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.bench.photo_sets import make_fabric
from tests.bench.table import PAIRS, Table
from tests.bench.world import WrongBenchError, in_memory, scaled

BACKBONE: Final = "efficientnet_lite0"
CUTS: Final = ("features.4", "features.6", "auto")
EPOCHS: Final = 10
BATCH: Final = 8

TIMES_FASTER: Final = 6.0
THREE_CUTS: Final = 1.15
C_PATH_S: Final = 5.0
CHANGED_LABELS: Final = 0.001
SHARE_OF_FORWARD: Final = 0.85


def features() -> bool:
    """Run the bench and return True if all limits are met."""
    table = Table(("what", "measured", "limit", "met"))
    with in_memory() as folder:
        pictures = make_fabric(folder / "pictures")
        _keep(pictures, scaled(2000))
        dataset = str(folder / "dataset")
        run_ingest(IngestConfig(source=str(pictures), dataset=dataset, size=224), InlineExecutor())
        _cuts(dataset, table)
        _rate(dataset, table)
        _epochs(dataset, folder, table)
        _float16(dataset, table)
        _comparison(dataset, folder, table)
    _c_path(table)
    return table.show(f"features of {BACKBONE}, {scaled(2000)} pictures")


def _keep(pictures: Path, count: int) -> None:
    """Delete all but `count` of the pictures, evenly."""
    paths = sorted(pictures.rglob("*.jpg"))
    kept = {paths[position] for position in np.linspace(0, len(paths) - 1, count).astype(int)}
    for path in set(paths) - kept:
        path.unlink()


def _network(dataset: str, cuts: tuple[str, ...]) -> FeatureNetwork:
    request = FeatureRequest(
        backbone=BACKBONE,
        weights="imagenet",
        cuts=tuple((cut, "average") for cut in cuts),
        input_size=0,
        stored_view=open_dataset(dataset).view,
        precision="float32",
        stored_as="float16",
    )
    return load_feature_network(resolve_features(request).specs, "imagenet", torch.device("cpu"))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cuts(dataset: str, table: Table) -> None:
    """Compare three cuts in one pass with the deepest alone, pass by pass."""
    torch.set_num_threads(1)
    images = open_dataset(dataset).read(range(BATCH))
    together, alone = _network(dataset, CUTS), _network(dataset, CUTS[-1:])
    for network in (together, alone):
        network(images)
    passes = [
        (_seconds(lambda: together(images)), _seconds(lambda: alone(images)))
        for _ in range(scaled(60))
    ]
    ratio = median(three / one for three, one in passes)
    table.limit(
        "three cuts in one pass / the deepest alone",
        f"{ratio:.2f}",
        f"≤ {THREE_CUTS}",
        holds=ratio <= THREE_CUTS,
    )


def _rate(dataset: str, table: Table) -> None:
    """Compare the job's seconds in the network, and as a whole, with forward passes alone."""
    images = open_dataset(dataset).read(range(BATCH))
    network = _network(dataset, CUTS[-1:])
    network(images)
    count = len(open_dataset(dataset).index)
    forward_s = median(_seconds(lambda: network(images)) for _ in range(scaled(60))) / BATCH
    summary = run_features(
        FeaturesConfig(dataset=dataset, backbone=BACKBONE, cut="auto", stored_as="float32"),
        InlineExecutor(),
    )
    if summary.read != count:
        raise WrongBenchError(f"{summary.read} of {count} pictures were computed")
    share = forward_s * count / summary.seconds
    table.limit(
        "rate of the job / rate of forward passes alone, one core",
        f"{share:.2f} ({summary.images_per_second:.0f} pictures/s)",
        f"≥ {SHARE_OF_FORWARD}",
        holds=share >= SHARE_OF_FORWARD,
    )


def _epochs(dataset: str, folder: Path, table: Table) -> None:
    """Compare ten epochs on features, computed in the run, with a forward pass per epoch."""
    torch.set_num_threads(2)

    def run(name: str, window_mb: int) -> float:
        config = TrainConfig(
            dataset=dataset,
            models=str(folder / name),
            backbone=BACKBONE,
            regime="frozen",
            head_init="random",
            epochs=EPOCHS,
            window_mb=window_mb,
        )
        return _seconds(lambda: train(plan_training(config, "run"), Group()))

    # Features that do not fit the window are computed in every epoch.
    once, each = run("once", window_mb=4096), run("each", window_mb=1)
    ratio = each / once
    table.limit(
        f"frozen, {EPOCHS} epochs: forward pass per epoch / features once, which are computed",
        f"{ratio:.1f} ({each:.0f} s / {once:.0f} s)",
        f"≥ {TIMES_FASTER:.0f}",
        holds=ratio >= TIMES_FASTER,
    )


def _float16(dataset: str, table: Table) -> None:
    """Count the labels that a head on float32 features changes if it gets float16."""
    run_features(FeaturesConfig(dataset=dataset, backbone=BACKBONE, cut="auto"), InlineExecutor())
    opened = open_dataset(dataset)
    config = TrainConfig(dataset=dataset, models="unused")
    samples = labelled_samples(opened, config, opened.classes)
    ids = opened.index.column("sample_id")
    exact, stored = (open_features(dataset, key=key).read(ids) for key in _keys_by_type(dataset))
    known, held_out = (
        Features(torch.from_numpy(exact[split.rows]), torch.from_numpy(split.targets))
        for split in (samples.train, samples.validation)
    )
    head = solve_head(known, held_out, Objective(len(opened.classes)))
    labels = [head.logits(torch.from_numpy(values)).argmax(dim=1) for values in (exact, stored)]
    changed = float((labels[0] != labels[1]).double().mean())
    table.limit(
        "labels that float16 changes",
        f"{changed:.2%} of {len(ids)}",
        f"≤ {CHANGED_LABELS:.1%}",
        holds=changed <= CHANGED_LABELS,
    )


def _keys_by_type(dataset: str) -> tuple[str, str]:
    keys = {
        stored.spec.stored_as: stored.key
        for stored in list_all(dataset)
        if stored.manifest.width == 1280
    }
    return keys["float32"], keys["float16"]


def _comparison(dataset: str, folder: Path, table: Table) -> None:
    """State the share of a comparison of heads in which nothing is computed."""
    config = CompareConfig(
        dataset=dataset, runs=str(folder / "runs"), backbone=BACKBONE, cut="auto", seeds=3
    )
    (outcome,) = run_compare(config, InlineExecutor(), _refuse)
    computing = sum(row.seconds * len(row.seeds) for row in outcome.table.rows) + max(
        row.feature_seconds for row in outcome.table.rows
    )
    table.add(
        "compare, 3 heads: share of the time not spent on features and heads",
        f"{1 - computing / outcome.seconds:.0%} of {outcome.seconds:.0f} s",
    )


def _refuse(task: Any) -> None:
    raise WrongBenchError(f"a comparison of heads trains {task.run}")


def _c_path(table: Table) -> None:
    """Time the whole path of C on 2,000 x 1,280 features of ten classes that overlap."""
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.integers(0, 10, 2400))
    centres = rng.normal(0, 0.15, (10, 1280))
    values = centres[targets.numpy()] + rng.normal(0, 1, (2400, 1280))
    data = torch.from_numpy(np.maximum(values, 0).astype(np.float32))
    train_split = Features(data[:2000], targets[:2000])
    validation = Features(data[2000:], targets[2000:])
    seconds = min(
        _seconds(lambda: solve_head(train_split, validation, Objective(10))) for _ in range(PAIRS)
    )
    table.limit(
        "heads for a whole path of C on 2,000 x 1,280",
        f"{seconds:.1f} s",
        f"≤ {C_PATH_S:.0f} s",
        holds=seconds <= C_PATH_S,
    )
