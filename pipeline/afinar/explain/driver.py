"""The methods of `afinar explain`: find what is to be explained, and make units of it.

Nothing is published as a version: a unit's name says what it is of, and its marker that it is done.
A second run with the same options computes nothing and writes its page anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from afinar.analysis.evaluate import run_evaluation
from afinar.config.evaluate import EvaluateConfig
from afinar.config.explain import (
    ExplainAdversarialConfig,
    ExplainFeaturesConfig,
    ExplainIdealConfig,
    ExplainSaliencyConfig,
)
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import RequestError
from afinar.explain.adversarial_task import (
    AdversarialResult,
    AdversarialTask,
    RobustnessResult,
    RobustnessTask,
)
from afinar.explain.features import (
    FeaturesResult,
    FeaturesTask,
    StrongestPictures,
    strongest_pictures,
)
from afinar.explain.ideal import IdealResult, IdealTask
from afinar.explain.job import ExplainJob, ExplainOutcome
from afinar.explain.layers import map_of, saliency_layer, several_depths
from afinar.explain.network import (
    ExplainedNetwork,
    find_class,
    load_explained,
)
from afinar.explain.pictures import (
    PictureInput,
    dataset_inputs,
    find_dataset,
    list_inputs,
    sample_rows,
)
from afinar.explain.saliency_task import SaliencyResult, SaliencyTask
from afinar.explain.typical import TypicalResult, TypicalTask
from afinar.explain.units import Stored
from afinar.labelling.source import require_view
from afinar.units.executor import Executor

_ROBUSTNESS_UNIT: Final = 16  # pictures
_TYPICAL_OF: Final = 64  # pictures of a class among which the most typical are searched
_STRONGEST: Final = 6


@dataclass(kw_only=True)
class FeaturesOutcome(ExplainOutcome[FeaturesResult]):
    """Grids, and for channels the pictures of `dataset` that activate them most."""

    dataset: Dataset | None
    strongest: list[StrongestPictures]


@dataclass(kw_only=True)
class IdealOutcome(ExplainOutcome[IdealResult]):
    """Ideal pictures; `typical` are real pictures of a class by its name."""

    typical: dict[str, Stored[TypicalResult]]


@dataclass(kw_only=True)
class SaliencyOutcome(ExplainOutcome[SaliencyResult]):
    """Maps of pictures; `listed` is the number of pictures that they were chosen from."""

    listed: int
    chosen: str


@dataclass(kw_only=True)
class AdversarialOutcome(ExplainOutcome[AdversarialResult]):
    """Attacked pictures."""


@dataclass(kw_only=True)
class RobustnessOutcome(ExplainOutcome[RobustnessResult]):
    """The smallest bound that breaks each picture of a sample of a dataset's test split."""

    dataset: Dataset
    listed: int


def explain_features(config: ExplainFeaturesConfig, executor: Executor) -> FeaturesOutcome:
    """Compute grids of activations. Raises RequestError for a node without positions."""
    job = ExplainJob(config, executor)
    inputs = list_inputs(config.pictures)
    dataset = open_dataset(config.dataset) if config.dataset else None
    network = load_explained(job.model.spec)
    nodes = [network.find_node(name) for name in config.nodes] or several_depths(network)
    for node in nodes:
        if map_of(network.shapes[node]) is None:
            raise RequestError(
                f"--node {node}: its activations have the shape {list(network.shapes[node][1:])} "
                "and no positions that could be drawn; give an earlier node"
            )
    if not nodes:
        raise RequestError("this network has no node with positions: name one with --node")

    tasks = [
        FeaturesTask(
            unit=job.unit("features", picture.key, nodes, config.channels),
            picture=picture,
            nodes=tuple(nodes),
            channels=config.channels,
        )
        for picture in inputs
    ]
    results = job.run(tasks, FeaturesResult)
    strongest = _strongest(network, dataset, results, job.notes)
    return FeaturesOutcome(**job.outcome(results), dataset=dataset, strongest=strongest)


