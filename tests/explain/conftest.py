"""Networks to explain: a trained small one, whose two classes differ in colour."""

from __future__ import annotations

import pytest

from afinar.explain.network import ExplainedNetwork, ModelSpec, load_explained
from tests.conftest import Trained


@pytest.fixture(scope="session")
def network(trained: Trained) -> ExplainedNetwork:
    return load_explained(ModelSpec(model=trained.champion))
