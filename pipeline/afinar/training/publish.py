"""What a training leaves behind: rank 0 writes it, the driver publishes it as the next model version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as library_version
from typing import Any, Final

import numpy as np
import pyarrow as pa
from torch import Tensor

from afinar.config.jobs import as_dict
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import NotFoundError
from afinar.models.networks.network import Network
from afinar.models.registry.bundle import put_weights
from afinar.models.registry.golden import pick_golden, put_golden, score
from afinar.models.registry.versions import VERSIONS, ModelVersion, publish_model
from afinar.storage.arrow import to_parquet
from afinar.storage.commit import read_version, versions
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.training.checkpoint import Checkpoints
from afinar.training.steps import Samples
from afinar.training.task import TrainTask, forget_unfinished

_OUTCOME: Final = "runs/{}/outcome.json"


@dataclass(kw_only=True)
class TrainOutcome:
    """What rank 0 left in the store, and what it measured; JSON-able.

    `best` says which objects below the run's checkpoints are the weights of which epoch, the best first.
    """

    weights: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    params_total: int = 0
    params_trainable: int = 0

    @property
    def stall_fraction(self) -> float:
        """Share of the training time in which data was waited for."""
        ledgers = [row["ledger"] for row in self.history]
        seconds = sum(one["seconds"] for one in ledgers)
        return float(sum(one["waiting_s"] for one in ledgers) / seconds) if seconds else 0.0


def write_outcome(
    task: TrainTask,
    network: Network,
    dataset: Dataset,
    test: Samples,
    answers: Answers,
    outcome: TrainOutcome,
) -> None:
    """Write weights, golden samples, history and test predictions, and last the outcome that names them."""
    store = open_store(task.config.models)
    files, images = pick_golden(dataset, test.rows)
    golden = put_golden(store, files, images, score(network, images, task.input_view))
    outcome.weights = put_weights(store, network).as_dict()
    outcome.golden = golden.as_dict()
    history = "".join(json.dumps(row) + "\n" for row in outcome.history)
    store.put_if_absent(f"runs/{task.run}/history.jsonl", history.encode())
    store.put_if_absent(
        f"runs/{task.run}/test.parquet",
        to_parquet(_test_table(dataset, test, task.classes, answers)),
    )
    store.put_if_absent(_OUTCOME.format(task.run), json.dumps(asdict(outcome), indent=1).encode())


def read_outcome(task: TrainTask) -> TrainOutcome | None:
    """What rank 0 wrote last, or None before it did."""
    try:
        record = open_store(task.config.models).get(_OUTCOME.format(task.run))
    except NotFoundError:
        return None
    return TrainOutcome(**json.loads(record))


@dataclass(frozen=True)
class Answers:
    """What a model says of samples: `best` int64 [n], its class numbers, and `score` float64 [n], its probabilities."""

    best: Tensor
    score: Tensor


def _test_table(dataset: Dataset, test: Samples, classes: list[str], answers: Answers) -> pa.Table:
    names = np.array(classes, dtype=object)
    return pa.table(
        {
            "row": pa.array(test.rows),
            "sample_id": dataset.index.column("sample_id")
            .take(pa.array(test.rows))
            .combine_chunks(),
            "label": pa.array(names[test.targets], pa.string()),
            "predicted": pa.array(names[answers.best.cpu().numpy()], pa.string()),
            "score": pa.array(answers.score.cpu().numpy()),
        }
    )


def publish(task: TrainTask, outcome: TrainOutcome, seconds: float) -> ModelVersion:
    """Publish what the workers left behind as the next version, once; `finish` follows."""
    store = open_store(task.config.models)
    version = _published(store, task.run) if task.resumed else None
    if version is None:
        version = publish_model(store, lambda number: _version(task, outcome, seconds, number))
    return version


def finish(task: TrainTask, outcome: TrainOutcome) -> None:
    """Everything of a published training is written: forget that it was unfinished, drop what only a resume needs."""
    store = open_store(task.config.models)
    forget_unfinished(store, task)
    Checkpoints(store, task.run, task.fingerprint).drop(outcome.best)


def _published(store: Store, run: str) -> ModelVersion | None:
    """The version of a run whose driver died after publishing it."""
    for number in reversed(versions(store, VERSIONS)):
        record = read_version(store, VERSIONS, number)
        if record["lineage"]["run"] == f"runs/{run}":
            return ModelVersion.from_dict(record)
    return None


def _version(task: TrainTask, outcome: TrainOutcome, seconds: float, number: int) -> ModelVersion:
    config = task.config
    weights = ObjectRef(**outcome.weights)
    return ModelVersion(
        version=number,
        id=f"{number}-{weights.sha256[:8]}",
        architecture=task.architecture,
        regime=config.regime,
        classes=task.classes,
        stored_view=open_dataset(config.dataset, version=task.dataset_version).view,
        input_view=task.input_view,
        weights=weights,
        golden=ObjectRef(**outcome.golden),
        metrics={
            **outcome.metrics,
            "epochs": len(outcome.history),
            "params_total": outcome.params_total,
            "params_trainable": outcome.params_trainable,
            "seconds": round(seconds, 1),
            "stall_fraction": round(outcome.stall_fraction, 4),
        },
        lineage={
            "dataset": {"uri": config.dataset, "version": task.dataset_version},
            "weights": task.weights_source,
            "run": f"runs/{task.run}",
            "config": as_dict(config),
            "libraries": libraries(),
        },
        temperature=outcome.temperature,
    )


def libraries() -> dict[str, str]:
    """Versions of everything that can change an answer."""
    found = {}
    for name in ("afinar", "torch", "torchvision", "pillow", "numpy", "pyarrow"):
        try:
            found[name] = library_version(name)
        except PackageNotFoundError:  # run from a checkout, on a machine without the rest
            continue
    return found
