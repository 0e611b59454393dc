"""Plan of a training, made once by the driver: what to train, and as which run.

A run that has begun has a marker until it is published (`unfinished.py`). A later request with the
same fingerprint resumes that run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from afinar.config.base import as_dict, cluster_address, fingerprint
from afinar.config.train import NON_DETERMINING_FIELDS, TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.dataset.stratification import few_notes
from afinar.errors import NotFoundError, RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import meta_device_context
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.compiler import require_compiler
from afinar.models.networks.cuts import AUTO, resolve_cut
from afinar.models.networks.network import build_network
from afinar.models.networks.stages import freeze
from afinar.models.networks.weights import (
    WeightsSource,
    find_weights,
    interpolation,
    normalisation,
    select_weights,
    with_sha256,
)
from afinar.models.registry.versions import StoredModel
from afinar.pictures.preprocessing import InputView
from afinar.sources.entry import SPLITS
from afinar.sources.tables import read_table
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.records import read_record
from afinar.storage.store import Store
from afinar.storage.versions import probe_conditional_put
from afinar.training.batches import Samples
from afinar.training.hyperparameters import Resolved, default_layer_decay, is_resolved, resolve
from afinar.training.parent import find_parent, parent_name, parent_source
from afinar.training.sampler import epoch_length
from afinar.training.unfinished import (
    UNFINISHED,
    UNPUBLISHED,
    Marker,
    UnpublishedRun,
    delete_run,
    read_marker,
    read_unpublished,
    unfinished_runs,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Input of a training worker; the same for all workers of a run.

    `fingerprint` is a hash of everything that determines the weights. `resumed` is true if an
    earlier job began the run. `epoch_samples` is the number of training samples in an epoch. A
    trial (`is_trial`) does not use the test split and is not published. `last_epoch` is the epoch
    after which a trial was stopped that is to be published; None for the configured number.
    `deadline_s` is the time (time.time()) at which the model is to be published, None for no limit.
    """

    config: TrainConfig
    dataset_version: int
    architecture: Architecture
    input_view: InputView
    classes: list[str]
    weights_source: str | None
    run: str
    epoch_samples: int
    resumed: bool = False
    fingerprint: str = ""
    is_trial: bool = False
    last_epoch: int | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledSamples:
    """The labelled samples of each split."""

    train: Samples
    validation: Samples
    test: Samples


def plan_training(config: TrainConfig, run: str, *, is_trial: bool = False) -> TrainTask:
    """Check a request against its dataset and backbone, and register the run.

    The run is `run`, or the interrupted run of the same request on the same dataset version. Raises
    RequestError for a request that no worker could carry out; computes nothing.
    """
    info = require_backbone(config.backbone)
    config = _normalize_uris(config)
    if config.regime == "auto" and config.weights == "none":
        config = replace(config, regime="scratch")  # there is nothing to freeze
    dataset = open_dataset(config.dataset)
    parent = find_parent(config)
    of_parent = parent.version.architecture if parent else None
    size = config.input_size or (of_parent.input_size if of_parent else info.input_size)
    _check_classes(config, len(dataset.classes))
    if size > dataset.view.size:
        logger.info(
            f"note: pictures are stored at {dataset.view.size} px and enlarged to the network's "
            f"{size} px; ingest with --size {size}, or give --input-size {dataset.view.size}"
        )

    samples = labelled_samples(dataset, config, dataset.classes)
    epoch_samples = epoch_length(len(samples.train), len(dataset.classes), config.sampling)
    # The batch size is resolved when the number of workers is known.
    resolve(config, epoch_samples, max(1, config.workers), on_gpu=False)

    wanted = of_parent.cut if of_parent and config.cut == AUTO else config.cut
    cut = resolve_cut(config.backbone, wanted, size)
    config = replace(config, weights=_weights(config, parent))
    source = parent_source(parent, cut) if parent else find_weights(config.weights, config.backbone)
    if source is None and config.regime == "full":
        logger.info("note: --weights none: the full regime starts from random weights")

    task = TrainTask(
        config=config,
        dataset_version=dataset.manifest.version,
        architecture=Architecture(
            backbone=config.backbone,
            cut=cut,
            head=config.head,
            input_size=size,
            classes=len(dataset.classes),
            pool=config.pool,
            hidden=config.hidden,
            dropout=config.dropout,
            output=config.output,
            revision=of_parent.revision if of_parent else info.revision,
        ),
        input_view=_input_view(config, size, parent),
        classes=dataset.classes,
        weights_source=source.name if source else None,
        run=run,
        epoch_samples=epoch_samples,
        is_trial=is_trial,
        deadline_s=time.time() + 60 * config.time_limit if config.time_limit else None,
    )

    # Errors that a worker would meet are raised here, before any is started.
    is_local = cluster_address(config.address) is None
    _check_network(task.architecture, config.trainable_stages, source, is_local)
    if config.compile and is_local:
        require_compiler(torch.device("cpu"))
    for note in few_notes(dataset.index.column("label"), dataset.index.column("split")):
        logger.info(f"note: {note}")

    store = open_store(config.models)
    probe_conditional_put(store)
    return resume_or_register(store, replace(task, fingerprint=_fingerprint(task)))


