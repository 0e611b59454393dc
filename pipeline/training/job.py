"""The training job: what every worker does, in plain Python; Ray Train wraps it in `pipeline.execution`."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as library_version
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.config import NAMED_WEIGHTS, TrainConfig, as_dict, parse_augment
from pipeline.dataset.reading import Dataset, open_dataset
from pipeline.dataset.schema import SPLITS
from pipeline.dataset.tables import to_parquet
from pipeline.errors import RequestError
from pipeline.models.backbones import check_cut
from pipeline.models.bundle import put_weights
from pipeline.models.catalogue import require_backbone
from pipeline.models.golden import pick_golden, put_golden, score
from pipeline.models.network import Network, build_network
from pipeline.models.versions import Architecture, ModelVersion, publish_model
from pipeline.models.weights import find_weights, load_weights, normalisation
from pipeline.pictures.contract import InputView
from pipeline.storage.commit import require_put_if_absent
from pipeline.storage.objects import ObjectRef
from pipeline.storage.store import normalise, open_store
from pipeline.training.group import Group
from pipeline.training.inputs import FeatureInputs, Inputs, PixelInputs
from pipeline.training.loop import Descent, Samples, evaluate, predict, train_one_epoch
from pipeline.training.order import epoch_order, global_batches, steps_per_epoch
from pipeline.work import say

_RATES = {"frozen": 1e-2, "full": 5e-4, "scratch": 1e-3}


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Everything a worker needs, decided by the driver: no worker decides anything twice."""

    config: TrainConfig
    dataset_version: int
    architecture: Architecture
    input_view: InputView
    classes: list[str]
    weights_source: str | None
    run: str


@dataclass(kw_only=True)
class TrainOutcome:
    """What rank 0 left in the store, and what it measured; JSON-able."""

    weights: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    params_total: int = 0
    params_trainable: int = 0


def plan_training(config: TrainConfig, run: str) -> TrainTask:
    """Check a request against its dataset and its backbone, and decide what is to be trained.

    Raises RequestError; starts nothing.
    """
    info = require_backbone(config.backbone)
    config = _absolute(config)
    dataset = open_dataset(config.dataset)
    size = config.input_size or info.input_size
    if len(dataset.classes) < 2:
        raise RequestError(f"{config.dataset} has {len(dataset.classes)} labelled classes: a classifier needs two")
    if size > dataset.view.size:
        say(
            f"note: pictures are stored at {dataset.view.size} px and enlarged to the network's {size} px; "
            f"ingest with --size {size}, or give --input-size {dataset.view.size}"
        )
    cut = check_cut(config.backbone, config.cut, size)
    source = find_weights("none" if config.regime == "scratch" else config.weights, config.backbone)
    if source is None and config.regime == "full":
        say("note: --weights none: the full regime starts from random weights")
    mean, std = (source.mean, source.std) if source else normalisation(config.backbone)
    require_put_if_absent(open_store(config.models))
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
        ),
        input_view=InputView(input_size=size, mean=mean, std=std),
        classes=dataset.classes,
        weights_source=source.name if source else None,
        run=run,
    )
    _samples(dataset, task)  # an empty split is found now, not by a worker
    return task


def _absolute(config: TrainConfig) -> TrainConfig:
    """Locations as every worker understands them, whatever folder it runs in."""
    weights = config.weights if config.weights in NAMED_WEIGHTS else normalise(config.weights)
    return replace(config, dataset=normalise(config.dataset), models=normalise(config.models), weights=weights)


