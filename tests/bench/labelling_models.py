"""A published model that classifies the pictures of the benches, trained in seconds.

The whole network is trained from random weights for three epochs. It predicts of which of the two
photographs a picture is a crop. A ridge regression on its features replaces the classifier. Labels
are then certain, and probabilities differ from picture to picture, so that a comparison detects
swapped answers. A network with random weights would take as long, but bfloat16 changes its
probabilities by 0.06 instead of 0.005, so that labelling would not use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from afinar.config.ingest import FitMode
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.network import Network, apply_input_view, build_network
from afinar.models.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from afinar.models.registry.bundle import put_weights
from afinar.models.registry.golden import MAX_SAMPLES as GOLDEN
from afinar.models.registry.golden import GoldenPictures, compute_logits, put_golden
from afinar.models.registry.versions import ModelVersion, publish_model
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.open import open_store
from tests.bench.pictures import SMALL, photograph, shown

CLASSES: Final = ("china", "flower")
_PICTURES: Final = 128
_FIRST_SEED: Final = 3 * 10**6  # no picture that is labelled has these seeds
_MARGIN: Final = 1.5  # of logits: probabilities near 0.8, which differ from picture to picture
_RIDGE: Final = 0.3  # of the features' mean energy
_BATCH: Final = 32
_EPOCHS: Final = 3
_RATE: Final = 1e-3
_SMOOTHING: Final = 0.1  # of labels


def make_model(models: Path, backbone: str, size: int, fit: FitMode = "squash") -> str:
    """Publish a network of two classes for `size` by `size` pixels, and return MODELS@1."""
    torch.manual_seed(0)
    # With a second busy process, two threads that wait for each other take ten times as long.
    torch.set_num_threads(1)
    stored = StoredView(size=size, fit=fit)
    view = InputView(input_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    files = [photograph(SMALL, seed) for seed in range(_FIRST_SEED, _FIRST_SEED + _PICTURES)]
    images = np.stack([decode(file, stored).image for file in files])
    architecture = Architecture(
        backbone=backbone,
        cut=resolve_cut(backbone, "auto", size),
        head="linear",
        input_size=size,
        classes=len(CLASSES),
    )
    network, _ = build_network(architecture)
    network.to(memory_format=torch.channels_last)
    _fit(network, [apply_input_view(torch.from_numpy(batch), view) for batch in _batches(images)])
    store = open_store(str(models))
    weights = put_weights(store, network)
    pictures = GoldenPictures(files[:GOLDEN], images[:GOLDEN])
    golden = put_golden(
        store, pictures, compute_logits(network, pictures.images, view), list(CLASSES)
    )
    publish_model(
        store,
        lambda number: ModelVersion(
            version=number, architecture=architecture,
            regime="frozen", classes=list(CLASSES), stored_view=stored, input_view=view,
            weights=weights, golden=golden, metrics={}, lineage={},
        ),
    )  # fmt: skip
    return f"{models}@1"


def _batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _fit(network: Network, batches: list[Tensor]) -> None:
    """Train the network, set the statistics of every BatchNorm, then fit the classifier."""
    seeds = range(_FIRST_SEED, _FIRST_SEED + _PICTURES)
    classes = torch.tensor([shown(seed) for seed in seeds])
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE)
    network.train()
    for _ in range(_EPOCHS):
        for images, targets in zip(batches, torch.split(classes, _BATCH), strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), targets, label_smoothing=_SMOOTHING)
            torch.autograd.backward(loss)
            optimizer.step()

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # the mean over batches
        for batch in batches:
            network.backbone(batch)
        network.eval()
        features = torch.cat([network.features(batch) for batch in batches])
        weight, bias = _ridge(features, _MARGIN * (2.0 * classes - 1))
        assert isinstance(network.classifier, nn.Linear)
        # The softmax of these two logits is sigmoid(w x + b).
        network.classifier.weight.copy_(torch.stack([-weight, weight]) / 2)
        network.classifier.bias.copy_(torch.stack([-bias, bias]) / 2)


def _ridge(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a ridge regression.

    It is solved in its dual form, since there are fewer pictures than features.
    """
    mean = features.mean(dim=0)
    centred = features - mean
    energies = centred @ centred.T
    energies += _RIDGE * energies.diagonal().mean() * torch.eye(len(features))
    weight = centred.T @ torch.linalg.solve(energies, targets - targets.mean())
    return weight, targets.mean() - weight @ mean