def _normalize_uris(config: TrainConfig) -> TrainConfig:
    """Make locations absolute: workers have other working directories."""
    return replace(
        config,
        dataset=normalize_uri(config.dataset),
        models=normalize_uri(config.models),
        weights=_normalize_weights(config),
        audit=normalize_uri(config.audit) if config.audit else "",
    )


def _normalize_weights(config: TrainConfig) -> str:
    if config.has_weights_file:
        return normalize_uri(config.weights)
    if config.has_weights_model:
        models, at, version = config.weights.rpartition("@")
        return normalize_uri(models) + at + version
    return config.weights


def _weights(config: TrainConfig, parent: StoredModel | None) -> str:
    """Return `--weights` in a form that names the same weights for ever."""
    if config.regime == "scratch":
        return "none"
    return parent_name(parent) if parent else with_sha256(config.weights)


def _input_view(config: TrainConfig, size: int, parent: StoredModel | None) -> InputView:
    """Return the network's input, normalised as that of its initial weights."""
    if parent is not None:
        return replace(parent.version.input_view, input_size=size)
    mean, std = config.normalisation or normalisation(config.backbone)
    return InputView(
        input_size=size, mean=mean, std=std, interpolation=interpolation(config.backbone)
    )


def _check_classes(config: TrainConfig, classes: int) -> None:
    if classes < 2:
        raise RequestError(
            f"{config.dataset} has {classes} labelled classes: a classifier needs two"
        )


def _check_network(
    architecture: Architecture,
    trainable: int | None,
    source: WeightsSource | None,
    is_local: bool,
) -> None:
    """Build the network on the meta device, and compare the initial weights with it.

    Raises RequestError for an impossible size or stage, and for weights that cannot be read or do
    not fit. Weights that are still to be downloaded are checked by the workers of a cluster, which
    may reach what this machine does not.
    """
    with meta_device_context(architecture.backbone):
        network, whole = build_network(architecture)
        freeze(network, trainable)
    if source is not None and (is_local or source.is_here()):
        select_weights(source, whole, network.backbone)


def resolve_task(
    task: TrainTask,
    workers: int,
    *,
    on_gpu: bool,
    measure_batch: Callable[[], int] | None = None,
) -> TrainTask:
    """Return the task with all hyperparameters, which default to values for so many workers.

    A run that has begun keeps those that it began with. A batch size that is left to a GPU is what
    `measure_batch`, which only its process can give, returns per worker; without it the task stays
    as it is. Raises RequestError if a step has too few samples for the workers.
    """
    if is_resolved(task.config):
        return task
    config, store = task.config, open_store(task.config.models)
    try:
        begun = read_record(store, config_name(task.run), Resolved)
    except NotFoundError:  # the run is new
        pass
    else:
        config = replace(config, **asdict(begun))
    if not on_gpu or not config.has_auto_batch:
        return replace(task, config=resolve(config, task.epoch_samples, workers, on_gpu=on_gpu))
    if measure_batch is None:
        resolve(config, task.epoch_samples, workers, on_gpu=on_gpu)  # raises what it would raise
        return task
    resolved = resolve(
        config, task.epoch_samples, workers, on_gpu=on_gpu, measured_batch=measure_batch()
    )
    return replace(task, config=resolved)


def config_name(run: str) -> str:
    """Return the name of the object that holds the resolved configuration of a run."""
    return f"runs/{run}/config.json"


def _fingerprint(task: TrainTask) -> str:
    options = as_dict(task.config)
    determining = {
        name: value for name, value in options.items() if name not in NON_DETERMINING_FIELDS
    }
    if task.config.has_auto_batch:
        determining["batch_size"] = 0  # as it was called before `auto`
    # A training to which later fields mean nothing is the same as before they were added.
    if not task.config.solves_head:
        del determining["head_init"]
    if not task.config.head_rate:
        del determining["head_rate"]
    if task.config.select_by == "top1":
        del determining["select_by"]
    if task.config.sampling == "natural":
        del determining["sampling"]
    for name in ("mean", "std", "exclude", "views", "refit"):
        if not determining[name]:
            del determining[name]
    determining["layer_decay"] = task.config.layer_decay or default_layer_decay(task.config)
    architecture = asdict(task.architecture)
    if task.architecture.revision == 1:
        del architecture["revision"]
    decided = (
        task.dataset_version,
        architecture,
        task.input_view.as_dict(),
        task.classes,
        task.weights_source,
    )

    return fingerprint([determining, decided])