def train(task: TrainTask, group: Group) -> TrainOutcome:
    """Train, keep the best epoch by validation, evaluate it on test once, write weights and golden samples.

    Every worker of the group calls this; only rank 0 writes.
    """
    config = task.config
    torch.manual_seed(config.seed)
    dataset = open_dataset(config.dataset, version=task.dataset_version)
    samples = _samples(dataset, task)
    network = _initial_network(task, group)
    trained, inputs = _prepare(task, network, dataset, samples, group)

    outcome = TrainOutcome(
        params_total=sum(parameter.numel() for parameter in network.parameters()),
        params_trainable=sum(parameter.numel() for parameter in trained.parameters()),
    )
    best = _fit(task, trained, inputs, samples, group, outcome)
    trained.load_state_dict(best)

    classes = len(task.classes)
    network.eval()
    for split in SPLITS[1:]:
        logits = predict(trained, inputs, samples[split].rows, classes, group)
        outcome.metrics["val" if split == "validation" else split] = asdict(evaluate(logits, samples[split]))
    if group.leads:
        _write(task, network, dataset, samples["test"], logits, outcome)
    return outcome


def _samples(dataset: Dataset, task: TrainTask) -> dict[str, Samples]:
    numbers = {name: number for number, name in enumerate(task.classes)}
    labels = dataset.index.column("label").to_pylist()
    splits = dataset.index.column("split").to_numpy(zero_copy_only=False)
    targets = np.array([numbers.get(label, -1) for label in labels], dtype=np.int64)
    samples = {}
    for split in SPLITS:
        rows = np.flatnonzero((splits == split) & (targets >= 0))
        if len(rows) < 2:
            raise RequestError(
                f"the {split} split of {task.config.dataset} holds {len(rows)} labelled pictures: "
                "ingest more, or with another --split"
            )
        samples[split] = Samples(rows, targets[rows])
    return samples


def _initial_network(task: TrainTask, group: Group) -> Network:
    """Random weights by the seed, pretrained ones over them on rank 0, then the same on every worker."""
    network, whole = build_network(task.architecture)
    config = task.config
    source = find_weights("none" if config.regime == "scratch" else config.weights, config.backbone)
    if source is not None and group.leads:
        load_weights(source, whole, network.backbone)
        say(f"weights: {source.description}")
    network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    group.agree(network)
    return network


def _prepare(
    task: TrainTask, network: Network, dataset: Dataset, samples: dict[str, Samples], group: Group
) -> tuple[nn.Module, Inputs]:
    """What is trained and what it is fed: the whole network on pixels, or the classifier on features."""
    config = task.config
    count = len(samples["train"])
    smallest = count // steps_per_epoch(count, config.batch_size)
    if smallest < 2 * group.size:
        raise RequestError(
            f"{group.size} workers need at least 2 samples each in every step, and the smallest step has {smallest}: "
            "give fewer --workers or a larger --batch-size"
        )
    augment = parse_augment(config.augment, config.regime)
    pixels = PixelInputs(dataset, task.input_view, augment, config.seed, group.device)
    if config.regime != "frozen":
        return network, pixels
    rows = np.concatenate([one.rows for one in samples.values()])
    return network.classifier, FeatureInputs(network, pixels, rows, group)


def _fit(
    task: TrainTask,
    trained: nn.Module,
    inputs: Inputs,
    samples: dict[str, Samples],
    group: Group,
    outcome: TrainOutcome,
) -> dict[str, Tensor]:
    """Run the epochs; the state of the one with the best validation accuracy, the lower loss at a tie."""
    config = task.config
    model = group.wrap(trained)
    rate = config.learning_rate or _RATES[config.regime]
    count = len(samples["train"])
    descent = Descent(trained, config.epochs * steps_per_epoch(count, config.batch_size), rate, config.weight_decay)
    best: dict[str, Tensor] = {}
    best_key = (-1.0, 0.0)
    for epoch in range(config.epochs):
        started = time.monotonic()
        model.train()
        batches = global_batches(epoch_order(count, config.seed, epoch), config.batch_size)
        fitted = train_one_epoch(model, inputs, samples["train"], batches, epoch, descent, group)
        group.agree(trained)  # BatchNorm's running statistics are each worker's own
        validation = samples["validation"]
        logits = predict(trained, inputs, validation.rows, len(task.classes), group)
        checked = evaluate(logits, validation)
        if (checked.top1, -checked.loss) > best_key:
            best_key, best = (checked.top1, -checked.loss), copy.deepcopy(trained.state_dict())
        seconds = round(time.monotonic() - started, 2)
        row = {"epoch": epoch + 1, "train": asdict(fitted), "val": asdict(checked), "seconds": seconds}
        outcome.history.append(row)
        if group.leads:
            say(
                f"{config.regime} epoch {epoch + 1}/{config.epochs}: train loss {fitted.loss:.3f}, "
                f"validation loss {checked.loss:.3f}, top-1 {checked.top1:.1%}, {seconds:.1f} s"
            )
    return best