def _strongest(
    network: ExplainedNetwork,
    dataset: Dataset | None,
    results: list[Stored[FeaturesResult]],
    notes: list[str],
) -> list[StrongestPictures]:
    if dataset is None or not results:
        return []
    wanted: dict[str, list[int]] = {}
    for stored in results:
        for node in stored.result.nodes:
            channels = wanted.setdefault(node.node, [])
            channels += [c.channel for c in node.channels[:_STRONGEST] if c.channel not in channels]
    found = strongest_pictures(network, dataset, wanted, _STRONGEST)
    missing = [node for node in wanted if node not in {entry.node for entry in found}]
    if missing:
        notes.append(
            f"{dataset.store.root} has no features of this network at {', '.join(missing)}: "
            f"compute them with `afinar features {dataset.store.root} --cut {','.join(missing)}`"
        )
    return found


def explain_ideal(config: ExplainIdealConfig, executor: Executor) -> IdealOutcome:
    """Draw ideal pictures. Raises RequestError for an unknown class, node or channel."""
    job = ExplainJob(config, executor)
    targets = [(find_class(name, job.model.classes), "") for name in config.class_names]
    if config.channels:
        network = load_explained(job.model.spec)
        targets += [_channel(network, node, number) for node, number in config.channels]

    tasks = [
        IdealTask(
            unit=job.unit("ideal", target, node, prior, config.steps, seed),
            title=f"{node}:{target}" if node else job.model.classes[target],
            target=target,
            node=node,
            prior=prior,
            steps=config.steps,
            seed=seed,
        )
        for target, node in targets
        for prior in config.priors
        for seed in range(config.seed, config.seed + config.seeds)
    ]
    results = job.run(tasks, IdealResult)
    typical = _typical(config, job, [target for target, node in targets if not node])
    return IdealOutcome(**job.outcome(results), typical=typical)


def _channel(network: ExplainedNetwork, name: str, number: int) -> tuple[int, str]:
    node = network.find_node(name)
    shape = network.shapes[node]
    found = map_of(shape)
    channels = shape[-1] if found is None or found.layout != "channels first" else shape[1]
    if number >= channels:
        raise RequestError(
            f"--channel {name}:{number}: {node} has the channels 0 to {channels - 1}"
        )
    return number, node


def _typical(
    config: ExplainIdealConfig, job: ExplainJob, classes: list[int]
) -> dict[str, Stored[TypicalResult]]:
    """Return the most typical real pictures of each class.

    Only a dataset that the user names is read: the one that a model's record names may be anywhere.
    """
    if not classes:
        return {}
    if not config.dataset:
        job.notes.append("--dataset DATASET also shows the most typical real pictures of the class")
        return {}
    dataset = open_dataset(config.dataset)
    require_view(dataset.store.root, dataset.manifest.version, job.model.stored_view)

    tasks = []
    for target in dict.fromkeys(classes):
        name = job.model.classes[target]
        rows = sample_rows(dataset, "", name, _TYPICAL_OF)
        inputs = tuple(dataset_inputs(dataset, rows))
        if inputs:
            unit = job.unit("typical", target, [picture.key for picture in inputs])
            tasks.append(TypicalTask(unit=unit, title=name, target=target, sample=inputs))
    found = job.run(tasks, TypicalResult)
    return {stored.result.name: stored for stored in found}


def explain_adversarial(
    config: ExplainAdversarialConfig, executor: Executor
) -> AdversarialOutcome | RobustnessOutcome:
    """Attack pictures, or measure the accuracy on a dataset's test split under attack."""
    job = ExplainJob(config, executor)
    dataset = find_dataset(config.pictures)
    if dataset is not None:
        return _robustness(config, job, dataset)

    target = find_class(config.target, job.model.classes) if config.target else -1
    options = (target, config.epsilon, config.steps, config.restarts, config.seed)
    tasks = [
        AdversarialTask(
            unit=job.unit("adversarial", picture.key, *options),
            picture=picture,
            target=target,
            epsilon=config.epsilon,
            steps=config.steps,
            restarts=config.restarts,
            seed=config.seed,
        )
        for picture in list_inputs(config.pictures)
    ]
    return AdversarialOutcome(**job.outcome(job.run(tasks, AdversarialResult)))


