"""A published model, ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.config.base import Precision
from afinar.inference.optimize import fast
from afinar.models.networks.network import prepare
from afinar.models.registry.bundle import load_network
from afinar.models.registry.golden import assert_matches_golden, get_golden, redecode
from afinar.models.registry.versions import ModelVersion, find_model
from afinar.pictures.decode import decode
from afinar.storage.store import Store


class Predictor:
    """Batch callable: uint8 images in, scores out."""

    def __init__(
        self,
        store: Store,
        version: ModelVersion,
        device: str = "cpu",
        precision: Precision | None = None,
    ) -> None:
        """Load the network and replay its golden samples. Raises ModelError when the answers differ.

        With a `precision` it is made as fast as the golden samples allow; without one it is left as it was published.
        """
        self.version = version
        torch.backends.cudnn.allow_tf32 = (
            False  # its error is of the order that the golden samples allow
        )
        self.device = torch.device(device)
        network = load_network(store, version).to(self.device)
        golden = redecode(get_golden(store, version.golden), version.stored_view)
        if precision is None:
            assert_matches_golden(golden, network, version.input_view)
        else:
            network = fast(network, golden, version.input_view, precision)
        self.network = network
        self._dtype = next(self.network.parameters()).dtype

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the scores."""
        return self.version.classes

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities float32 [n, classes] of stored views uint8 [n, size, size, 3], at the version's temperature."""
        return self.outputs(images)[0]

    def outputs(
        self, images: NDArray[np.uint8], features: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """What a call gives and, where asked for, the activations at the cut, float32 [n, width], in one pass.

        What the classifier receives is what comes back: pooled to one row a picture.
        """
        with torch.inference_mode():
            inputs = prepare(torch.from_numpy(images).to(self.device), self.version.input_view).to(
                self._dtype
            )
            activations = self.network.features(inputs)
            logits = self.network.classifier(activations).float() / self.version.temperature
            scores: NDArray[np.float32] = logits.softmax(dim=1).cpu().numpy()
            found: NDArray[np.float32] | None = (
                activations.float().cpu().numpy() if features else None
            )
        return scores, found

    def predict(self, pictures: Sequence[str | Path | NDArray[np.uint8]]) -> list[dict[str, float]]:
        """Class → probability for each picture: a file's path, or a stored view uint8 [size, size, 3].

        Raises PictureError for a file that cannot be used.
        """
        view = self.version.stored_view
        images = [
            picture
            if isinstance(picture, np.ndarray)
            else decode(Path(picture).read_bytes(), view).image
            for picture in pictures
        ]
        if not images:
            return []
        return [
            dict(zip(self.classes, map(float, row), strict=True)) for row in self(np.stack(images))
        ]


def best_classes(scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """Numbers of the `top_k` likeliest classes of one picture's scores, best first; at a tie, in the classes' order."""
    return np.argsort(-scores, kind="stable")[:top_k]


def open_model(uri: str) -> Predictor:
    """Load the model that MODELS@champion or MODELS@VERSION names, on the CPU."""
    return Predictor(*find_model(uri))
