"""The predictor: scores and features of batches."""

from __future__ import annotations

import numpy as np
import pytest

from afinar import open_model
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