def _robustness(
    config: ExplainAdversarialConfig, job: ExplainJob, dataset: Dataset
) -> RobustnessOutcome:
    if config.target:
        raise RequestError(
            "--target is for pictures: the accuracy under attack counts any wrong answer"
        )
    require_view(dataset.store.root, dataset.manifest.version, job.model.stored_view)
    rows = sample_rows(dataset, "test", "", len(dataset.index))
    numbers = {name: number for number, name in enumerate(job.model.classes)}
    known = [entry for entry in dataset_inputs(dataset, rows) if entry.label in numbers]
    if not known:
        raise RequestError(f"no test picture of {dataset.store.root} has a class of the model")
    sample = known[: config.sample]
    options = (config.steps, config.restarts, config.seed)
    tasks = []
    for start in range(0, len(sample), _ROBUSTNESS_UNIT):
        part = tuple(sample[start : start + _ROBUSTNESS_UNIT])
        tasks.append(
            RobustnessTask(
                unit=job.unit("robustness", [picture.key for picture in part], *options),
                sample=part,
                labels=tuple(numbers[str(picture.label)] for picture in part),
                steps=config.steps,
                restarts=config.restarts,
                seed=config.seed,
            )
        )
    results = job.run(tasks, RobustnessResult)
    return RobustnessOutcome(**job.outcome(results), dataset=dataset, listed=len(known))


def explain_saliency(config: ExplainSaliencyConfig, executor: Executor) -> SaliencyOutcome:
    """Compute maps of pictures, or of some of a dataset's test split."""
    job = ExplainJob(config, executor)
    dataset = find_dataset(config.pictures)
    if dataset is None and config.class_:
        raise RequestError("--class is for a dataset; --target is the class that is explained")
    target = find_class(config.target, job.model.classes) if config.target else -1
    node = ""
    if "gradcam" in config.methods:
        network = load_explained(job.model.spec)
        named = saliency_layer(network) if config.node == "auto" else network.find_node(config.node)
        if named is None or map_of(network.shapes[named]) is None:
            raise RequestError(
                f"--node {config.node}: no activations with positions there; name an earlier node, "
                "or give --method integrated,occlusion"
            )
        node = named

    inputs, listed, chosen = _saliency_inputs(config, job, dataset, executor)
    tasks = [
        SaliencyTask(
            unit=job.unit("saliency", picture.key, config.methods, node, target),
            picture=picture,
            methods=tuple(config.methods),
            node=node,
            target=target,
        )
        for picture in inputs
    ]
    results = job.run(tasks, SaliencyResult)
    return SaliencyOutcome(**job.outcome(results), listed=listed, chosen=chosen)


def _saliency_inputs(
    config: ExplainSaliencyConfig, job: ExplainJob, dataset: Dataset | None, executor: Executor
) -> tuple[list[PictureInput], int, str]:
    """Return the pictures to explain, of how many they were chosen, and what they are."""
    if dataset is None:
        inputs = list_inputs(config.pictures)
        return inputs, len(inputs), "pictures"
    require_view(dataset.store.root, dataset.manifest.version, job.model.stored_view)
    if config.class_:
        find_class(config.class_, job.model.classes)
    if config.class_ and config.class_ not in dataset.classes:
        raise RequestError(
            f"--class {config.class_!r}: {dataset.store.root} has no such label; it has "
            f"{', '.join(dataset.classes[:8])}"
        )
    of_class = f" with the label {config.class_}" if config.class_ else ""
    if config.pick == "any" or job.model.version is None:
        rows = sample_rows(dataset, "test", config.class_, len(dataset.index))
        chosen = dataset_inputs(dataset, rows[: config.sample])
        return chosen, len(rows), f"test pictures{of_class}"

    evaluation = EvaluateConfig(
        dataset=dataset.store.root,
        model=job.model.spec.model,
        corruptions="none",
        address=config.address,
        workers=config.workers,
    )
    outcome = run_evaluation(evaluation, executor)
    wrong = np.flatnonzero(~outcome.hits)
    if config.class_:
        number = job.model.classes.index(config.class_)
        wrong = wrong[outcome.plan.targets[wrong] == number]
    worst = wrong[np.argsort(-outcome.scores[wrong], kind="stable")]
    rows = outcome.plan.rows[worst[: config.sample]]
    return dataset_inputs(dataset, rows), len(wrong), f"mistakes in test{of_class}"
