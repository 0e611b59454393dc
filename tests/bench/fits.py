"""Accuracy of each `--fit` with a frozen EfficientNet-Lite0, on two sets of photographs.

    python -m tests.bench.fits            minutes on two cores

Features are computed once for each set and fit. Then many divisions into training, validation and
test are drawn, the same ones for every fit, and heads are solved on each by the regime `frozen`'s
logistic regression, for three strengths of regularisation of which validation chooses. So the fits
are compared on the same test pictures, and most of the noise cancels out.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from afinar.config.ingest import FitMode, IngestConfig
from afinar.dataset.reader import open_dataset
from afinar.ingestion.driver import run_ingest
from afinar.models.networks.network import apply_input_view, build_network
from afinar.models.networks.weights import find_weights, load_weights
from afinar.training.linear_probe import Features, LinearHead, Objective, fit_head
from afinar.training.task import plan_training
from afinar.units.executor import InlineExecutor
from tests.bench.regimes import configuration, make_set
from tests.bench.table import Table

FITS: Final[tuple[FitMode, ...]] = ("crop", "pad", "squash")
SPLITS: Final = 20
_BATCH: Final = 16
_C: Final = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Sample:
    """Features [n, width] and class numbers [n] of a set, in the order of its uris."""

    values: NDArray[np.float32]
    targets: NDArray[np.int64]


def features(pictures: Path, fit: FitMode, scratch: Path) -> Sample:
    """Ingest a set with one fit at 224 px and return the features of all its pictures."""
    dataset_folder = str(scratch / f"{pictures.name}-{fit}")
    config = IngestConfig(
        source=str(pictures), dataset=dataset_folder, size=224, fit=fit, extensions="all"
    )
    run_ingest(config, InlineExecutor())
    task = plan_training(configuration(dataset_folder, scratch / "models", "frozen"), "run")
    network, whole = build_network(task.architecture)
    source = find_weights("imagenet", task.architecture.backbone)
    assert source is not None
    load_weights(source, whole, network.backbone)
    network.eval()

    dataset = open_dataset(dataset_folder)
    index = dataset.index.select(["uri", "label"]).to_pydict()
    order = np.argsort(np.array(index["uri"]))
    labels = np.array(index["label"])[order]
    blocks = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    with torch.inference_mode():
        images = (torch.from_numpy(dataset.read(block)) for block in blocks)
        values = [network.features(apply_input_view(image, task.input_view)) for image in images]
    return Sample(torch.cat(values).numpy(), np.unique(labels, return_inverse=True)[1])


def accuracy(sample: Sample, seed: int) -> float:
    """Return the test accuracy of a solved head on one stratified division, 50 : 15 : 35."""
    rows = np.arange(len(sample.targets))
    rest, test = train_test_split(rows, test_size=0.35, random_state=seed, stratify=sample.targets)
    train, validation = train_test_split(
        rest, test_size=0.15 / 0.65, random_state=seed, stratify=sample.targets[rest]
    )
    on_train, on_validation, on_test = (
        Features(torch.from_numpy(sample.values[part]), torch.from_numpy(sample.targets[part]))
        for part in (train, validation, test)
    )
    objective = Objective(int(sample.targets.max()) + 1)
    heads = [fit_head(on_train, objective, c) for c in _C]
    head = min(heads, key=lambda head: _loss(head, on_validation))
    hits = head.logits(on_test.values).argmax(dim=1) == on_test.targets
    return float(hits.double().mean())


def _loss(head: LinearHead, samples: Features) -> float:
    return float(F.cross_entropy(head.logits(samples.values), samples.targets))


def fits(names: tuple[str, ...] = ("photos", "stamps")) -> bool:
    """Print the accuracy of each fit, and its difference to `crop` with a standard error.

    The divisions share pictures, so the standard error is a lower bound.
    """
    torch.manual_seed(0)
    table = Table(
        ("set", "fit", "accuracy, %", "minus crop, points", "standard error", "better in")
    )
    root = Path(tempfile.gettempdir()) / "afinar-photo-sets"
    for name in names:
        pictures = make_set(name, root)
        with tempfile.TemporaryDirectory() as scratch:
            samples = {fit: features(pictures, fit, Path(scratch)) for fit in FITS}
        results = {
            fit: np.array([accuracy(sample, seed) for seed in range(SPLITS)])
            for fit, sample in samples.items()
        }
        for fit, values in results.items():
            gain = 100 * (values - results["crop"])
            error = gain.std(ddof=1) / math.sqrt(SPLITS)
            cells = (f"{100 * values.mean():.1f}", f"{gain.mean():+.1f}", f"{error:.1f}")
            table.add(name, fit, *cells, f"{(gain > 0).sum()} of {SPLITS}")
    return table.show("Fits with a frozen EfficientNet-Lite0")


if __name__ == "__main__":
    fits(tuple(sys.argv[1:]) or ("photos", "stamps"))
