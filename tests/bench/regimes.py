"""Accuracy of each regime with its defaults, against a linear probe, on three sets of pictures.

    python -m tests.bench regimes                          everything: hours on two cores
    python -m tests.bench.regimes sets=photos seeds=0,1    a part, without limits

Each score is appended to `scores.jsonl` in the temporary folder, and a score that is there is not
computed again: delete the file after a change of the code.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
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
from afinar.ingestion.driver import run_ingest
from afinar.models.networks.network import apply_input_view, build_network
from afinar.models.networks.weights import find_weights, load_weights
from afinar.training.distributed import Group
from afinar.training.metrics import fit_temperature
from afinar.training.task import TrainTask, labelled_samples, plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.bench.photo_sets import make_fabric, make_photos, make_stamps
from tests.bench.table import Table
from tests.bench.world import WrongBenchError

SETS = ("photos", "stamps", "fabric")
SPLITS = {
    "fabric": "0.29,0.07,0.64",
    "photos": "0.5,0.2,0.3",
    "stamps": "0.5,0.15,0.35",
    "stamps20": "0.5,0.15,0.35",  # 20 classes, for windows of the shuffle (window_mb=1)
}
REGIMES = ("frozen", "last:1", "full")
SEEDS = range(5)
BELOW_PROBE = 0.003  # of accuracy, at most
FABRIC = 0.985  # accuracy of the full regime
LOSS_ABOVE_PROBE = 0.03  # nats, after calibration
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
        elif name == "photos":
            make_photos(pictures, folder / "packages")
        else:
            make_stamps(pictures, folder / "packages", 10 if name == "stamps20" else 11)
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


def scores_file() -> Path:
    """Return the file of scores that have been computed."""
    return Path(tempfile.gettempdir()) / "afinar-photo-sets" / "scores.jsonl"


def measure(name: str, sides: list[str], seed: int, options: dict[str, Any]) -> dict[str, Score]:
    """Return the scores of a set with one division into splits; `probe` is one of the sides."""
    file, scores = scores_file(), {}
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for side in sides:
        key = {"set": name, "seed": seed, "side": side, "options": options}
        for row in known:
            if all(row[field] == value for field, value in key.items()):
                scores[side] = Score(row["top1"], row["loss"])
    missing = [side for side in sides if side not in scores]
    if not missing:
        return scores

    with tempfile.TemporaryDirectory() as scratch:
        pictures = make_set(name, file.parent)
        dataset = ingest(pictures, Path(scratch) / "dataset", name, seed)
        for side in missing:
            models = Path(scratch) / side.replace(":", "-")
            if side == "probe":
                config = configuration(dataset, models, "frozen")
                scores[side] = probe(plan_training(config, "run"))
            else:
                scores[side] = trained(configuration(dataset, models, side, **options))
            row = {"set": name, "seed": seed, "side": side, "options": options}
            with file.open("a") as sink:
                sink.write(json.dumps(row | asdict(scores[side])) + "\n")
            print(name, seed, side, scores[side], flush=True)
    return scores


def regimes() -> bool:
    """Require that no default loses to a linear probe, and 98.5 % of the fabric from `full`.

    The regime `auto` is not trained: it is `full` under another name, since epoch 0 of both is the
    frozen solution (a test compares them).
    """
    table = Table(("set", "regime", "accuracy, %", "loss", "probe, %", "probe's loss", "met"))
    for name in SETS:
        scores = defaultdict(list)
        for seed in SEEDS:
            for side, score in measure(name, ["probe", *REGIMES], seed, {}).items():
                scores[side].append(score)
        probed = mean(scores["probe"])
        for regime in REGIMES:
            score = mean(scores[regime])
            required = probed.top1 - BELOW_PROBE
            if name == "fabric" and regime == "full":
                required = FABRIC
            holds = score.top1 >= required and score.loss <= probed.loss + LOSS_ABOVE_PROBE
            table.limit(name, regime, *_cells(score), *_cells(probed), holds=holds)
    return table.show("Regimes with their defaults, against a linear probe")


def mean(scores: list[Score]) -> Score:
    """Return the means over the divisions into splits."""
    return Score(
        float(np.mean([score.top1 for score in scores])),
        float(np.mean([score.loss for score in scores])),
    )


def _cells(score: Score) -> tuple[str, str]:
    return f"{100 * score.top1:.1f}", f"{score.loss:.3f}"


def _parse(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    arguments = dict(part.split("=", 1) for part in sys.argv[1:])
    sets = arguments.pop("sets", ",".join(SETS)).split(",")
    sides = arguments.pop("regimes", ",".join(["probe", *REGIMES])).split(",")
    seeds = [int(seed) for seed in arguments.pop("seeds", "0,1,2,3,4").split(",")]
    given = {name: _parse(value) for name, value in arguments.items()}
    for set_name in sets:
        by_seed = [measure(set_name, sides, seed, given) for seed in seeds]
        for side in sides:
            print(set_name, side, *_cells(mean([scores[side] for scores in by_seed])))
