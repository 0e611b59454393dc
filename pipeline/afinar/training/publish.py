"""Results of a training: rank 0 writes them, the driver publishes them as a model version.

    runs/<run>/history.jsonl     one row per epoch
    runs/<run>/test.parquet      predictions for the test split
    runs/<run>/outcome.json      written last
    runs/<run>/trial.json        the result of a trial, which does not use the test split
    runs/<run>/trial-<N>.json    that of a trial which is trained up to epoch N for now

A run that has outcome.json is complete: its workers have nothing left to do.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as library_version
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
from torch import Tensor

from afinar.config.base import as_dict
from afinar.config.strict import Count, conforms_to
from afinar.dataset.manifest import require_not_erased
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import NotFoundError
from afinar.models.networks.network import Network
from afinar.models.networks.timm_networks import is_timm
from afinar.models.registry.bundle import put_weights
from afinar.models.registry.golden import compute_logits, pick_golden, put_golden
from afinar.models.registry.versions import VERSIONS, ModelVersion, get_model, publish_model
from afinar.storage.arrow import to_parquet
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.records import read_record
from afinar.storage.store import Store
from afinar.storage.versions import read_version, versions
from afinar.training.batches import Samples
from afinar.training.checkpoint import Checkpoints, HistoryRow
from afinar.training.hyperparameters import used_options
from afinar.training.task import TrainTask, delete_markers, put_unpublished_marker
from afinar.units.gc import delete_objects

_TRIAL: Final = re.compile(r"runs/[^/]+/trial(-\d+)?\.json")


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Result of a trial's workers; the content of trial.json.

    `metrics` has those of validation alone. `best` lists the objects of the best epochs' weights in
    the run's checkpoints, best first. `settings` are the hyperparameters that were resolved, and
    `regime` is the one that made the weights, if `auto` chose it.
    """

    ALL_KEYS = True  # see config/strict.py

    history: list[HistoryRow] = field(default_factory=list)
    best: list[Annotated[dict[str, Any], conforms_to(ObjectRef)]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    regime: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    params_total: Count = 0
    params_trainable: Count = 0

    @property
    def epochs(self) -> int:
        """Number of epochs that were trained; 0 if a solved head is the whole training."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def stall_fraction(self) -> float:
        """Share of the training time in which workers waited for data."""
        timings = [row["ledger"] for row in self.history]
        seconds = sum(epoch["seconds"] for epoch in timings)
        return float(sum(epoch["waiting_s"] for epoch in timings) / seconds) if seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class TrainResult(TrialResult):
    """Result of a run's workers; the content of outcome.json.

    `metrics` has those of validation and test. `weights` and `golden` are the objects that rank 0
    wrote.
    """

    weights: Annotated[dict[str, Any], conforms_to(ObjectRef)] = field(default_factory=dict)
    golden: Annotated[dict[str, Any], conforms_to(ObjectRef)] = field(default_factory=dict)


@dataclass(frozen=True)
class TestPredictions:
    """Predicted class numbers int64 [n] of the test split, and their probabilities float64 [n].

    `runners_up` and `runner_up_scores` are those of the second most probable class.
    """

    classes: Tensor
    scores: Tensor
    runners_up: Tensor
    runner_up_scores: Tensor


def write_result(
    task: TrainTask,
    network: Network,
    dataset: Dataset,
    test: Samples,
    predictions: TestPredictions,
    result: TrainResult,
) -> TrainResult:
    """Write weights, golden samples, history, test predictions, and last the result itself.

    Returns the result with the objects of weights and golden samples filled in. Raises
    ShortfallError, and writes nothing, if pictures have been erased from the dataset meanwhile.
    """
    store = open_store(task.config.models)
    # Golden samples contain original files.
    require_not_erased(dataset.store, task.dataset_version)
    pictures = pick_golden(dataset, test.rows)
    logits = compute_logits(network, pictures.images, task.input_view)
    golden = put_golden(store, pictures, logits, task.classes, result.temperature)
    weights = put_weights(store, network)
    result = replace(result, weights=weights.as_dict(), golden=golden.as_dict())

    history = "".join(json.dumps(row) + "\n" for row in result.history)
    store.put_if_absent(f"runs/{task.run}/history.jsonl", history.encode())
    table = _test_table(dataset, test, task.classes, predictions)
    store.put_if_absent(f"runs/{task.run}/test.parquet", to_parquet(table))
    store.put_if_absent(_result_name(task), json.dumps(asdict(result), indent=1).encode())
    return result


def read_result(task: TrainTask) -> TrainResult | None:
    """Return the result that rank 0 wrote, None if the run is not complete."""
    try:
        return read_record(open_store(task.config.models), _result_name(task), TrainResult)
    except NotFoundError:
        return None


def write_trial(task: TrainTask, result: TrialResult) -> None:
    """Write the result of a trial. The weights of its best epochs are in its checkpoints."""
    data = json.dumps(asdict(result), indent=1).encode()
    open_store(task.config.models).put_if_absent(_trial_name(task), data)


def read_trial(task: TrainTask) -> TrialResult | None:
    """Return the result of a trial that rank 0 wrote, None if the trial is not complete."""
    try:
        return read_record(open_store(task.config.models), _trial_name(task), TrialResult)
    except NotFoundError:
        return None


def _trial_name(task: TrainTask) -> str:
    part = "" if task.last_epoch is None else f"-{task.last_epoch}"
    return f"runs/{task.run}/trial{part}.json"


def _delete_trials(store: Store, run: str) -> None:
    """Delete the results of a run as a trial."""
    names = [info.name for info in store.walk(f"runs/{run}")]
    delete_objects(store, [name for name in names if _TRIAL.fullmatch(name)])


def _result_name(task: TrainTask) -> str:
    return f"runs/{task.run}/outcome.json"


def _test_table(
    dataset: Dataset, test: Samples, classes: list[str], predictions: TestPredictions
) -> pa.Table:
    names = np.array(classes, dtype=object)
    ids = dataset.index.column("sample_id").take(pa.array(test.rows))

    return pa.table(
        {
            "row": pa.array(test.rows),
            "sample_id": ids.combine_chunks(),
            "label": pa.array(names[test.targets], pa.string()),
            "predicted": pa.array(names[predictions.classes.cpu().numpy()], pa.string()),
            "score": pa.array(predictions.scores.cpu().numpy()),
            "runner_up": pa.array(names[predictions.runners_up.cpu().numpy()], pa.string()),
            "runner_up_score": pa.array(predictions.runner_up_scores.cpu().numpy()),
        }
    )


def publish(
    task: TrainTask, result: TrainResult, seconds: float, *, sets_champion: bool = True
) -> ModelVersion:
    """Publish the result as the next model version, or return the version that has it already.

    A concurrent duplicate of this job, or an earlier driver of the run, may have published it. The
    number is put only if it is absent, so no version can appear between the look at all versions
    and the put without making the put fail.
    """
    store = open_store(task.config.models)
    require_not_erased(open_store(task.config.dataset), task.dataset_version)
    try:
        return publish_model(
            store,
            lambda number: _version(task, result, seconds, number),
            sets_champion=sets_champion,
        )
    except _PublishedError as published:
        return published.version


class _PublishedError(Exception):
    """The run is published already, as `version`."""

    def __init__(self, version: ModelVersion) -> None:
        super().__init__(version.id)
        self.version = version


def cleanup_after_publish(task: TrainTask, result: TrainResult) -> None:
    """Delete the markers, the result as a trial, and all checkpoints.

    The weights of the best epochs stay.
    """
    store = open_store(task.config.models)
    _delete_trials(store, task.run)
    delete_markers(store, task)
    checkpoints = Checkpoints(store, task.run, task.fingerprint)
    checkpoints.delete_except({epoch["path"] for epoch in result.best})


def keep_unpublished(task: TrainTask, result: TrainResult) -> None:
    """Keep a complete run that is not to be published yet: all but its checkpoints."""
    store = open_store(task.config.models)
    put_unpublished_marker(
        store, task, weights=result.weights["path"], golden=result.golden["path"]
    )
    _delete_trials(store, task.run)
    Checkpoints(store, task.run, task.fingerprint).delete_except(set())


def find_published(store: Store, run: str) -> ModelVersion | None:
    """Return the version that a run was published as, None if it was not."""
    for number in reversed(versions(store, VERSIONS)):
        lineage = read_version(store, VERSIONS, number).get("lineage")
        if isinstance(lineage, dict) and lineage.get("run") == f"runs/{run}":
            return get_model(store, number)
    return None


def _version(task: TrainTask, result: TrainResult, seconds: float, number: int) -> ModelVersion:
    config = task.config
    published = find_published(open_store(config.models), task.run)
    if published is not None:
        raise _PublishedError(published)
    return ModelVersion(
        version=number,
        architecture=task.architecture,
        regime=result.regime or config.regime,
        classes=task.classes,
        stored_view=open_dataset(config.dataset, version=task.dataset_version).view,
        input_view=task.input_view,
        weights=ObjectRef(**result.weights),
        golden=ObjectRef(**result.golden),
        metrics={
            **result.metrics,
            "epochs": result.epochs,
            "params_total": result.params_total,
            "params_trainable": result.params_trainable,
            "seconds": round(seconds, 1),
            "stall_fraction": round(result.stall_fraction, 4),
        },
        lineage={
            "dataset": {"uri": config.dataset, "version": task.dataset_version},
            "weights": task.weights_source,
            **({"parent": config.weights} if config.has_weights_model else {}),
            "run": f"runs/{task.run}",
            "config": used_options(as_dict(config) | result.settings, result.epochs),
            "libraries": library_versions(is_timm(task.architecture.backbone)),
        },
        temperature=result.temperature,
    )


def library_versions(with_timm: bool = False) -> dict[str, str]:
    """Return the versions of the libraries that can change a prediction."""
    names = ["afinar", "torch", "torchvision", "pillow", "numpy", "pyarrow"]
    versions_by_name = {}
    for name in [*names, "timm"] if with_timm else names:
        try:
            versions_by_name[name] = library_version(name)
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    return versions_by_name
