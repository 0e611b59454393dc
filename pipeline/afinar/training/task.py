"""What is to be trained, decided once by the driver, and which run it is: a new one, or one that was interrupted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.checks import trainable_stages
from afinar.config.jobs import NAMED_WEIGHTS, TrainConfig, as_dict, fingerprint
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import RequestError
from afinar.models.networks.backbones import check_cut, meta_device_context
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.network import build_network
from afinar.models.networks.stages import freeze
from afinar.models.networks.weights import find_weights, normalisation, with_sha256
from afinar.models.registry.versions import Architecture
from afinar.pictures.preprocessing import InputView
from afinar.sources.entry import SPLITS
from afinar.storage.commit import probe_conditional_put
from afinar.storage.names import check_identifier
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.store import Store
from afinar.training.sampler import steps_per_epoch
from afinar.training.steps import Samples

logger = logging.getLogger(__name__)

UNFINISHED: Final = "unfinished"
# What says where and how a training runs, not what it computes.
NON_DETERMINING_FIELDS: Final = frozenset({
    "recipe", "address", "workers", "json", "describe", "models", "min_workers", "max_failures", "start_timeout_s",
    "cores_per_worker", "audit", "checkpoint_steps", "keep_best",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Everything a worker needs, decided by the driver: no worker decides anything twice.

    `fingerprint` is of all that determines the result; `resumed` says that the run was begun by an earlier job.
    """

    config: TrainConfig
    dataset_version: int
    architecture: Architecture
    input_view: InputView
    classes: list[str]
    weights_source: str | None
    run: str
    resumed: bool = False
    fingerprint: str = ""


def plan_training(config: TrainConfig, run: str) -> TrainTask:
    """Check a request against its dataset and its backbone, and decide what is to be trained.

    The run is `run`, or the interrupted one of the same request on the same dataset version. Raises
    RequestError; starts nothing.
    """
    info = require_backbone(config.backbone)
    config = _absolute(config)
    dataset = open_dataset(config.dataset)
    size = config.input_size or info.input_size
    if len(dataset.classes) < 2:
        raise RequestError(
            f"{config.dataset} has {len(dataset.classes)} labelled classes: a classifier needs two"
        )
    if config.output == "sigmoid" and len(dataset.classes) != 2:
        raise RequestError(
            f"--output sigmoid is for two classes; {config.dataset} has {len(dataset.classes)}"
        )
    if size > dataset.view.size:
        logger.info(
            f"note: pictures are stored at {dataset.view.size} px and enlarged to the network's {size} px; "
            f"ingest with --size {size}, or give --input-size {dataset.view.size}"
        )
    cut = check_cut(config.backbone, config.cut, size)
    config = replace(
        config, weights=with_sha256(config.weights) if config.regime != "scratch" else "none"
    )
    source = find_weights(config.weights, config.backbone)
    if source is None and config.regime == "full":
        logger.info("note: --weights none: the full regime starts from random weights")
    mean, std = (source.mean, source.std) if source else normalisation(config.backbone)
    store = open_store(config.models)
    probe_conditional_put(store)
    task = TrainTask(
        config=config,
        dataset_version=dataset.manifest.version,
        architecture=Architecture(
            backbone=config.backbone, cut=cut, head=config.head, input_size=size, classes=len(dataset.classes),
            pool=config.pool, hidden=config.hidden, dropout=config.dropout, output=config.output,
        ),
        input_view=InputView(input_size=size, mean=mean, std=std),
        classes=dataset.classes,
        weights_source=source.name if source else None,
        run=run,
    )  # fmt: skip
    _require_network(task.architecture, config.regime)
    samples = labelled_samples(dataset, task)  # an empty split is found now, not by a worker
    check_batch_split(task, len(samples["train"]), max(1, config.workers))
    return resume_or_register(store, replace(task, fingerprint=_fingerprint(task)))


def _require_network(architecture: Architecture, regime: str) -> None:
    """Build it without weights, so that an impossible size or stage is found now, not by a worker."""
    with meta_device_context(architecture.backbone):
        network, _ = build_network(architecture)
        freeze(network, trainable_stages(regime))


