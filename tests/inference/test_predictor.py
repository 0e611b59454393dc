"""The predictor: scores of files and of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afinar import open_model
from afinar.pictures.rejects import PictureError
from tests.archives import BROKEN, picture
from tests.conftest import Trained


def test_file_is_predicted_from_python(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "moss.jpg").write_bytes(picture(1))
    (tmp_path / "note.jpg").write_bytes(BROKEN["unidentified"])
    model = open_model(trained.champion)
    (scores,) = model.predict([tmp_path / "moss.jpg"])
    assert set(scores) == {"moss", "rust"}
    assert sum(scores.values()) == pytest.approx(1.0, abs=1e-5)
    assert max(scores, key=scores.__getitem__) == "moss"
    with pytest.raises(PictureError):
        model.predict([tmp_path / "note.jpg"])
    assert model.predict([]) == []
    assert model(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape == (2, 2)


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
