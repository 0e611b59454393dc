"""Predictions of a published model on batches of images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.config.base import Precision
from afinar.inference.optimize import optimize_for_inference
from afinar.models.networks.network import Network, apply_input_view
from afinar.models.networks.precision import tf32_disabled
from afinar.models.registry.bundle import load_network
from afinar.models.registry.golden import (
    assert_matches_golden,
    assert_matches_record,
    get_golden,
    redecode,
)
from afinar.models.registry.versions import ModelVersion
from afinar.storage.store import Store


class PredictorOutput(NamedTuple):
    """Scores float32 [n, classes], and features float32 [n, width] if they were requested."""

    scores: NDArray[np.float32]
    features: NDArray[np.float32] | None


class Predictor:
    """Batch callable: uint8 images in, scores out. `load_predictor` makes one."""

    def __init__(self, network: Network, version: ModelVersion) -> None:
        parameter = next(network.parameters())
        self.network = network
        self.version = version
        self.device = parameter.device
        self._dtype = parameter.dtype

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the scores."""
        return self.version.classes

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return scores, float32 [n, classes], of stored views uint8 [n, size, size, 3].

        Scores are probabilities at the version's temperature; each row sums to 1.
        """
        return self.outputs(images).scores

    def outputs(self, images: NDArray[np.uint8], features: bool = False) -> PredictorOutput:
        """Return the scores and optionally the features, from one forward pass.

        Features are the input of the classifier: activations at the cut, pooled to one row per
        picture.
        """
        with torch.inference_mode(), tf32_disabled(self.device):
            scores, activations = self.compute(torch.from_numpy(images).to(self.device))
            rows = activations.float().cpu().numpy() if features else None
            return PredictorOutput(scores.cpu().numpy(), rows)

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [n, classes] and features [n, width] of pixels that are on the device.

        The caller disables gradients, and TF32.
        """
        inputs = apply_input_view(pixels, self.version.input_view).to(self._dtype)
        activations = self.network.features(inputs)
        logits = self.network.classifier(activations).float() / self.version.temperature
        return logits.softmax(dim=1), activations


def load_predictor(
    store: Store,
    version: ModelVersion,
    device: str = "cpu",
    precision: Precision | None = None,
    pictures: int = 0,
) -> Predictor:
    """Load a model version onto a device and replay its golden samples.

    With a `precision` the network is optimised as far as the golden samples allow, for a job of
    `pictures`; without one it is used as published. Raises ModelError if the golden samples have
    other logits here.
    """
    network = load_network(store, version).to(torch.device(device))
    golden = get_golden(store, version.golden)
    assert_matches_record(golden, version)
    golden = redecode(golden, version.stored_view)
    if precision is None:
        assert_matches_golden(golden, network, version.input_view)
    else:
        network = optimize_for_inference(network, golden, version.input_view, precision, pictures)

    return Predictor(network, version)