def _absolute(config: TrainConfig) -> TrainConfig:
    """Locations as every worker understands them, whatever folder it runs in."""
    return replace(
        config,
        dataset=normalize_uri(config.dataset),
        models=normalize_uri(config.models),
        weights=config.weights
        if config.weights in NAMED_WEIGHTS
        else normalize_uri(config.weights),
        audit=normalize_uri(config.audit) if config.audit else "",
    )


def check_batch_split(task: TrainTask, count: int, workers: int) -> None:
    """Raises RequestError where a step has too few of `count` samples for so many workers."""
    smallest = count // steps_per_epoch(count, task.config.batch_size)
    if smallest < 2 * workers:
        raise RequestError(
            f"{workers} workers need at least 2 samples each in every step, and the smallest step has {smallest}: "
            "give fewer --workers or a larger --batch-size"
        )


def _fingerprint(task: TrainTask) -> str:
    chosen = {
        name: value
        for name, value in as_dict(task.config).items()
        if name not in NON_DETERMINING_FIELDS
    }
    decided = (
        task.dataset_version,
        asdict(task.architecture),
        asdict(task.input_view),
        task.classes,
        task.weights_source,
    )
    return fingerprint([chosen, decided])


def resume_or_register(store: Store, task: TrainTask) -> TrainTask:
    """Take up the interrupted run of this very training, else note that this one has begun."""
    name = _unfinished(task)
    note = {
        "run": task.run,
        "dataset": task.config.dataset,
        "dataset_version": task.dataset_version,
    }
    if store.put_if_absent(name, json.dumps(note).encode()):
        _say_what_else(store, task)
        return task
    run = check_identifier(
        json.loads(store.get(name))["run"], f"the name of a run, in {store.uri(name)}"
    )
    return replace(task, run=run, resumed=run != task.run)


def _say_what_else(store: Store, task: TrainTask) -> None:
    for name, note in _notes(store):
        if name != _unfinished(task) and note["dataset"] == task.config.dataset:
            logger.info(
                f"note: run {note['run']}, on version {note['dataset_version']} of the dataset, was interrupted and is "
                f"not this training; the same command would have continued it. Remove {store.uri(name)} and "
                f"{store.uri('runs/' + note['run'])} to give it up."
            )


def _notes(store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    for info in list(store.walk(UNFINISHED)):
        yield info.name, json.loads(store.get(info.name))


def forget_unfinished(store: Store, task: TrainTask) -> None:
    """The training is published: nothing is to be taken up again."""
    store.delete(_unfinished(task))


def _unfinished(task: TrainTask) -> str:
    return f"{UNFINISHED}/{task.fingerprint[:16]}.json"


def labelled_samples(dataset: Dataset, task: TrainTask) -> dict[str, Samples]:
    """The labelled samples of each split. Raises RequestError for a split or a class that has too few."""
    index = dataset.index
    numbers = pc.index_in(
        index.column("label"), pa.array(task.classes, index.schema.field("label").type)
    )
    targets = pc.fill_null(numbers, -1).to_numpy().astype(np.int64)
    samples = {}
    for split in SPLITS:
        inside = pc.fill_null(pc.equal(index.column("split"), split), False).to_numpy(
            zero_copy_only=False
        )
        rows = np.flatnonzero(inside & (targets >= 0))
        rows = rows[
            np.argsort(dataset.shard_numbers[rows], kind="stable")
        ]  # read one after the other, shard by shard
        if len(rows) < 2:
            raise RequestError(
                f"the {split} split of {task.config.dataset} holds {len(rows)} labelled pictures: "
                "ingest more, or with another --split"
            )
        samples[split] = Samples(rows, targets[rows])
    counts = np.bincount(samples["train"].targets, minlength=len(task.classes))
    if not counts.all():
        without = ", ".join(
            name for name, count in zip(task.classes, counts, strict=True) if not count
        )
        raise RequestError(
            f"no training sample of {without}: ingest more pictures, or without them, or with another --split"
        )
    return samples
