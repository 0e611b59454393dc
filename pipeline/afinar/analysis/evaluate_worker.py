"""Worker of an evaluation: predictions of one unit of pictures, plain or corrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset, open_dataset
from afinar.evaluation.corruptions import Corruption
from afinar.inference.cpu import use_worker_cores
from afinar.inference.predictor import Predictor, load_predictor
from afinar.models.networks.network import apply_input_view, default_batch_size
from afinar.models.networks.precision import tf32_disabled
from afinar.models.registry.versions import find_model
from afinar.pictures.jpeg import decode_stored, encode_stored

_CACHE_BYTES: Final = 8 * 2**30  # of a remote dataset's shards: each is read for all conditions

_FORWARD: Final = Lock()


@dataclass(frozen=True, kw_only=True)
class EvaluationUnit:
    """Some rows of the dataset's index under one condition; `start` is their place among its rows.

    `corruption` is None for pictures as they are stored.
    """

    condition: int
    start: int
    rows: NDArray[np.int64]
    corruption: Corruption | None

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class UnitPredictions:
    """Predicted classes int64 [n] and their probabilities float32 [n].

    `logits` are float32 [n, classes] for pictures as they are stored, else [0, classes].
    """

    condition: int
    start: int
    predicted: NDArray[np.int64]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]


def make_worker(
    dataset: str, version: int, model: str
) -> Callable[[EvaluationUnit], UnitPredictions]:
    """Load the model as it was published and open the dataset: the entry point of a worker."""
    use_worker_cores()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(*find_model(model), device=device)
    opened = open_dataset(dataset, version=version, cache_bytes=_CACHE_BYTES)

    def predict(unit: EvaluationUnit) -> UnitPredictions:
        return predict_unit(predictor, opened, unit)

    return predict


def predict_unit(predictor: Predictor, dataset: Dataset, unit: EvaluationUnit) -> UnitPredictions:
    """Return the predictions of one unit."""
    view = predictor.version.stored_view
    # As in labelling: a model of a `jpeg` store has learned from compressed pixels.
    through_jpeg = view.store == "jpeg" and dataset.view.store == "pixels"
    size = default_batch_size(predictor.device)
    parts = []
    for start in range(0, len(unit.rows), size):
        images = dataset.read(unit.rows[start : start + size])
        if unit.corruption is not None:
            images = unit.corruption(images)
        if through_jpeg:
            images = np.stack([decode_stored(encode_stored(image)) for image in images])
        parts.append(_logits(predictor, images))

    logits = np.concatenate(parts)
    scores = torch.from_numpy(logits / predictor.version.temperature).softmax(dim=1)
    best = scores.max(dim=1)
    return UnitPredictions(
        condition=unit.condition,
        start=unit.start,
        predicted=best.indices.numpy(),
        scores=best.values.numpy(),
        logits=logits if unit.corruption is None else logits[:0],
    )


def _logits(predictor: Predictor, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    # A worker with a GPU runs several units in threads, and TF32 is a setting of the process.
    with _FORWARD, torch.inference_mode(), tf32_disabled(predictor.device):
        pixels = torch.from_numpy(images).to(predictor.device)
        inputs = apply_input_view(pixels, predictor.version.input_view)
        logits: NDArray[np.float32] = predictor.network(inputs).float().cpu().numpy()
    return logits


def joined(parts: list[UnitPredictions]) -> UnitPredictions:
    """Return the predictions of all units of one condition, which are in order."""
    return UnitPredictions(
        condition=parts[0].condition,
        start=0,
        predicted=np.concatenate([part.predicted for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
    )
