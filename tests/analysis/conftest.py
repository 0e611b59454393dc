"""Weights of a small network for features."""

from __future__ import annotations

import pytest

from tests.features.jobs import put_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of weights of small_cnn."""
    return put_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")