def _write(
    task: TrainTask, network: Network, dataset: Dataset, test: Samples, logits: Tensor, outcome: TrainOutcome
) -> None:
    store = open_store(task.config.models)
    files, images = pick_golden(dataset, test.rows)
    golden = put_golden(store, files, images, score(network, images, task.input_view))
    outcome.weights = put_weights(store, network).as_dict()
    outcome.golden = golden.as_dict()
    history = "".join(json.dumps(row) + "\n" for row in outcome.history)
    store.put_if_absent(f"runs/{task.run}/config.json", json.dumps(as_dict(task.config), indent=1).encode())
    store.put_if_absent(f"runs/{task.run}/history.jsonl", history.encode())
    store.put_if_absent(f"runs/{task.run}/test.parquet", to_parquet(_test_table(dataset, test, task.classes, logits)))
    store.put_if_absent(f"runs/{task.run}/outcome.json", json.dumps(asdict(outcome), indent=1).encode())


def read_outcome(task: TrainTask) -> TrainOutcome:
    """What rank 0 wrote last: the driver may run on a machine that shares nothing with it but the store."""
    return TrainOutcome(**json.loads(open_store(task.config.models).get(f"runs/{task.run}/outcome.json")))


def _test_table(dataset: Dataset, test: Samples, classes: list[str], logits: Tensor) -> pa.Table:
    scores = logits.softmax(dim=1).cpu().numpy()
    ids = dataset.index.column("sample_id").take(pa.array(test.rows))
    return pa.table(
        {
            "row": pa.array(test.rows),
            "sample_id": ids.combine_chunks(),
            "label": pa.array([classes[target] for target in test.targets]),
            "predicted": pa.array([classes[best] for best in scores.argmax(axis=1)]),
            "score": pa.array(scores.max(axis=1)),
        }
    )


def publish(task: TrainTask, outcome: TrainOutcome, seconds: float) -> ModelVersion:
    """Publish what the workers left behind as the next version."""
    config = task.config
    weights = ObjectRef(**outcome.weights)
    lineage = {
        "dataset": {"uri": normalise(config.dataset), "version": task.dataset_version},
        "weights": task.weights_source,
        "run": f"runs/{task.run}",
        "config": as_dict(config),
        "libraries": libraries(),
    }
    dataset = open_dataset(config.dataset, version=task.dataset_version)

    def make(number: int) -> ModelVersion:
        return ModelVersion(
            version=number,
            id=f"{number}-{weights.sha256[:8]}",
            architecture=task.architecture,
            regime=config.regime,
            classes=task.classes,
            stored_view=dataset.view,
            input_view=task.input_view,
            weights=weights,
            golden=ObjectRef(**outcome.golden),
            metrics={
                **outcome.metrics,
                "epochs": len(outcome.history),
                "params_total": outcome.params_total,
                "params_trainable": outcome.params_trainable,
                "seconds": round(seconds, 1),
            },
            lineage=lineage,
        )

    return publish_model(open_store(config.models), make)


def libraries() -> dict[str, str]:
    """Versions of everything that can change an answer."""
    found = {}
    for name in ("afinar", "torch", "torchvision", "pillow", "numpy", "pyarrow"):
        try:
            found[name] = library_version(name)
        except PackageNotFoundError:  # run from a checkout, on a machine without the rest
            continue
    return found
