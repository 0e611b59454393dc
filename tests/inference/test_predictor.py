"""The predictor: scores and features of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afinar import open_model
from afinar.inference import batch_size
from afinar.inference.predictor import Predictor
from afinar.storage.cache import Cache
from tests.conftest import Trained


def test_scores_and_features_are_requested_the_network_runs_once(trained: Trained) -> None:
    model = open_model(trained.champion)
    images = np.stack([np.full((64, 64, 3), shade, dtype=np.uint8) for shade in (10, 200)])
    passes: list[int] = []
    model.network.backbone.register_forward_hook(lambda *_: passes.append(1))
    scores, features = model.outputs(images, features=True)
    assert len(passes) == 1
    assert features is not None
    assert features.shape[0] == 2
    assert features.dtype == scores.dtype == np.float32
    assert scores == pytest.approx(model(images), abs=1e-6)
    plain, nothing = model.outputs(images)
    assert nothing is None
    assert plain == pytest.approx(scores, abs=1e-6)


def test_batch_size_is_measured_once_per_machine(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = open_model(trained.champion), Cache(tmp_path / "cache")
    measured: list[tuple[int, ...]] = []

    def measure(predictor: Predictor, sizes: tuple[int, ...]) -> int:
        measured.append(sizes)
        return sizes[0]

    monkeypatch.setattr(batch_size, "fastest_batch_size", measure)
    assert batch_size.choose_batch_size(model, 100, cache) == 16, "too few to repay a trial"
    assert batch_size.choose_batch_size(model, 10**6, cache) == 8
    assert batch_size.choose_batch_size(model, 10**6, cache) == 8
    assert batch_size.choose_batch_size(model, 100, cache) == 8
    assert measured == [(8, 16)]


def test_fastest_batch_size_is_one_of_those_tried(trained: Trained) -> None:
    assert batch_size.fastest_batch_size(open_model(trained.champion), (1, 2)) in {1, 2}
