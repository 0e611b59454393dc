"""Weights of a published model: written, verified, cached."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from afinar.errors import IntegrityError
from afinar.models.registry.bundle import load_network, put_weights
from afinar.models.registry.versions import find_model
from afinar.storage.open import open_store
from tests.conftest import Trained


def test_load_network_damaged_weights_are_refused(trained: Trained, tmp_path: Path) -> None:
    _, version = find_model(trained.champion)
    store = open_store(str(tmp_path))
    network = load_network(open_store(trained.models), version)
    ref = put_weights(store, network)
    assert ref == version.weights
    data = bytearray(store.get(ref.path))
    data[-1] ^= 1
    store.delete(ref.path)
    store.put_if_absent(ref.path, bytes(data))
    with pytest.raises(IntegrityError):
        load_network(store, version)


def test_load_network_from_a_bucket_fetches_weights_once_per_machine(
    trained: Trained, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, version = find_model(trained.champion)
    network = load_network(open_store(trained.models), version)
    store = open_store(bucket)
    put_weights(store, network)
    load_network(store, version)
    store.delete(version.weights.path)
    again = load_network(store, version)
    assert all(
        torch.equal(tensor, again.state_dict()[name])
        for name, tensor in network.state_dict().items()
    )
