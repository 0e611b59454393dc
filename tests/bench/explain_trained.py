"""`explain` on networks trained here on real pictures, through the jobs' own functions.

python -m tests.bench explain_trained    a quarter of an hour on two cores

Ideal pictures of one network are shown to another one: a head on an earlier cut. A network of the
regime `full` is attacked, and its maps are checked on its test split.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.explain.adversarial import Attack, pgd
from afinar.explain.adversarial_task import EPSILONS, RobustnessTask
from afinar.explain.ideal import IdealTask
from afinar.explain.images import decode_png, encode_png
from afinar.explain.layers import saliency_layer
from afinar.explain.network import ExplainedNetwork, ModelSpec, load_explained
from afinar.explain.pictures import PictureInput, dataset_inputs, sample_rows
from afinar.explain.saliency import deletion_score, grad_cam
from afinar.training.distributed import Group
from afinar.training.publish import publish
from afinar.training.task import plan_training
from afinar.training.worker import train
from tests.bench.explain import LITE0, Pixels
from tests.bench.regimes import configuration, ingest, make_set, scores_file
from tests.bench.table import Table
from tests.bench.world import scaled

EARLIER_CUT = "features.6"
CERTAIN = 0.99
BROKEN = 0.9  # of correctly classified pictures, within 8 levels
WITHSTAND = 0.05  # at 32 levels
FIRST = 5  # ranks of the class in the other network, of 18 classes
_DRAWN = 6  # classes
_TEST_PICTURES = 60
_FULL = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "input_size": 128}  # the demo's


def explain_trained() -> bool:
    """Require what the acceptance of explanations asks of trained networks."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        return all([ideal_for_another(Path(scratch)), full_regime(Path(scratch))])


def ideal_for_another(scratch: Path) -> bool:
    """Draw classes of the stamps with one network; rank them with a head on an earlier cut."""
    dataset = ingest(make_set("stamps", scores_file().parent), scratch / "stamps", "stamps", 0)
    network = _trained(configuration(dataset, scratch / "a", "frozen"))
    other = _trained(configuration(dataset, scratch / "b", "frozen", cut=EARLIER_CUT))
    for name, model in ((LITE0, network), (f"cut at {EARLIER_CUT}", other)):
        print(f"{name}: {_test_accuracy(model, dataset):.0%} of test stamps")

    table = Table(("class", "probability", f"rank at {EARLIER_CUT}", "met"))
    classes = network.classes
    for target in np.linspace(0, len(classes) - 1, _DRAWN).astype(int).tolist():
        task = IdealTask(
            unit="",
            title=classes[target],
            target=target,
            prior="fourier",
            steps=scaled(512),
            seed=0,
        )
        rendered = task.run(network)
        picture = decode_png(rendered.pictures["picture.png"])
        scores = other.probabilities(picture[None])[0]
        rank = 1 + int((scores > scores[other.classes.index(classes[target])]).sum())
        sure = min(rendered.result.probability, rendered.result.shifted_probability)
        table.limit(classes[target], f"{sure:.3f}", rank, holds=sure >= CERTAIN and rank <= FIRST)
    return table.show(f"Ideal pictures of {len(classes)} classes of stamps, for another network")


def full_regime(scratch: Path) -> bool:
    """Fine-tune all of a network on the fabric, attack it, and check its maps."""
    dataset = ingest(make_set("fabric", scores_file().parent), scratch / "fabric", "fabric", 0)
    network = _trained(configuration(dataset, scratch / "c", "full", **_FULL))
    sample = dataset_inputs(
        (opened := open_dataset(dataset)),
        sample_rows(opened, "test", "", scaled(_TEST_PICTURES)),
    )
    images = np.stack([picture.load(network.stored_view) for picture in sample])
    labels = np.array([network.classes.index(str(picture.label)) for picture in sample])
    is_right = network.probabilities(images).argmax(axis=1) == labels
    print(f"full: {is_right.mean():.0%} of {len(images)} test pictures")
    attacked = _attack(network, images[is_right], labels[is_right], sample)
    return _deletion(network, images[is_right], labels[is_right]) and attacked


def _deletion(network: ExplainedNetwork, images: Any, labels: Any) -> bool:
    """Require that the hottest fifth of a map matters more than a random one."""
    layer = saliency_layer(network)
    assert layer is not None
    maps = grad_cam(network, images, torch.from_numpy(labels), layer)
    scores = [
        deletion_score(network, image, int(target), found.values)
        for image, target, found in zip(images, labels, maps, strict=True)
    ]
    confidence, hottest, random = (
        float(np.mean([getattr(score, name) for score in scores]))
        for name in ("confidence", "hottest", "random")
    )
    is_met = hottest < random
    print(
        f"Grad-CAM at {layer}: confidence {confidence:.3f}, hottest fifth blurred {hottest:.3f}, "
        f"the same shape elsewhere {random:.3f}: {'met' if is_met else 'NOT met'}"
    )
    return is_met


def _trained(config: TrainConfig) -> ExplainedNetwork:
    task = plan_training(config, "run")
    publish(task, train(task, Group()), 1.0)
    return load_explained(ModelSpec(model=f"{config.models}@1"))


def _test_accuracy(network: ExplainedNetwork, dataset: str) -> float:
    opened = open_dataset(dataset)
    sample = dataset_inputs(opened, sample_rows(opened, "test", "", 200))
    images = np.stack([picture.load(network.stored_view) for picture in sample])
    labels = [network.classes.index(str(picture.label)) for picture in sample]
    return float((network.probabilities(images).argmax(axis=1) == labels).mean())


def _attack(
    network: ExplainedNetwork,
    images: Pixels,
    labels: NDArray[np.int64],
    sample: list[PictureInput],
) -> bool:
    """Attack correctly classified pictures towards the next class, and all at growing bounds."""
    own = torch.from_numpy(labels)
    targets = (own + 1) % len(network.classes)
    found = pgd(network, network.pixels(images), own, targets, Attack(epsilon=8))
    saved = [decode_png(encode_png(image.to(torch.uint8).numpy())) for image in found.pixels]
    answers = network.probabilities(np.stack(saved)).argmax(axis=1)
    share = float((answers == targets.numpy()).mean())

    numbers = tuple(network.classes.index(str(picture.label)) for picture in sample)
    task = RobustnessTask(
        unit="", sample=tuple(sample), labels=numbers, steps=20, restarts=2, seed=0
    )
    broken = task.run(network).result.broken_at
    accuracy = [
        np.mean([bound is None or bound > epsilon for bound in broken]) for epsilon in EPSILONS
    ]
    is_met = share >= BROKEN and bool(accuracy[-1] < WITHSTAND)
    curve = ", ".join(f"{e:g}: {a:.0%}" for e, a in zip(EPSILONS, accuracy, strict=True))
    print(
        f"targeted attacks within 8 levels succeed for {share:.0%} of {len(images)} "
        f"(limit {BROKEN:.0%}); accuracy {curve}: {'met' if is_met else 'NOT met'}"
    )
    return is_met