def resume_or_register(store: Store, task: TrainTask) -> TrainTask:
    """Return the task with the unfinished run of the same fingerprint, or register its own run.

    Another job may still be training that run. Both then write the same objects, and whichever is
    second adopts the version that the first publishes (`publish.publish`).
    """
    kept = read_unpublished(store, unpublished_name(task))
    if kept is not None:
        return replace(task, run=kept.run, resumed=True)
    name = _marker_name(task)
    marker = Marker(run=task.run, dataset=task.config.dataset, dataset_version=task.dataset_version)
    if store.put_if_absent(name, json.dumps(asdict(marker)).encode()):
        if not task.is_trial:  # other trials are not interrupted trainings
            _log_other_unfinished_runs(store, task)
        return task

    run = read_marker(store, name).run
    if run != task.run:
        logger.info(
            f"note: run {run} of this training was begun before and is continued; if another job "
            "still trains it, both end with the same model version"
        )
    return replace(task, run=run, resumed=run != task.run)


def _log_other_unfinished_runs(store: Store, task: TrainTask) -> None:
    """Log how many runs on the same dataset are unfinished, which this request does not resume."""
    others = [
        run
        for run in unfinished_runs(store)
        if run.dataset == task.config.dataset and run.run != task.run
    ]
    if others:
        count = "1 training is" if len(others) == 1 else f"{len(others)} trainings are"
        logger.info(f"note: {count} unfinished here: `afinar status {store.root}` lists them")


def delete_markers(store: Store, task: TrainTask) -> None:
    """Delete the markers of a run, so that the same request begins a new run."""
    store.delete(_marker_name(task))
    store.delete(unpublished_name(task))


def put_unpublished_marker(store: Store, task: TrainTask, weights: str, golden: str) -> None:
    """Mark a complete run as one that is kept and not published, instead of as an unfinished one.

    A request with the same fingerprint continues with it, such as a training that publishes it.
    """
    run = UnpublishedRun(
        run=task.run,
        dataset=task.config.dataset,
        dataset_version=task.dataset_version,
        weights=weights,
        golden=golden,
    )
    store.put_if_absent(unpublished_name(task), json.dumps(asdict(run)).encode())
    store.delete(_marker_name(task))


def give_up(store: Store, task: TrainTask) -> None:
    """Delete the markers and all objects of a run that the same request cannot complete."""
    delete_markers(store, task)
    delete_run(store, task.run)


def _marker_name(task: TrainTask) -> str:
    return f"{UNFINISHED}/{task.fingerprint[:16]}.json"


def unpublished_name(task: TrainTask) -> str:
    """Return the name of the marker of a complete run that is not published."""
    return f"{UNPUBLISHED}/{task.fingerprint[:16]}.json"


def labelled_samples(dataset: Dataset, config: TrainConfig, classes: list[str]) -> LabelledSamples:
    """Return the labelled samples of each split, in the order of their shards.

    Raises RequestError if a split has fewer than two samples, or a class no training sample.
    """
    index = dataset.index
    labels = index.column("label")
    numbers = pc.index_in(labels, pa.array(classes, index.schema.field("label").type))
    targets = pc.fill_null(numbers, -1).to_numpy().astype(np.int64)
    if config.exclude:
        excluded = read_table("--exclude", config.exclude, "uri").column("uri")
        targets[pc.is_in(index.column("uri"), excluded.combine_chunks()).to_numpy()] = -1

    samples = {}
    for split in SPLITS:
        in_split = pc.fill_null(pc.equal(index.column("split"), split), False)
        rows = np.flatnonzero(in_split.to_numpy(zero_copy_only=False) & (targets >= 0))
        rows = rows[np.argsort(dataset.shard_numbers[rows], kind="stable")]
        if len(rows) < 2:
            raise RequestError(
                f"the {split} split of {config.dataset} holds {len(rows)} labelled pictures: "
                "ingest more, or with another --split"
            )
        samples[split] = Samples(rows, targets[rows])

    counts = np.bincount(samples["train"].targets, minlength=len(classes))
    if not counts.all():
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        raise RequestError(
            f"no training sample of {', '.join(missing)}: ingest more pictures, or without them, "
            "or with another --split"
        )
    return LabelledSamples(**samples)
