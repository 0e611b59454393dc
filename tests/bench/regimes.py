"""Accuracy of each regime with its defaults, against a linear probe, on three sets of pictures."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.ingest.driver import run_ingest
from afinar.models.networks.network import apply_input_view, build_network
from afinar.models.networks.weights import find_weights, load_weights
from afinar.training.distributed import Group
from afinar.training.metrics import fit_temperature
from afinar.training.task import TrainTask, labelled_samples, plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.bench.photo_sets import make_fabric, make_photos, make_stamps
from tests.bench.world import WrongBenchError

SPLITS = {"fabric": "0.29,0.07,0.64", "photos": "0.5,0.2,0.3", "stamps": "0.5,0.15,0.35"}
REGIMES = ("frozen", "last:1", "full", "auto")
SEEDS = range(5)
C_PATH = tuple(10.0**exponent for exponent in np.arange(-5, 3.5, 0.5))


@dataclass(frozen=True)
class Score:
    """Accuracy and calibrated loss on the test split."""

    top1: float
    loss: float


def make_set(name: str, folder: Path) -> Path:
    """Return the folder of a set's pictures; make it once."""
    pictures = folder / name
    if not pictures.exists():
        if name == "fabric":
            make_fabric(pictures)
        else:
            (make_photos if name == "photos" else make_stamps)(pictures, folder / "packages")
    return pictures


def ingest(pictures: Path, dataset: Path, name: str, seed: int) -> str:
    """Ingest a set with one division into splits."""
    config = IngestConfig(
        source=str(pictures),
        dataset=str(dataset),
        size=224,
        split=SPLITS[name],
        seed=seed,
        extensions="all",
        max_reject_rate=0.05,
    )
    summary = run_ingest(config, InlineExecutor()).summary
    if summary.samples < 100:
        raise WrongBenchError(f"{name}: only {summary.samples} pictures were ingested")
    return str(dataset)


def configuration(dataset: str, models: Path, regime: str, **options: Any) -> TrainConfig:
    """Return the defaults for EfficientNet-Lite0, whose weights a package has."""
    values = {"backbone": "efficientnet_lite0", "workers": 1, "regime": regime, **options}
    return TrainConfig(dataset=dataset, models=str(models), **values)


def probe(task: TrainTask) -> Score:
    """Return the score of scikit-learn's logistic regression on the backbone's features."""
    network, whole = build_network(task.architecture)
    source = find_weights("imagenet", task.architecture.backbone)
    assert source is not None
    load_weights(source, whole, network.backbone)
    network.eval()
    dataset = open_dataset(task.config.dataset)
    samples = labelled_samples(dataset, task.config, task.classes)

    def features(rows: Any) -> Any:
        with torch.inference_mode():
            blocks = [rows[start : start + 32] for start in range(0, len(rows), 32)]
            images = (torch.from_numpy(dataset.read(block)) for block in blocks)
            outputs = [network.features(apply_input_view(i, task.input_view)) for i in images]
        return torch.cat(outputs).double().numpy()

    train_x, val_x, test_x = (
        features(split.rows) for split in (samples.train, samples.validation, samples.test)
    )
    best: tuple[float, float, Any] | None = None
    for c in C_PATH:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
        model.fit(train_x, samples.train.targets)
        log_p = model.predict_log_proba(val_x)
        hits = (log_p.argmax(axis=1) == samples.validation.targets).mean()
        loss = -log_p[np.arange(len(log_p)), samples.validation.targets].mean()
        if best is None or (hits, -loss) > best[:2]:
            best = (hits, -loss, model)
    assert best is not None
    return _score(best[2], val_x, samples.validation.targets, test_x, samples.test.targets)


def _score(model: Any, val_x: Any, val_y: Any, test_x: Any, test_y: Any) -> Score:
    """Score a probe with the temperature that fits validation, as trainings are scored."""
    val, test = (torch.from_numpy(model.predict_log_proba(x)) for x in (val_x, test_x))
    temperature = fit_temperature(val, torch.from_numpy(val_y), Group())
    targets = torch.from_numpy(test_y)
    loss = torch.nn.functional.cross_entropy(test / temperature, targets).item()
    return Score(float((test.argmax(dim=1) == targets).double().mean()), loss)


def trained(config: TrainConfig) -> Score:
    """Train in this process and return the score of the best epoch on the test split."""
    metrics = train(plan_training(config, "run"), Group()).metrics["test"]
    return Score(metrics["top1"], metrics["calibrated"]["loss"])


def main(names: list[str], regimes: list[str], seeds: list[int], options: dict[str, Any]) -> None:
    """Print a row per set and seed, and the means."""
    folder = Path(tempfile.gettempdir()) / "afinar-photo-sets"
    for name in names:
        scores: dict[str, list[Score]] = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as scratch:
                dataset = ingest(make_set(name, folder), Path(scratch) / "dataset", name, seed)
                config = configuration(dataset, Path(scratch) / "models", "frozen")
                row = {"probe": probe(plan_training(config, "run"))}
                for regime in regimes:
                    models = Path(scratch) / regime.replace(":", "-")
                    row[regime] = trained(configuration(dataset, models, regime, **options))
                for side, score in row.items():
                    scores.setdefault(side, []).append(score)
                    print(name, seed, side, f"{score.top1:.1%} {score.loss:.3f}", flush=True)
        rows = [
            (
                side,
                f"{np.mean([score.top1 for score in of_side]):.1%}",
                f"{np.mean([score.loss for score in of_side]):.3f}",
            )
            for side, of_side in scores.items()
        ]
        print(name, rows, flush=True)


if __name__ == "__main__":
    arguments = dict(part.split("=", 1) for part in sys.argv[1:])
    main(
        arguments.pop("sets", "photos,stamps,fabric").split(","),
        arguments.pop("regimes", ",".join(REGIMES)).split(","),
        [int(seed) for seed in arguments.pop("seeds", "0,1,2,3,4").split(",")],
        {
            name: float(value) if "." in value or "e-" in value else int(value)
            for name, value in arguments.items()
        },
    )
